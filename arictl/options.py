"""Options that take numbers, each with its bounds: a number out of range is refused before anything is opened."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

#: Ids and counts are INTEGER in the database.
LARGEST = 2**31 - 1


def number(*names: str, help: str, least: float = 1, largest: float = LARGEST, metavar: str = "N") -> Any:
    """Return an option that takes a number from `least` to `largest`; its name or its help gives the unit."""
    return typer.Option(*names, min=least, max=largest, metavar=metavar, help=help)


#: What a time ago is given in.
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str | None, name: str) -> datetime | timedelta | None:
    """Return the moment that an option gives, or how long ago it is; without a zone, UTC."""
    if text is None:
        return None
    ago = re.fullmatch(r"([0-9]{1,5})([smhd])", text.strip())
    if ago is not None:
        return timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as exc:
        raise typer.BadParameter(f"{name}: give 90s, 30m, 2h or 7d, or a moment as in 2026-11-29T21:30") from exc
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def organization(help: str) -> Any:
    """Return the option `--organization`."""
    return number("--organization", "-o", metavar="ORG", help=help)
