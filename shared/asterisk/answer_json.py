"""Reads the JSON of an answer: its values are in proportion to its size, and a long list is read in pieces.

The standard library's parser runs to the end of a text before another thread runs. An empty list costs it as much time
and memory as a value of a hundred bytes: 2 MB of them took 0.24 s and 47 MB, bridges of the same size 7 ms and 7 MB
(measured). Depth is bounded by the parser itself.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shared import errors

#: Asterisk's have 15 bytes for each value and more: a list of channel ids has the fewest.
_BYTES_A_VALUE = 12
#: Up to this size the number of values does no harm.
_SMALL = 4096
#: In characters: a list is read in pieces of so many, and no entry of a list that is longer may be longer.
_PIECE = 64 * 1024
#: A bridge has 300 and more. Each entry costs some microseconds, however short it is.
_BYTES_AN_ENTRY = 150

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_decode = json.JSONDecoder().raw_decode
_NEXT = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")


def parse(body: bytes) -> Any:
    """Return what the JSON says. Raises AsteriskUnreachable if it is none, is too deep, or has too many values."""
    if len(body) > _SMALL and _values(body) > len(body) // _BYTES_A_VALUE:
        raise errors.AsteriskUnreachable("the answer has too many values for its size")
    try:
        return _entries(body.decode()) if len(body) > _PIECE and body.startswith(b"[") else json.loads(body)
    except RecursionError as exc:
        raise errors.AsteriskUnreachable("the answer is nested too deeply") from exc
    except ValueError as exc:
        # The page of some other server: it says nothing about the resource.
        raise errors.AsteriskUnreachable("the answer is not JSON") from exc


def _values(body: bytes) -> int:
    """Return the most values that a text may have: each but the first follows a comma, a brace or a bracket.

    Those within a string, as between the arguments of Stasis(), count as well in a long text: to tell them takes time.
    """
    most = _separators(body)
    is_dense = most > len(body) // _BYTES_A_VALUE
    return _separators(_STRING.sub(b"", body)) if is_dense and len(body) <= _PIECE else most


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _entries(text: str) -> list[Any]:
    """Return the entries of a list that is not empty. Raises ValueError if it is none, or if one is too long."""
    entries: list[Any] = []
    start, separator = len(text) - len(text[1:].lstrip(" \t\r\n")), ","
    while separator == ",":
        piece, at = text[start : start + _PIECE], 0
        while separator == ",":
            try:
                entry, end = _decode(piece, at)
            except json.JSONDecodeError:
                break
            following = _NEXT.match(piece, end)
            if following is None or following.end() == len(piece) < len(text) - start:
                # The piece ends with it, or within it.
                break
            entries.append(entry)
            separator, at = following[1], following.end()
        if not at:
            raise ValueError("no entry that is short enough")
        start += at
        if len(entries) > _PIECE // _BYTES_AN_ENTRY + start // _BYTES_AN_ENTRY:
            raise errors.AsteriskUnreachable("the answer has too many entries for its size")
    if start != len(text):
        raise ValueError("more than a list")
    return entries
