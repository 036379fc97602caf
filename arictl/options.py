"""Options that take numbers, each with its bounds: a number out of range is refused before anything is opened."""

from __future__ import annotations

from typing import Any

import typer

#: Ids and counts are INTEGER in the database.
LARGEST = 2**31 - 1


def number(*names: str, help: str, least: float = 1, largest: float = LARGEST, metavar: str = "N") -> Any:
    """Return an option that takes a number from `least` to `largest`; its name or its help gives the unit."""
    return typer.Option(*names, min=least, max=largest, metavar=metavar, help=help)


def organization(help: str) -> Any:
    """Return the option `--organization`."""
    return number("--organization", "-o", metavar="ORG", help=help)
