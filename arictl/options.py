"""Numbers as options: each has its bounds, so that what is out of range is said before anything is opened."""

from __future__ import annotations

from typing import Any

import typer

#: Ids, and what is counted, are INTEGER in the database.
LARGEST = 2**31 - 1


def number(*names: str, help: str, least: float = 1, largest: float = LARGEST, metavar: str = "N") -> Any:
    """An option that takes a number from `least` to `largest`, in the unit its name or its help says."""
    return typer.Option(*names, min=least, max=largest, metavar=metavar, help=help)


def organization(help: str) -> Any:
    """The option `--organization`."""
    return number("--organization", "-o", metavar="ORG", help=help)
