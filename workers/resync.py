"""The step `resync`: what Asterisk holds against what Postgres holds, in both directions.

Finds what events, messages or processes have lost: callers nobody picked up, calls whose legs are gone, leftovers of
ours. Judges only what has been still for a while, and confirms each finding with a GET before it acts. One at a time
for each connection, and one clean-up at a time for each Asterisk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from shared import errors, messages
from shared.asterisk import ari, circuit_breaker, events
from shared.call import calls, facts, ids
from shared.call.calls import Call, State
from shared.storage.call_store import TimelineEntry
from workers import claims, inbound, outbound
from workers.ports import Tools

log = structlog.stdlib.get_logger(__name__)

#: A call changed later than this before the look is at work: not judged.
_STILL = timedelta(seconds=2)
#: What was too young to be judged is looked at again after this.
_SOON = _STILL + timedelta(seconds=1)
#: A finding that stands is noted this often.
_SAID_AGAIN = timedelta(hours=1)
#: After this an Asterisk that was left alone is asked again.
_LEFT_ALONE = timedelta(seconds=circuit_breaker.LONGEST_PAUSE_SECONDS)
#: Bounds one resync; the next one goes on.
_SECONDS = 20.0
#: One that finds another at work waits for so long.
_BUSY = timedelta(seconds=1)


def resync_connection(tools: Tools, *, connection_id: int, version: int, full: bool, reason: str) -> None:
    """Compares one connection version's Asterisk with our calls.

    Args:
        full: Also look at the bridges: an empty one of ours, or a leg outside its bridge, shows only there.
        reason: Why it was asked for. One that is not on the clock is followed by another for the calls that were too
            young to be judged.
    """
    with _alone(tools, f"resync of connection {connection_id}") as alone:
        if alone:
            look = _looked(tools, connection_id=connection_id, version=version, full=full)
    if not alone:
        # The one at work may have looked before what this one is asked for.
        if reason != messages.RESYNC_CLOCK:
            again = messages.of_resync(
                connection_id=connection_id, connection_version=version, reason=reason, full=full
            )
            log.info("resync put off: another is at work", connection=connection_id, reason=reason)
            tools.send_later(again, _BUSY)
        return
    if look.findings:
        # A leg that is left alone is found again and again.
        tools.writer.store.append_new(look.findings, connection_id=connection_id, within=_SAID_AGAIN)
    if look.again_after is not None and reason not in (messages.RESYNC_CLOCK, messages.RESYNC_FOLLOW_UP):
        follow_up = messages.of_resync(
            connection_id=connection_id, connection_version=version, reason=messages.RESYNC_FOLLOW_UP, full=full
        )
        tools.send_later(follow_up, look.again_after)


def _looked(tools: Tools, *, connection_id: int, version: int, full: bool) -> _Look:
    budget = claims.TimedBudget(tools.writer, _SECONDS)
    asterisk = tools.asterisks.at(connection_id, version, budget)
    look = _Look(tools, asterisk, connection_id=connection_id, version=version)
    try:
        look.compare(full=full)
    except (errors.AsteriskUnreachable, errors.OutOfTime) as exc:
        # Nothing is concluded from an Asterisk that does not answer; the clock asks again.
        log.info("resync not possible", connection=connection_id, version=version, reason=str(exc))
        # One that was just connected may be left alone for a last moment.
        look.again_after = _LEFT_ALONE
    return look


@contextlib.contextmanager
def _alone(tools: Tools, lease: str) -> Iterator[bool]:
    """Whether nobody else is at it; should we die, somebody may be once the time is over."""
    holder = tools.writer.owner()
    seconds = _SECONDS + tools.writer.limits.request_seconds
    alone = tools.leases.take(lease, holder, seconds) is not None
    try:
        yield alone
    finally:
        if alone:
            with contextlib.suppress(errors.PipelineError):
                tools.leases.release(lease, holder)


class _Look:
    """One comparison."""

    def __init__(self, tools: Tools, asterisk: ari.Ari, *, connection_id: int, version: int) -> None:
        self._tools = tools
        self._asterisk = asterisk
        self._connection_id = connection_id
        self._version = version
        self._bridges: list[ari.Bridge] | None = None
        self.findings: list[TimelineEntry] = []
        #: When to look again: some calls were changed too recently, or are in a step's hands; somebody else cleans up.
        self.again_after: timedelta | None = None

    def compare(self, *, full: bool) -> None:
        looked_at = self._tools.writer.store.now()
        application = self._application()
        present = application.channels if application is not None else frozenset()
        known = self._tools.writer.store.open_calls(self._connection_id, self._version)
        if full:
            self._all_bridges()
        for call, changed_at, claimed in known:
            if claimed or changed_at >= looked_at - _STILL:
                self.again_after = _SOON
            else:
                self._judge(call, present)
        self._adopt(present, [call for call, _, _ in known])
        self._sweep_leftovers(present, {(call.call_id, call.attempt) for call, _, _ in known}, looked_at)

    def _application(self) -> ari.Application | None:
        application = self._asterisk.application()
        wanted = {str(kind) for kind in events.EventType}
        if application is not None and application.allowed != wanted:
            self._asterisk.set_event_filter(sorted(wanted))
        return application

    def _all_bridges(self) -> list[ari.Bridge]:
        if self._bridges is None:
            self._bridges = self._asterisk.bridges()
        return self._bridges

    # ── our calls against Asterisk ───────────────────────────────────────────────────────────────────────────────────

    def _judge(self, call: Call, present: frozenset[str]) -> None:
        fact = self._caller_missing(call, present) or self._media_missing(call, present) or self._bridge_wrong(call)
        if fact is not None:
            self._found(f"{call.state} call {call.call_id}: {type(fact).__name__}")
            self._tools.writer.record(call, fact)

    def _caller_missing(self, call: Call, present: frozenset[str]) -> facts.Fact | None:
        if call.state is State.RINGING:
            return self._dialling(call)
        if call.state not in calls.LIVE or call.state is State.ORIGINATING:
            return None
        if call.channel_id in present:
            return None
        leg = self._asterisk.channel(call.channel_id)
        if leg is None or leg.created != call.channel_created:
            return facts.CallerGone()
        return facts.CallerLeft() if leg.stasis_app != self._asterisk.app else None

    def _dialling(self, call: Call) -> facts.Fact | None:
        """Whether a leg that rings by what we know was answered, or is gone: the app's list shows neither."""
        leg = self._asterisk.channel(call.channel_id)
        if leg is None:
            return facts.CallerGone()
        return outbound.answered(leg, "") if leg.stasis_app == self._asterisk.app else None

    def _media_missing(self, call: Call, present: frozenset[str]) -> facts.Fact | None:
        """A media leg that is gone, or that is ready and never told us."""
        if call.attempt == 0 or not call.legs_created:
            return None
        if call.state not in (State.PREPARED, State.CONNECTED):
            return None
        media_id = self._tools.media_id(call)
        if call.state is State.CONNECTED and media_id in present:
            return None
        leg = self._asterisk.channel(media_id)
        if leg is None:
            return facts.MediaGone(attempt=call.attempt, reason="media leg is gone", reported_by_event=False)
        if call.state is State.PREPARED and leg.stasis_app == self._asterisk.app:
            return facts.MediaReady(attempt=call.attempt)
        return None

    def _bridge_wrong(self, call: Call) -> facts.Fact | None:
        if self._bridges is None or call.state is not State.CONNECTED:
            return None
        legs = {call.channel_id, self._tools.media_id(call)}
        bridge_id = self._tools.bridge_id(call)
        if any(bridge.id == bridge_id and bridge.channels >= legs for bridge in self._bridges):
            return None
        bridge = self._asterisk.bridge(bridge_id)
        if bridge is None:
            return facts.BridgeLost(attempt=call.attempt, reason="the bridge is gone")
        missing = ", ".join(sorted(legs - bridge.channels))
        return facts.BridgeLost(attempt=call.attempt, reason=f"not in the bridge: {missing}") if missing else None

    # ── Asterisk against our calls ───────────────────────────────────────────────────────────────────────────────────

    def _adopt(self, present: frozenset[str], known: list[Call]) -> None:
        """Callers that are in our app and that no call of ours knows: their StasisStart was missed."""
        callers = {call.channel_id for call in known if not call.caller_left}
        unknown = [leg for leg in sorted(present - callers) if ids.parse(self._tools.prefix, leg) is None]
        if unknown and self._tools.connections.is_preempted(self._connection_id):
            self._found("another client has the app: callers we do not know are left to it")
            return
        for channel_id in unknown:
            self._adopt_leg(channel_id)

    def _adopt_leg(self, channel_id: str) -> None:
        try:
            leg = self._asterisk.channel(channel_id)
        except errors.AnswerUnreadable as exc:
            # One tenant's odd leg keeps nobody else from being found.
            self._found(f"channel {channel_id} cannot be read ({exc}): left alone")
            return
        if leg is None or leg.stasis_app != self._asterisk.app or inbound.is_no_caller(leg):
            return
        held_by = next((bridge.id for bridge in self._all_bridges() if channel_id in bridge.channels), None)
        if held_by is not None:
            # Another controller's call: whoever bridged it serves it.
            self._found(f"channel {channel_id} is in bridge {held_by}, which is not ours: left alone")
            return
        # One that a newer release's row tells of is that release's.
        with contextlib.suppress(errors.CallUnreadable):
            inbound.admit_leg(
                self._tools,
                connection_id=self._connection_id,
                version=self._version,
                leg=leg,
                args=leg.stasis_args,
                stamp="",
                age_seconds=0.0,
            )

    def _sweep_leftovers(self, present: frozenset[str], counting: set[tuple[UUID, int]], looked_at: datetime) -> None:
        """Legs and bridges with our prefix whose attempt no longer counts: removed one after the other."""
        names = set(present) | {bridge.id for bridge in self._bridges or ()}
        leftovers = [name for name in sorted(names) if self._is_leftover(name, counting, looked_at)]
        if not leftovers:
            return
        # Many bridges deleted side by side have crashed an Asterisk, which several connections may share.
        with _alone(self._tools, f"clean-up of {self._asterisk.endpoint}") as alone:
            if not alone:
                self.again_after = _SOON
                return
            for name in leftovers:
                own = ids.parse(self._tools.prefix, name)
                self._remove(name, is_leg=own is None or own.kind is ids.Kind.MEDIA)

    def _is_leftover(self, name: str, counting: set[tuple[UUID, int]], looked_at: datetime) -> bool:
        own = ids.parse(self._tools.prefix, name)
        try:
            if own is None:
                return ids.is_originated(self._tools.prefix, name) and self._is_unwanted_originate(name, looked_at)
            return (own.call_id, own.attempt) not in counting and self._counts_no_more(own, looked_at)
        except errors.CallUnreadable:
            # A newer release's call.
            return False

    def _counts_no_more(self, own: ids.OwnId, looked_at: datetime) -> bool:
        call = self._tools.writer.store.load(own.call_id)
        if call is None:
            # Of a call our database does not know: another installation's with our prefix, or a restored database.
            return True
        if call.connection_id != self._connection_id:
            # Seen from another tenant of the same Asterisk: its own resync judges it.
            return False
        if call.state is State.ENDED or own.attempt < call.attempt:
            return call.state_since < looked_at - _STILL
        # An ending call's teardown is at work on it.
        return False

    def _is_unwanted_originate(self, name: str, looked_at: datetime) -> bool:
        """A leg that we begin, that rings, and whose call is over, or forgotten by a restored database."""
        call = self._tools.writer.store.originated(self._connection_id, name)
        is_over = call is None or (
            call.state is State.ENDED and not call.caller_left and call.state_since < looked_at - _STILL
        )
        leg = self._asterisk.channel(name) if is_over else None
        return leg is not None and leg.stasis_app is None

    def _remove(self, name: str, *, is_leg: bool) -> None:
        gone = not (self._asterisk.hang_up(name) if is_leg else self._asterisk.remove_bridge(name))
        if not gone:
            self._found(f"{'leg' if is_leg else 'bridge'} {name} had no live call: removed")

    def _found(self, detail: str) -> None:
        log.warning("resync", connection=self._connection_id, found=detail)
        self.findings.append(TimelineEntry(kind="note", name="Resync", detail=detail))
