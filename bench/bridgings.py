"""Set-up times out of an Asterisk's events: when each call's caller came, and when both its legs were in the bridge.

All by that Asterisk's own clock, to the millisecond. Pure: events in, times out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: The one event it takes: with a leg's entering it tells when the leg came to be.
EVENT = "ChannelEnteredBridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """How long a call's set-up took, in ms from the creation of the caller's leg."""

    #: Until the second leg entered the bridge.
    whole: int
    #: Until the media leg came to be: all that is decided and stored before Asterisk is asked for it.
    until_media: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entering:
    created: int
    entered: int


class Bridgings:
    """What an observer of the Asterisk saw."""

    def __init__(self) -> None:
        self._legs: dict[str, dict[str, _Entering]] = {}
        self._bridges: dict[str, str] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """Takes an event; others than EVENT say nothing. Of a leg that enters again, the first time counts."""
        if event["type"] != EVENT:
            return
        bridge, leg = event["bridge"]["id"], event["channel"]["id"]
        entering = _Entering(
            created=_milliseconds(event["channel"]["creationtime"]), entered=_milliseconds(event["timestamp"])
        )
        self._legs.setdefault(bridge, {}).setdefault(leg, entering)
        self._bridges.setdefault(leg, bridge)

    def set_up(self, caller: str) -> SetUp | None:
        """How long a caller's call took; None when it was never in a bridge with another leg."""
        legs = self._legs.get(self._bridges.get(caller, ""), {})
        others = [entering for leg, entering in legs.items() if leg != caller]
        if not others:
            return None
        came = legs[caller].created
        second = min(others, key=lambda entering: entering.entered)
        return SetUp(
            whole=max(legs[caller].entered, second.entered) - came,
            until_media=second.created - came,
        )


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest of the values that so many of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return sum(values) / len(values) if values else math.nan


def _milliseconds(stamp: str) -> int:
    """Of a stamp as Asterisk writes it: `2026-11-23T11:39:28.123+0000`."""
    return round(1000 * datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp())
