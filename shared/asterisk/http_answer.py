"""Reads one answer of HTTP/1.1 or 1.0: its body has a length, comes in chunks, or lasts until the connection's end.

The standard library reads headers as those of an e-mail, which takes longer than all else that a request costs. Sizes
are bounded here, the time by what receives. A body whose length is told is refused by that, before it is received.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shared import errors

#: Of the status line and headers, in bytes; also of the line before a chunk.
LARGEST_HEAD = 16 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: .*)?")
_FOLD = re.compile(rb"\r\n[ \t]+")
_LENGTH = re.compile(rb"\d{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """The last answer to a request, after any interim ones."""

    status: int
    body: bytes
    #: Whether the connection may be used for another request.
    keeps_connection: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    minor_version: int
    status: int
    #: Name in lower case → value; the values of a repeated field are joined with commas.
    fields: dict[bytes, bytes]

    def keeps_connection(self) -> bool:
        options = [option.strip() for option in self.fields.get(b"connection", b"").lower().split(b",")]
        return b"close" not in options if self.minor_version else b"keep-alive" in options


class AnswerReader:
    """Reads the answer to one request.

    Args:
        receive: Returns the next bytes; none at the connection's end.
        largest_body: The largest body that is read, in bytes.
    """

    def __init__(self, receive: Callable[[], bytes], *, largest_body: int) -> None:
        self._receive = receive
        self._largest_body = largest_body
        #: What may still be received: as much again for heads, the sizes of chunks, and trailers.
        self._receivable = 2 * (largest_body + LARGEST_HEAD)
        self._buffer = bytearray()

    def read(self) -> HttpAnswer:
        """Return the answer.

        Raises:
            AsteriskUnreachable: It is no HTTP, or too large.
            ConnectionResetError: The connection ended before the answer did.
        """
        head = self._head()
        while head.status < 200:
            # Interim: the answer follows.
            head = self._head()
        is_delimited, body = True, b""
        if head.status == 204:
            # It has no body. One that says otherwise may be followed by it.
            is_delimited = head.fields.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in head.fields
        elif head.status == 304:
            pass
        elif (coding := head.fields.get(b"transfer-encoding")) is not None:
            body = self._chunks(coding)
        elif (length := head.fields.get(b"content-length")) is not None:
            body = self._sized(length)
        else:
            is_delimited, body = False, self._until_end()
        # What follows an answer was not asked for, so the next answer could not be told from it.
        keeps_connection = is_delimited and not self._buffer and head.keeps_connection()
        return HttpAnswer(status=head.status, body=body, keeps_connection=keeps_connection)

    def _head(self) -> _Head:
        block = _FOLD.sub(b" ", self._until(b"\r\n\r\n"))
        status_line, *lines = block.split(b"\r\n")
        matched = _STATUS_LINE.fullmatch(status_line)
        if matched is None:
            raise _malformed()
        return _Head(minor_version=int(matched[1]), status=int(matched[2]), fields=_fields(lines))

    def _sized(self, length: bytes) -> bytes:
        # A proxy may have repeated the field, or its value.
        first, *repeated = [part.strip(b" \t") for part in length.split(b",")]
        if _LENGTH.fullmatch(first) is None or any(part != first for part in repeated):
            raise _malformed()
        return self._take(int(first))

    def _chunks(self, coding: bytes) -> bytes:
        if coding.lower() != b"chunked":
            raise _malformed()
        body = bytearray()
        while size := self._chunk_size():
            body += self._take(size, before=len(body))
            if self._take(2) != b"\r\n":
                raise _malformed()
        while self._until(b"\r\n"):
            # Trailers say nothing that is needed.
            pass
        return bytes(body)

    def _chunk_size(self) -> int:
        matched = _CHUNK_SIZE.fullmatch(self._until(b"\r\n"))
        if matched is None:
            raise _malformed()
        return int(matched[1], 16)

    def _until_end(self) -> bytes:
        while self._received():
            self._check_size(len(self._buffer))
        body, self._buffer = bytes(self._buffer), bytearray()
        return body

    def _until(self, end: bytes) -> bytes:
        """Return what comes before `end`, and pass over that."""
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            if len(self._buffer) > LARGEST_HEAD:
                raise errors.AsteriskUnreachable("the answer's headers are too large")
            searched = max(0, len(self._buffer) - len(end) + 1)
            self._more()
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return found

    def _take(self, size: int, before: int = 0) -> bytes:
        """Return the next `size` bytes of a body of which so many came before."""
        self._check_size(before + size)
        while len(self._buffer) < size:
            self._more()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _more(self) -> None:
        if not self._received():
            raise ConnectionResetError("the connection ended before the answer did")

    def _received(self) -> bool:
        """Receive the next bytes; return False at the connection's end."""
        received = self._receive()
        self._receivable -= len(received)
        if self._receivable < 0:
            raise _too_large()
        self._buffer += received
        return bool(received)

    def _check_size(self, size: int) -> None:
        if size > self._largest_body:
            raise _too_large()


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[-1:].isspace():
            raise _malformed()
        name, value = name.lower(), value.strip(b" \t")
        fields[name] = fields[name] + b"," + value if name in fields else value
    return fields


def _too_large() -> errors.AsteriskUnreachable:
    return errors.AsteriskUnreachable("the answer is too large")


def _malformed() -> errors.AsteriskUnreachable:
    return errors.AsteriskUnreachable("the answer is not HTTP")
