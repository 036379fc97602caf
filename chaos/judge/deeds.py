"""What the harness did, read from its file of deeds: calls, callers who hung up, faults. Times are unix seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.judge.spans import FOREVER, Span

#: What the names of faults begin with that may interrupt audio, or its recording, unless the deed says it.
_OF_AUDIO = ("agent", "Asterisk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A call that was offered. `leg` is the channel that enters the app."""

    leg: str
    at: float
    app: str
    direction: str
    manner: str
    #: Both ends are listened to.
    sampled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, from its strike until it was mended."""

    number: int
    name: str
    target: str
    at: float
    #: Infinite while it is not mended.
    until: float = FOREVER
    #: While it lasts, no call can be served: deadlines are extended by it.
    outage: bool = False
    #: It may interrupt the audio of connected calls.
    audio: bool = False
    #: It may cost callers their calls.
    loses: bool = True
    #: The apps whose callers it concerns; None for all.
    apps: frozenset[str] | None = None

    @property
    def span(self) -> Span:
        """From when until when it lasted."""
        return self.at, self.until

    def concerns(self, app: str | None) -> bool:
        """Whether callers of an app notice it; a call whose app is unknown may be one of them."""
        return self.apps is None or app is None or app in self.apps


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeds:
    """All that was done in a run."""

    #: By leg.
    offers: dict[str, Offer] = field(default_factory=dict)
    #: Leg → why it could not be offered.
    not_offered: dict[str, str] = field(default_factory=dict)
    #: Leg → when its caller hung up.
    hang_ups: dict[str, float] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read(path: Path) -> Deeds:
    """Read the file; without one nothing was done. A line that is being written is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return of_lines(json.loads(line) for line in lines if line)


def of_lines(lines: Iterable[dict[str, Any]]) -> Deeds:
    """Put the deeds together. Of several lines about one fault, the later ones say until when it lasted."""
    deeds = Deeds()
    faults: dict[int, dict[str, Any]] = {}
    for line in lines:
        match line["deed"]:
            case "call":
                offer = Offer(**{name: line[name] for name in Offer.__dataclass_fields__ if name in line})
                deeds.offers[offer.leg] = offer
            case "not-offered":
                deeds.not_offered[line["leg"]] = line["reason"]
            case "hang-up":
                deeds.hang_ups.setdefault(line["leg"], line["at"])
            case "fault" | "mended":
                number = line.get("number", -len(faults))
                faults.setdefault(number, line | {"number": number})["until"] = line.get("until")
    deeds.faults.extend(_fault(line) for line in faults.values())
    return deeds


def _fault(line: dict[str, Any]) -> Fault:
    apps = line.get("apps")
    return Fault(
        number=line["number"],
        name=line["name"],
        target=str(line["target"]),
        at=line["at"],
        until=FOREVER if line.get("until") is None else line["until"],
        outage=line.get("outage", False),
        audio=line.get("audio", line["name"].startswith(_OF_AUDIO)),
        loses=line.get("loses", True),
        apps=None if apps is None else frozenset(apps),
    )
