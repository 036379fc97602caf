"""What happened on an Asterisk: which leg was in which app and bridge, from when until when, by Asterisk's own clock.

It is made of events. What events did not tell (the judge's own socket was down, or they were dropped) is taken from the
lists of channels and bridges, which are asked for once a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from chaos.judge.spans import FOREVER, Span

#: The ids of the product's media legs and bridges, as docs/call.md has them: prefix and nonce were drawn, or are those
#: of v0.1.0-rc1.
_MEDIA = re.compile(r"aip-(?:[0-9a-z]{6}-)?([0-9a-f]{32})-(?:[0-9a-f]{8}-)?m[1-9][0-9]{0,2}", re.ASCII)
_BRIDGE = re.compile(r"aip-(?:[0-9a-z]{6}-)?([0-9a-f]{32})-(?:[0-9a-f]{8}-)?b[1-9][0-9]{0,2}", re.ASCII)
#: `Stasis` sets STASISSTATUS to nothing when it begins, and to FAILED at once if the app has no socket.
_FAILED_SECONDS = 0.5


class Kind(StrEnum):
    """What a channel is in a call."""

    #: The leg that enters an app: the caller's, or that of the far end of an outbound call.
    CALLER = "caller"
    #: To the voice agent.
    MEDIA = "media"
    #: The caller's own half of a Local channel, which no app has.
    OTHER_HALF = "other half"


def kind(channel_id: str) -> Kind:
    """Return what a channel is, by its id."""
    if _MEDIA.fullmatch(channel_id):
        return Kind.MEDIA
    is_other_half = channel_id.startswith("far-") or channel_id.endswith(";2")
    return Kind.OTHER_HALF if is_other_half else Kind.CALLER


def call_id_of(name: str) -> str | None:
    """Return the id of the call (32 hexadecimal digits) that a media leg or a bridge is for; None for another's."""
    match = _MEDIA.fullmatch(name) or _BRIDGE.fullmatch(name)
    return match[1] if match else None


@dataclass(slots=True, kw_only=True)
class Stay:
    """A time in an app or in a bridge."""

    where: str
    since: float
    until: float = FOREVER

    @property
    def span(self) -> Span:
        return self.since, self.until


@dataclass(slots=True, kw_only=True)
class Leg:
    """A channel."""

    id: str
    created_at: float
    #: When it was answered; infinite if it was not.
    up_at: float = FOREVER
    gone_at: float = FOREVER
    #: It ended because its Asterisk died.
    is_lost: bool = False
    apps: list[Stay] = field(default_factory=list)
    bridges: list[Stay] = field(default_factory=list)
    #: Causes of its hang-up requests and its end.
    causes: list[int] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        return kind(self.id)

    @property
    def app(self) -> str | None:
        """The app that it entered first; None if it entered none."""
        return self.apps[0].where if self.apps else None

    def end(self, at: float) -> None:
        """It is gone, and with it from wherever it was."""
        self.gone_at = min(self.gone_at, at)
        for stay in (*self.apps, *self.bridges):
            stay.until = min(stay.until, self.gone_at)


@dataclass(slots=True, kw_only=True)
class Bridge:
    """A bridge."""

    id: str
    created_at: float
    gone_at: float = FOREVER


#: A difference between the lists and the history: what is to be done, the channel or bridge, and the app or bridge.
Difference = tuple[str, str, str]


class History:
    """Legs and bridges by id, past ones included.

    Args:
        apps: The Stasis apps whose callers are judged.
    """

    def __init__(self, apps: Iterable[str]) -> None:
        self.apps = frozenset(apps)
        self.legs: dict[str, Leg] = {}
        self.bridges: dict[str, Bridge] = {}
        #: Legs that are gone, of requests that were dialled once more under the same id.
        self.dialled_again: list[Leg] = []
        #: When the judge saw no events.
        self.blind: list[Span] = []
        #: The legs that are not gone.
        self._live: dict[str, Leg] = {}
        self._differences: set[Difference] = set()
        self._differ_since = 0.0

    def event(self, event: dict[str, Any]) -> None:
        """Take one of Asterisk's events in."""
        at = moment(event["timestamp"])
        leg = self._leg(event["channel"], at) if "channel" in event else None
        match event["type"], leg:
            case "BridgeCreated", None:
                self._bridge(event["bridge"]["id"], moment(event["bridge"].get("creationtime", event["timestamp"])))
            case "BridgeDestroyed", None:
                self.bridge_gone(event["bridge"]["id"], at)
            case "ChannelEnteredBridge", Leg():
                self._bridge(event["bridge"]["id"], at)
                _enter(leg.bridges, event["bridge"]["id"], at)
            case "ChannelLeftBridge", Leg():
                _leave(leg.bridges, event["bridge"]["id"], at)
            case "ChannelVarset", Leg() if event["variable"] == "STASISSTATUS":
                self._stasis(leg, str(event["value"]), event["channel"], at)
            case "ChannelHangupRequest", Leg():
                leg.causes.append(int(event.get("cause") or 0))
            case "ChannelDestroyed", Leg():
                leg.causes.append(int(event.get("cause") or 0))
                self._end(leg, at)

    def bridge_gone(self, bridge_id: str, at: float) -> None:
        """A bridge was destroyed: whatever was in it is out of it."""
        bridge = self._bridge(bridge_id, at)
        bridge.gone_at = min(bridge.gone_at, at)
        for leg in self._live.values():
            _leave(leg.bridges, bridge_id, at)

    def restarted(self, *, died_at: float, started_at: float) -> None:
        """Asterisk died and was started again: all that it had before is gone."""
        for leg in [leg for leg in self._live.values() if leg.created_at < started_at]:
            leg.is_lost = True
            self._end(leg, max(died_at, leg.created_at))
        for bridge in self.bridges.values():
            if bridge.created_at < started_at:
                bridge.gone_at = min(bridge.gone_at, max(died_at, bridge.created_at))
        self._differences.clear()

    def reconcile(self, channels: list[dict[str, Any]], bridges: list[dict[str, Any]], at: float) -> None:
        """Compare with the lists of channels and bridges that Asterisk gave at a moment.

        Two lists that are asked for one after the other differ from the events for an instant. So only what was found
        in two comparisons in a row is taken over, as of the first one.
        """
        found = set(self._compared(channels, bridges))
        by_id = {channel["id"]: channel for channel in channels}
        # A channel first, then what it does; a bridge's end last.
        for what, name, where in sorted(found & self._differences, key=lambda one: _ORDER.index(one[0])):
            self._apply(what, name, where, by_id.get(name), self._differ_since)
        self._differences, self._differ_since = found, at

    def in_setup(self) -> dict[str, str]:
        """Return the callers in one of the apps who are not in a bridge with a second channel, with their apps."""
        here: dict[str, int] = {}
        waiting: list[tuple[Leg, str]] = []
        for leg in self.legs.values():
            if leg.gone_at != FOREVER:
                continue
            for stay in leg.bridges:
                if stay.until == FOREVER:
                    here[stay.where] = here.get(stay.where, 0) + 1
            if leg.kind is Kind.CALLER:
                waiting += [(leg, stay.where) for stay in leg.apps if stay.until == FOREVER]
        return {
            leg.id: app
            for leg, app in waiting
            if not any(stay.until == FOREVER and here[stay.where] > 1 for stay in leg.bridges)
        }

    def _stasis(self, leg: Leg, status: str, channel: dict[str, Any], at: float) -> None:
        """The application Stasis began or ended on a leg."""
        app = app_of(channel)
        if app not in self.apps:
            return
        stay = leg.apps[-1] if leg.apps else None
        if not status:
            _enter(leg.apps, app, at)
        elif status == "FAILED" and stay and not leg.bridges and at - stay.since < _FAILED_SECONDS:
            leg.apps.pop()
        else:
            _leave(leg.apps, app, at)

    def _compared(self, channels: list[dict[str, Any]], bridges: list[dict[str, Any]]) -> Iterator[Difference]:
        there = {channel["id"]: channel for channel in channels}
        inside = {channel_id: bridge["id"] for bridge in bridges for channel_id in bridge["channels"]}
        for name in self._live.keys() - there.keys():
            yield "gone", name, ""
        for name, channel in there.items():
            leg = self._live.get(name)
            if leg is None or (channel["state"] == "Up" and leg.up_at == FOREVER):
                yield "there", name, ""
            app = app_of(channel)
            for stay in _open(leg.apps if leg else []):
                if stay.where != app:
                    yield "left app", name, stay.where
            # Asterisk shows the last application of a channel that has hung up and is not gone yet.
            is_ending = leg is not None and bool(leg.causes)
            if app in self.apps and not is_ending and all(stay.where != app for stay in _open(leg.apps if leg else [])):
                yield "in app", name, app
            for stay in _open(leg.bridges if leg else []):
                if stay.where != inside.get(name):
                    yield "left bridge", name, stay.where
            if name in inside and not any(stay.where == inside[name] for stay in _open(leg.bridges if leg else [])):
                yield "in bridge", name, inside[name]
        ids = {bridge["id"] for bridge in bridges}
        present = {name for name, bridge in self.bridges.items() if bridge.gone_at == FOREVER}
        yield from (("bridge there", name, "") for name in ids - present)
        yield from (("bridge gone", name, "") for name in present - ids)

    def _apply(self, what: str, name: str, where: str, channel: dict[str, Any] | None, at: float) -> None:
        if what == "gone":
            self._end(self.legs[name], at)
        elif what == "bridge there":
            self.bridges[name] = Bridge(id=name, created_at=at)
        elif what == "bridge gone":
            self.bridge_gone(name, at)
        elif channel is not None:
            leg = self._leg(channel, at)
            stays = leg.apps if what.endswith("app") else leg.bridges
            if what.startswith("in "):
                _enter(stays, where, at)
            elif what.startswith("left "):
                _leave(stays, where, at)

    def _leg(self, channel: dict[str, Any], at: float) -> Leg:
        """Return the leg of a channel as Asterisk shows it, a new one if need be."""
        leg = self.legs.get(channel["id"])
        if leg is not None and moment(channel["creationtime"]) > leg.gone_at:
            # Another channel under the id of one that is gone: the same request was dialled again.
            self.dialled_again.append(leg)
            leg = None
        if leg is None:
            leg = Leg(id=channel["id"], created_at=moment(channel["creationtime"]))
            self.legs[leg.id] = self._live[leg.id] = leg
        if channel["state"] == "Up":
            leg.up_at = min(leg.up_at, at)
        return leg

    def _end(self, leg: Leg, at: float) -> None:
        leg.end(at)
        self._live.pop(leg.id, None)

    def _bridge(self, bridge_id: str, at: float) -> Bridge:
        return self.bridges.setdefault(bridge_id, Bridge(id=bridge_id, created_at=at))


_ORDER = ("bridge there", "there", "left app", "left bridge", "in app", "in bridge", "gone", "bridge gone")


def moment(stamp: str) -> float:
    """Return one of Asterisk's stamps (2026-11-29T07:44:22.873+0000) as unix seconds."""
    return datetime.fromisoformat(stamp).timestamp()


def app_of(channel: dict[str, Any]) -> str:
    """Return the app whose Stasis a channel is in, by its dialplan; "" for none."""
    dialplan = channel.get("dialplan", {})
    return str(dialplan.get("app_data", "")).partition(",")[0] if dialplan.get("app_name") == "Stasis" else ""


def _open(stays: list[Stay]) -> Iterator[Stay]:
    return (stay for stay in stays if stay.until == FOREVER)


def _enter(stays: list[Stay], where: str, at: float) -> None:
    """Begin a stay. One that the lists told before is moved to the moment that the event tells."""
    for stay in _open(stays):
        if stay.where == where:
            stay.since = min(stay.since, at)
            return
        stay.until = at
    stays.append(Stay(where=where, since=at))


def _leave(stays: list[Stay], where: str, at: float) -> None:
    for stay in _open(stays):
        if stay.where == where:
            stay.until = max(at, stay.since)
