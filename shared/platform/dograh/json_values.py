"""Reads the platform's JSON columns, which may hold anything. Nothing here raises."""

from __future__ import annotations

import json
from typing import Any


def load(text: str | None) -> object:
    """Return the value of a JSON column that was read as text; None if it cannot be read.

    The columns are JSON, not JSONB: read as text, so that everything the platform could store can be fetched.
    """
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None


def load_object(text: str | None) -> dict[str, Any]:
    """Like `load`; an empty dict for anything but an object."""
    value = load(text)
    return value if isinstance(value, dict) else {}


def whole_number(value: object, *, least: int = 1) -> int | None:
    """Return an id or a limit, given as an int or its digits; None for anything else. The platform's are INTEGER."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and least <= value < 2**31 else None
