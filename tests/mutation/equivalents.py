"""Mutants that are known to change nothing, each with the reason: `equivalents.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("equivalents.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalent:
    """A mutant that changes nothing. It is found by what it does, not by a line number, which would soon be wrong."""

    module: str
    #: Empty for a line outside of functions.
    function: str
    #: The first line that is changed, before and after, without indentation; the second is empty if it is removed.
    line: str
    becomes: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is found by."""
        return self.module, self.function, self.line, self.becomes


def every() -> list[Equivalent]:
    """Return all of them."""
    return [Equivalent(**entry) for entry in tomllib.loads(_FILE.read_text())["equivalent"]]
