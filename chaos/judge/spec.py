"""What the judge is told about a run, in its first line of input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Where everything is, and which deadlines the documentation promises."""

    #: Of the deeds; observations and the verdict are written to it.
    folder: Path
    #: Of the Asterisk itself, not of a proxy; without `/ari`.
    asterisk_url: str
    user: str
    password: str
    #: Of the Postgres itself.
    database_url: str
    #: Stasis app → the organization whose calls enter it.
    apps: dict[str, int]
    #: The port on which the voice agent listens.
    agent_port: int
    #: Of `<leg>.sln`: what a caller hears, 8 kHz, signed 16 bit.
    caller_recordings: Path
    #: Of `<run id>.ulaw`: what the agent heard last.
    agent_recordings: Path
    #: The tone that the caller sends, and the one that the agent sends.
    caller_hz: float = 1004
    agent_hz: float = 400
    waiting_seconds: float = 60
    silence_seconds: float = 20

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line of JSON. Raises TypeError or KeyError for an unknown or a missing name."""
        values: dict[str, Any] = json.loads(line)
        folders = ("folder", "caller_recordings", "agent_recordings")
        return cls(**values | {name: Path(values[name]) for name in folders})
