"""A resync around fakes: an Asterisk with legs and bridges, the calls that Postgres knows, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from shared import errors, messages
from shared.asterisk import ari, events
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import Channel
from shared.call import facts
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.storage.call_store import OpenCall
from shared.storage.timeline import TimelineEntry
from tests.support.calls import CALL_ID, CONNECTED, LIMITS, NOW, seconds
from workers.exclusive import Exclusive
from workers.resync import Resync

HERE = ConnectionVersion(7, 1)
NAMING = Naming("aip-")
MEDIA_ID, BRIDGE_ID = NAMING.media_id(CONNECTED), NAMING.bridge_id(CONNECTED)
LEGS = frozenset(NAMING.legs(CONNECTED).values())
FILTER = events.wanted(with_talking=False)
#: Changed long enough ago to be judged.
STILL = NOW - seconds(2.1)


def leg(channel_id: str = CONNECTED.channel_id, *, app: str | None = "voiceai", **more: str) -> Channel:
    """Return a channel in an app, by default the caller's of the known calls."""
    given = {
        "name": f"PJSIP/{channel_id}", "state": "Up", "created": CONNECTED.channel_created, "caller_number": "",
        "called_number": "", "app_name": "Stasis" if app else "Dial", "app_data": f"{app},support" if app else "",
    }  # fmt: skip
    return Channel(id=channel_id, **{**given, **more})


MEDIA_LEG = leg(MEDIA_ID)
WHOLE = Bridge(id=BRIDGE_ID, channels=LEGS)


class Asterisk:
    """One Asterisk: what it has, and what is asked of it."""

    app = "voiceai"
    endpoint = "http://pbx"

    def __init__(self, *legs: Channel, bridges: Sequence[Bridge] = ()) -> None:
        self.legs: dict[str, Channel | errors.PipelineError] = {one.id: one for one in legs}
        self.found = list(bridges)
        self.application_found: ari.Application | None = ari.Application(
            channels=frozenset(one.id for one in legs if one.stasis_app == self.app), allowed=FILTER
        )
        #: Channel → the apps that list it, where it is not ours alone.
        self.lists: dict[str, set[str]] = {}
        #: What the app is at later looks.
        self.later_applications: list[ari.Application] = []
        self.is_away = False
        self.failure: errors.PipelineError = errors.AsteriskUnreachable("connection refused", may_have_acted=False)
        self.asked: list[str] = []
        self.removed: list[str] = []
        self.filters: list[list[str]] = []
        self.filter_fails: errors.PipelineError | None = None
        self.moments: list[str] = []

    def application(self) -> ari.Application | None:
        self.moments.append("Asterisk")
        if self.is_away:
            raise self.failure
        return self.application_found

    def set_event_filter(self, allowed: list[str]) -> None:
        self.filters.append(allowed)
        if self.filter_fails is not None:
            raise self.filter_fails

    def bridges(self) -> list[Bridge]:
        self.asked.append("bridges")
        return self.found

    def bridge(self, bridge_id: str) -> Bridge | None:
        self.asked.append(bridge_id)
        return next((bridge for bridge in self.found if bridge.id == bridge_id), None)

    def channel(self, channel_id: str) -> Channel | None:
        self.asked.append(channel_id)
        found = self.legs.get(channel_id)
        if isinstance(found, errors.PipelineError):
            raise found
        return found

    def channel_and_place(self, channel_id: str) -> tuple[Channel | None, bool]:
        found = self.channel(channel_id)
        if self.later_applications:
            self.application_found = self.later_applications.pop(0)
        listed = self.application_found.channels if self.application_found is not None else ()
        return found, found is not None and found.is_in_stasis and channel_id in listed

    def apps_of(self, channel_id: str) -> frozenset[str]:
        self.asked.append(f"apps of {channel_id}")
        return frozenset(self.lists.get(channel_id, {self.app}))

    def hang_up(self, channel_id: str) -> bool:
        self.removed.append(f"leg {channel_id}")
        return channel_id in self.legs

    def remove_bridge(self, bridge_id: str) -> bool:
        self.removed.append(f"bridge {bridge_id}")
        return any(bridge.id == bridge_id for bridge in self.found)


class Store:
    """The calls that the resync sees, and the findings it writes."""

    def __init__(self, known: Sequence[OpenCall], stored: Sequence[Call], asterisk: Asterisk) -> None:
        self._known = known
        self._stored = {call.call_id: call for call in [*stored, *(one.call for one in known)]}
        self._asterisk = asterisk
        self.unreadable = False
        self.written: list[tuple[list[str], int, timedelta]] = []

    def write(self, call: Call) -> None:
        """Do what another worker does meanwhile."""
        self._stored[call.call_id] = call

    def now(self) -> datetime:
        self._asterisk.moments.append("now")
        return NOW

    def open_calls(self, connection: ConnectionVersion) -> Sequence[OpenCall]:
        assert connection == HERE
        self._asterisk.moments.append("Postgres")
        return self._known

    def load_all(self, call_ids: Collection[UUID]) -> Mapping[UUID, Call | errors.CallUnreadable]:
        if self.unreadable:
            return dict.fromkeys(call_ids, errors.CallUnreadable("of a newer release"))
        return {call_id: self._stored[call_id] for call_id in call_ids if call_id in self._stored}

    def originated_all(
        self, connection_id: int, channel_ids: Collection[str]
    ) -> Mapping[str, Call | errors.CallUnreadable]:
        assert connection_id == 7
        return {call.channel_id: call for call in self._stored.values() if call.channel_id in channel_ids}

    def replaced_by(self, connection_id: int, channel_id: str) -> Call | None:
        assert connection_id == 7
        return next((call for call in self._stored.values() if channel_id in call.replacements), None)

    def append_timeline(self, timeline: Sequence[TimelineEntry], *, connection_id: int) -> None:
        self._asterisk.moments.append(f"{timeline[0].name} of {connection_id}: {timeline[0].detail}")

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        self.written.append(([entry.detail for entry in timeline], connection_id, within))


class Connections:
    """Whose the app is.

    Args:
        sharing: The connections of the organization that have the same app instance.
    """

    def __init__(self, *, preempted: bool, is_anothers: bool, sharing: Collection[int]) -> None:
        self._preempted = preempted
        self._is_anothers = is_anothers
        self._sharing = sharing

    def is_preempted(self, connection_id: int) -> bool:
        return self._preempted and connection_id == 7

    def inbound_target(self, connection: ConnectionVersion) -> Any:
        assert connection == HERE
        return SimpleNamespace(is_anothers=self._is_anothers)

    def share_an_app(self, connection_id: int, other_id: int) -> bool:
        return {connection_id, other_id} <= {*self._sharing, 7}


class Scene:
    """A resync of one connection."""

    def __init__(
        self,
        asterisk: Asterisk,
        *known: Call | OpenCall,
        stored: Sequence[Call] = (),
        preempted: bool = False,
        is_anothers: bool = False,
        displaced: bool = False,
        sharing: Collection[int] = (),
    ) -> None:
        self.asterisk = asterisk
        known_calls = [
            one if isinstance(one, OpenCall) else OpenCall(call=one, changed_at=STILL, is_claimed=False)
            for one in known
        ]
        self.store = Store(known_calls, stored, asterisk)
        self.reported: list[facts.Fact] = []
        self.received: list[tuple[str, tuple[str, ...]]] = []
        self.later: list[tuple[messages.Message, timedelta]] = []
        #: Legs that came for a transfer.
        self.transfer_legs: list[str] = []
        self._displaced = displaced
        #: Leg, and the channel that was found in its place.
        self.followed: list[tuple[str, str]] = []
        self.is_written_meanwhile = False
        #: The legs that another program dials.
        self.left_alone: set[str] = set()
        #: Leases that other workers have, and those acquired and released by this one.
        self.busy: set[str] = set()
        self.leases: list[tuple[str, ...]] = []
        self.release_fails = False
        #: The voice agent has begun the run.
        self.is_begun = True
        self.receive_fails = False
        #: What another worker writes as a caller is received.
        self.written_meanwhile: list[Call] = []
        writer = cast(Any, SimpleNamespace(store=self.store, limits=LIMITS, clock=time, new_owner=lambda: "me"))
        self.resync = Resync(
            flow=cast(Any, self),
            writer=writer,
            inbound=cast(
                Any,
                SimpleNamespace(
                    receive=self._receive,
                    is_left_alone=self._is_left_alone,
                    transfer_legs=SimpleNamespace(found=self._transfer_leg_found),
                    runs=SimpleNamespace(is_begun=lambda _call: self.is_begun),
                ),
            ),
            replacements=cast(Any, SimpleNamespace(follow=self._follow)),
            connections=cast(Any, Connections(preempted=preempted, is_anothers=is_anothers, sharing=sharing)),
            asterisks=cast(Any, SimpleNamespace(at=lambda _connection, _budget: asterisk)),
            exclusive=Exclusive(self, writer),
            app_holders=cast(Any, SimpleNamespace(has_lately_displaced=self._has_lately_displaced)),
            naming=NAMING,
            send_later=lambda message, wait: self.later.append((message, wait)),
        )

    def run(self, *, full: bool = True, reason: str = "connected") -> Scene:
        self.resync.resync_connection(connection=HERE, full=full, reason=reason)
        return self

    def report(self, call: Call, fact: facts.Fact, *, retry_on_conflict: bool = True) -> Any:
        assert call.call_id == CALL_ID
        self.reported.append(fact)
        return SimpleNamespace(applied=True)

    def _follow(self, call: Call, leg: Channel, *, replaced_id: str, retry_on_conflict: bool) -> Any:
        assert not retry_on_conflict
        self.followed.append((replaced_id, leg.id))
        return SimpleNamespace(applied=not self.is_written_meanwhile)

    def _is_left_alone(self, connection: ConnectionVersion, leg: Channel) -> bool:
        assert connection == HERE
        return leg.id in self.left_alone

    def _transfer_leg_found(self, *, connection: ConnectionVersion, leg: events.Channel) -> None:
        assert connection == HERE
        self.transfer_legs.append(leg.id)

    def _has_lately_displaced(self, connection: ConnectionVersion, *, seconds: float) -> bool:
        assert (connection, seconds) == (HERE, 10.0)
        return self._displaced

    def _receive(self, *, connection: ConnectionVersion, leg: Channel, args: tuple[str, ...]) -> None:
        assert connection == HERE
        if self.receive_fails:
            raise errors.CallUnreadable("of a newer release")
        self.received.append((leg.id, args))
        for call in self.written_meanwhile:
            self.store.write(call)

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        assert (holder, seconds) == ("me", 26.0)
        if name in self.busy:
            return None
        self.leases.append(("take", name))
        return 1

    def release(self, name: str, holder: str) -> None:
        assert holder == "me"
        self.leases.append(("release", name))
        if self.release_fails:
            raise errors.DatabaseUnavailable("away")

    @property
    def findings(self) -> list[str]:
        """What was written to the connection's timeline."""
        return [detail for details, _, _ in self.store.written for detail in details]

    @property
    def follow_ups(self) -> list[tuple[str, bool, float]]:
        """Reason, extent and delay of each resync that is asked for."""
        return [
            (message.kwargs["reason"], message.kwargs["full"], wait.total_seconds()) for message, wait in self.later
        ]
