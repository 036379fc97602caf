"""Reads and writes the platform's JSON columns, which may hold anything. Nothing here raises.

The columns are JSON, not JSONB: read and written as text, so that everything the platform could store can be fetched,
and is the same afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: A text, or a sign between values. What stands between these is a number, a literal or white space.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}:,]', re.DOTALL)


def load(text: str | None) -> object:
    """Return the value of a JSON column that was read as text; None if it cannot be read."""
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None


def load_object(text: str | None) -> dict[str, Any]:
    """Like `load`; an empty dict for anything but an object. A field that cannot be read is None."""
    value = load(text)
    if value is None:
        value = {name: load(written) for name, written in fields(text).items()}
    return value if isinstance(value, dict) else {}


def fields(text: str | None) -> dict[str, str]:
    """Return the fields of a JSON object, each value as it is written; an empty dict for anything but an object.

    No value is converted, for not all can be: a number may be infinite for Python, or too long, a list too deep.

    Args:
        text: Valid JSON, as a column of that type gives it.
    """
    found: dict[str, str] = {}
    depth, name, begin = 0, "", 0
    for token in _TOKEN.finditer(text or ""):
        sign = token[0]
        if depth == 1 and sign[0] == '"' and not begin:
            name = str(json.loads(sign))
        elif depth == 1 and sign == ":":
            begin = token.end()
        elif depth == 1 and sign in ",}" and begin and text is not None:
            found[name], begin = text[begin : token.start()].strip(), 0
        if depth == 0 and sign != "{":
            break
        depth += (sign in "{[") - (sign in "}]")
    return found


def encoded(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as fields of a JSON object. They are ours: text, and finite numbers."""
    return {name: json.dumps(value) for name, value in values.items()}


def document(fields: Mapping[str, str]) -> str:
    """Return the JSON object of these fields."""
    return "{" + ", ".join(f"{json.dumps(name)}: {written}" for name, written in fields.items()) + "}"


def whole_number(value: object, *, least: int = 1) -> int | None:
    """Return an id or a limit, given as an int or its digits; None for anything else. The platform's are INTEGER."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and least <= value < 2**31 else None
