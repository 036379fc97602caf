"""The timeline: what happened to a call or a connection, who did it, how long it took and why. Rows of ari.timeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """A row that is no transition: a request, a refusal, an observation, a dead letter."""

    kind: Literal["request", "refusal", "note", "dead-letter"]
    name: str
    detail: str = ""
    at: datetime | None = None
    took_ms: float | None = None
    attempt: int | None = None
