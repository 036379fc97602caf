"""Set-up times from an Asterisk's events: from the creation of a caller's leg until both legs are in the bridge.

By the clock of that Asterisk, in milliseconds. Pure: events in, times out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: The one event that is read: it has the time of a leg's entry and of its creation.
EVENT = "ChannelEnteredBridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """The duration of a call's set-up, in ms from the creation of the caller's leg."""

    #: Until the second leg entered the bridge.
    whole: int
    #: Until the creation of the media leg: everything that is decided and stored before Asterisk is asked for it.
    until_media: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entering:
    created: int
    entered: int


class Bridgings:
    """The entries into bridges that an observer of the Asterisk has seen."""

    def __init__(self) -> None:
        self._legs: dict[str, dict[str, _Entering]] = {}
        self._bridges: dict[str, str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event; types other than EVENT are ignored. If a leg enters again, its first entry counts."""
        if event["type"] != EVENT:
            return
        bridge, leg = event["bridge"]["id"], event["channel"]["id"]
        entering = _Entering(
            created=_milliseconds(event["channel"]["creationtime"]), entered=_milliseconds(event["timestamp"])
        )
        self._legs.setdefault(bridge, {}).setdefault(leg, entering)
        self._bridges.setdefault(leg, bridge)

    def set_up(self, caller: str) -> SetUp | None:
        """Return the set-up of a caller's call, None if it was never in a bridge with another leg."""
        legs = self._legs.get(self._bridges.get(caller, ""), {})
        others = [entering for leg, entering in legs.items() if leg != caller]
        if not others:
            return None
        created = legs[caller].created
        second = min(others, key=lambda entering: entering.entered)
        return SetUp(
            whole=max(legs[caller].entered, second.entered) - created,
            until_media=second.created - created,
        )


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that `part` of the values do not exceed; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return sum(values) / len(values) if values else math.nan


def _milliseconds(stamp: str) -> int:
    """Return the milliseconds of a time stamp as Asterisk writes it: `2026-11-23T11:39:28.123+0000`."""
    return round(1000 * datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp())
