"""What the platform's columns hold, whatever that is: nothing here raises."""

from __future__ import annotations

import json
from typing import Any


def load(text: str | None) -> object:
    """JSON columns are JSON, not JSONB: read as text, so that whatever the platform could store can be read."""
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None


def load_object(text: str | None) -> dict[str, Any]:
    """As `load`; empty for what is no object."""
    value = load(text)
    return value if isinstance(value, dict) else {}


def whole_number(value: object, *, least: int = 1) -> int | None:
    """An id or a limit: an int, or the digits of one. The platform's are INTEGER."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and least <= value < 2**31 else None
