"""What the query of a page's URL asks for: numbers, moments and words, each read or refused with a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar
from urllib.parse import urlencode

from console.pages import Visit
from shared import errors

_LARGEST = 2**31 - 1
_AGO = re.compile(r"(\d{1,5})\s*([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_Word = TypeVar("_Word", bound=StrEnum)


def number(visit: Visit, name: str) -> int | None:
    """Return a whole number; None if it is left out. Raises InvalidRequest for any other text."""
    text = visit.parameter(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LARGEST):
        raise errors.InvalidRequest(f"{name} is a number, not {text[:50]!r}")
    return int(text)


def moment(visit: Visit, name: str, now: datetime) -> datetime | None:
    """Return a moment: `2026-11-29 13:00`, in UTC unless it names its zone, or `1h` ago.

    Raises:
        InvalidRequest: It is any other text.
    """
    text = visit.parameter(name)
    if not text:
        return None
    if (ago := _AGO.fullmatch(text)) is not None:
        return now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise errors.InvalidRequest(
            f"{name} is a time such as 2026-11-29 13:00 (UTC), or 15m, 1h, 7d ago; not {text[:50]!r}"
        ) from None


def word(visit: Visit, name: str, words: type[_Word]) -> _Word | None:
    """Return one of these words; None if it is left out. Raises InvalidRequest for any other text."""
    text = visit.parameter(name)
    if not text:
        return None
    try:
        return words(text)
    except ValueError:
        raise errors.InvalidRequest(f"{name} is one of {', '.join(words)}, not {text[:50]!r}") from None


def url(path: str, values: Mapping[str, object]) -> str:
    """Return a path with the parameters that say something."""
    query = urlencode({name: value for name, value in values.items() if value not in (None, "")})
    return f"{path}?{query}" if query else path


def within(visit: Visit, name: str, usual: timedelta) -> timedelta:
    """Return how long ago a moment of the past is; the usual time if it is left out. Raises InvalidRequest."""
    now = datetime.now(UTC)
    at = moment(visit, name, now)
    if at is None:
        return usual
    if at > now:
        raise errors.InvalidRequest(f"{name} is a time of the past, not {visit.parameter(name)[:50]!r}")
    return now - at
