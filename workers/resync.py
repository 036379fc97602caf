"""The resync of one connection: what its Asterisk has against what Postgres has, in both directions.

It finds what events, messages or processes have lost: callers that were not received, calls whose legs are gone,
orphans (legs and bridges whose attempt no longer counts). It judges only calls that have been still for a while, and
confirms each finding with a GET before it acts. One resync runs at a time for a connection, and one clean-up for an
Asterisk.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from shared import errors, messages
from shared.asterisk import ari, circuit_breaker, events
from shared.asterisk.ari_requests import Bridge
from shared.call import commands, facts, ids, stasis_args, states
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import State
from shared.process import metrics
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import EVENTS_MISSED, TimelineEntry
from workers import leg_events, successors, transfers
from workers.app_question import AppHolders
from workers.asterisks import Asterisks
from workers.claims import TimedBudget
from workers.exclusive import Exclusive
from workers.flow import Flow
from workers.inbound import Inbound, is_no_caller, outgoing_leg
from workers.replacements import Replacements
from workers.step_ports import Connections, SendLater

log = structlog.stdlib.get_logger(__name__)

#: An attempt that counts: call, number, nonce.
_Counting = tuple[UUID, int, str]

#: A call changed later than this before the look is being worked on: not judged.
_STILL = timedelta(seconds=2)
#: One that was changed so much later than the look, by Postgres's clock, was changed before it: the clock was set back.
_SET_BACK = timedelta(seconds=60)
#: Calls that were too young to be judged are looked at again after this.
_SOON = _STILL + timedelta(seconds=1)
#: A finding that stands is written to the timeline this often.
_REPEAT_FINDING = timedelta(hours=1)
#: After this an Asterisk whose circuit breaker was open is asked again.
_BREAKER_PAUSE = timedelta(seconds=circuit_breaker.LONGEST_PAUSE_SECONDS)
#: The events of a ringing leg that is gone come within this time, and tell how the dialling came out.
_EVENTS_SECONDS = 0.5
#: Bounds one resync; the next one goes on.
_SECONDS = 20.0
#: Most unknown callers that one resync looks at, and most names like ours: an Asterisk may list any number.
_JUDGED = 1000
#: Most teardowns that one resync orders again.
_TORN_DOWN = 200
#: After our first socket took the place of another process's, the legs that it has in no bridge are left to it for so
#: long: it may be about to serve them. What it has not bridged by then it cannot: the events it needs are ours.
_DISPLACED = timedelta(seconds=10)
#: A look that is older says nothing of who serves a caller by now: a resync that takes longer has stood still.
_OLD_LOOK = timedelta(seconds=3)
#: A resync that finds another one running waits for so long.
_BUSY = timedelta(seconds=1)
#: What tells that a party's leg is not where its call needs it: another channel may be there.
_MISSING = facts.CallerGone | facts.CallerLeft | facts.DestinationGone | facts.BridgeLost


@dataclass(frozen=True, kw_only=True)
class Resync:
    """Compares connections with their Asterisks."""

    flow: Flow
    writer: CallWriter
    inbound: Inbound
    replacements: Replacements
    connections: Connections
    asterisks: Asterisks
    exclusive: Exclusive
    app_holders: AppHolders
    naming: Naming
    send_later: SendLater
    #: Whether the event filter lets through that a party sends audio.
    detects_talking: bool = False

    def resync_connection(self, *, connection: ConnectionVersion, full: bool, reason: str) -> None:
        """Compare one connection version's Asterisk with our calls.

        Args:
            full: Also look at the bridges: an empty bridge, or a leg outside its bridge, shows only there.
            reason: Why it was asked for. If not by the clock, another resync follows for the calls that were too young
                to be judged.
        """
        with self.exclusive.lease(f"resync of connection {connection.connection_id}", self.lease_seconds) as acquired:
            if acquired:
                self._note_missed(connection, reason)
                comparison = self._compared(connection, full=full)
        if not acquired:
            # The running one may have looked before the moment this one is asked for. And it may not run any more: when
            # its worker has died, its message is delivered again, a moment before its lease is ended.
            log.info("resync postponed: another one runs", connection=str(connection), reason=reason)
            self.send_later(messages.of_resync(connection=connection, reason=reason, full=full), _BUSY)
            return
        if comparison.findings:
            # A leg that is left alone is found again and again.
            self.writer.store.append_new(
                comparison.findings, connection_id=connection.connection_id, within=_REPEAT_FINDING
            )
        if comparison.again_after is not None and reason not in (messages.RESYNC_CLOCK, messages.RESYNC_FOLLOW_UP):
            follow_up = messages.of_resync(connection=connection, reason=messages.RESYNC_FOLLOW_UP, full=full)
            self.send_later(follow_up, comparison.again_after)

    @property
    def lease_seconds(self) -> float:
        """How long a resync, or a clean-up, may take."""
        return _SECONDS + self.writer.limits.request_seconds

    def _note_missed(self, connection: ConnectionVersion, reason: str) -> None:
        """Note that events may have been missed: a resync does not find what one told of audio.

        Before the comparison, which may end calls: the note is one of their time then.
        """
        if self.detects_talking and reason not in (messages.RESYNC_CLOCK, messages.RESYNC_FOLLOW_UP):
            missed = TimelineEntry(kind="note", name=EVENTS_MISSED, detail=reason)
            self.writer.store.append_timeline([missed], connection_id=connection.connection_id)

    def _compared(self, connection: ConnectionVersion, *, full: bool) -> _Comparison:
        asterisk = self.asterisks.at(connection, TimedBudget(self.writer, _SECONDS))
        comparison = _Comparison(self, asterisk, connection)
        began, result = self.writer.clock.monotonic(), "failed"
        try:
            comparison.run(full=full)
            result = "done"
        except errors.NO_ANSWER as exc:
            # Nothing is concluded from an Asterisk that does not answer, or refuses a look; the clock asks again.
            log.info("resync not possible", connection=str(connection), reason=str(exc))
            # After a connect, the circuit breaker may be open for a last moment.
            comparison.again_after = _BREAKER_PAUSE
        finally:
            metrics.RESYNC.observe(self.writer.clock.monotonic() - began, result)
        return comparison


def _waits_for_media(call: Call) -> bool:
    """True for a call whose media leg was created and is not ready: whether it is there can be asked at any age.

    While no event socket is connected such a leg ends, and nothing tells it.
    """
    return call.state is State.PREPARED and call.legs_created and not call.media_ready


def _last_entries(calls: Iterable[Call]) -> dict[tuple[str, str], int]:
    return {(call.channel_id, call.channel_created): call.entry for call in sorted(calls, key=lambda call: call.entry)}


class _Comparison:
    """One comparison."""

    def __init__(self, resync: Resync, asterisk: ari.Ari, connection: ConnectionVersion) -> None:
        self._resync = resync
        self._store = resync.writer.store
        self._naming = resync.naming
        self._asterisk = asterisk
        self._connection = connection
        #: Id → bridge, once they were asked for.
        self._bridges: dict[str, Bridge] | None = None
        #: Channel → the bridge it is in.
        self._bridge_of: dict[str, str] = {}
        self.findings: list[TimelineEntry] = []
        #: Channel → its last entry that has an open call.
        self._last_entries: dict[tuple[str, str], int] = {}
        #: The channels that open calls came with, and go on with.
        self._own_legs: set[str] = set()
        #: The channels that are legs of calls of people.
        self._known_legs: set[str] = set()
        #: The creation times of the legs that are not in the app: a channel in such a leg's place may show it.
        self._masqueraded: set[str] = set()
        #: Calls whose leg rings by their row, and is gone.
        self._unanswered: list[Call] = []
        #: When the lists of Asterisk were asked for.
        self._looked_at = resync.writer.store.now()
        #: When to look again: some calls changed too recently, or are claimed; or another worker cleans up.
        self.again_after: timedelta | None = None

    def run(self, *, full: bool) -> None:
        # The moment of the look came first, then Asterisk, then Postgres: a call unchanged since is as Asterisk saw it.
        application = self._application()
        present = application.channels if application is not None else frozenset()
        known = self._store.open_calls(self._connection)
        self._last_entries = _last_entries(open_call.call for open_call in known)
        for call in (open_call.call for open_call in known if not open_call.call.caller_left):
            if not call.replacements:
                self._own_legs.add(call.channel_id)
            self._known_legs |= {leg for leg in (call.leg_id, call.destination_id) if leg}
            if call.leg_id not in present:
                self._masqueraded.add(call.channel_created)
        if full:
            self._ask_for_bridges()
        for open_call in known:
            is_young = not self._was_still(open_call.changed_at)
            if open_call.is_claimed:
                self.again_after = _SOON
            elif not is_young:
                self._judge(open_call.call, present)
            else:
                self.again_after = _SOON
                if _waits_for_media(open_call.call):
                    self._report(open_call.call, self._media_missing(open_call.call, present))
        self._end_unanswered()
        self._tear_down_again(open_call.call for open_call in known if not open_call.is_claimed)
        self._adopt(present)
        counting = {(call.call_id, call.attempt, call.nonce) for call in (open_call.call for open_call in known)}
        self._remove_orphans(present, counting)

    def _was_still(self, changed_at: datetime) -> bool:
        """True if a change was long enough before the look at Asterisk.

        One far ahead was made before Postgres's clock was set back.
        """
        return not -_STILL <= changed_at - self._looked_at < _SET_BACK

    def _tear_down_again(self, calls: Iterable[Call]) -> None:
        """Order the teardowns that pause because Asterisk gave no answer, or refused us: it has just answered."""
        paused = (call for call in calls if call.state is State.ENDING and call.step_retries > 0)
        for call in itertools.islice(paused, _TORN_DOWN):
            self._resync.writer.enqueue([commands.TearDown.of(call)], call)

    def _application(self) -> ari.Application | None:
        application = self._asterisk.application()
        wanted = events.wanted(with_talking=self._resync.detects_talking)
        if application is not None and application.allowed != wanted:
            try:
                self._asterisk.set_event_filter(sorted(wanted))
            except (errors.AsteriskUnreachable, errors.AsteriskRefused) as exc:
                # Without the filter there are more events. What is compared is read, which the ARI user may do.
                self._found(f"the event filter could not be set: {exc}")
        return application

    def _ask_for_bridges(self) -> None:
        if self._bridges is None:
            self._bridges = {bridge.id: bridge for bridge in self._asterisk.bridges()}
            self._bridge_of = {leg: bridge.id for bridge in self._bridges.values() for leg in bridge.channels}

    # ── calls against Asterisk ───────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, call: Call, present: frozenset[str]) -> None:
        try:
            fact = (
                self._caller_missing(call, present)
                or self._destination_missing(call, present)
                or self._media_missing(call, present)
                or self._bridge_wrong(call)
            )
            if isinstance(fact, facts.MediaGone | facts.BridgeLost) and (
                self._is_transferred(call) or self._is_handed_over(call)
            ):
                return
        except errors.AnswerDoubtful as exc:
            # What is not believed of one call must not keep the others from being judged.
            self._found(f"{call.state} call {call.call_id}: {exc}")
            return
        self._hang_up_replaced(call)
        if isinstance(fact, _MISSING) and self._is_replaced(call, present):
            return
        if call.state is State.RINGING and isinstance(fact, facts.CallerGone):
            self._unanswered.append(call)
        else:
            self._report(call, fact)

    def _is_transferred(self, call: Call) -> bool:
        """True if the platform has put another leg in place of the media leg; recorded here if it was not known."""
        if call.state is not State.CONNECTED or call.destination_id is not None:
            return False
        destination_id = transfers.destination(self._asterisk, self._naming, call)
        if destination_id is not None:
            self._report(call, facts.Transferred(attempt=call.attempt, nonce=call.nonce, destination_id=destination_id))
        return destination_id is not None

    def _is_replaced(self, call: Call, present: frozenset[str]) -> bool:
        """True if another channel has taken the place of a party's leg; recorded here."""
        if call.state is not State.CONNECTED:
            leg = successors.masqueraded(self._asterisk, call, present - self._known_legs)
            if leg is not None:
                self._follow(call, leg, replaced_id=call.leg_id)
            return leg is not None
        for missing in filter(None, (call.leg_id, call.destination_id)):
            leg = successors.in_bridge(self._asterisk, self._naming, call, missing)
            if leg is not None:
                self._follow(call, leg, replaced_id=missing)
                return True
        return False

    def _is_handed_over(self, call: Call) -> bool:
        """True if a party of the PBX is in the bridge in place of the media leg; recorded here."""
        if call.state is not State.CONNECTED or call.destination_id is not None:
            return False
        leg = successors.in_place_of_agent(self._asterisk, self._naming, call)
        if leg is not None:
            self._follow(call, leg, replaced_id=self._naming.media_id(call))
        return leg is not None

    def _follow(self, call: Call, leg: events.Channel, *, replaced_id: str) -> None:
        self._known_legs.add(leg.id)
        self._found(f"{call.state} call {call.call_id}: channel {leg.id} has taken the place of {replaced_id}")
        follow = self._resync.replacements.follow
        if not follow(call, leg, replaced_id=replaced_id, retry_on_conflict=False).applied:
            self.again_after = _SOON

    def _hang_up_replaced(self, call: Call) -> None:
        """Hang up the channels that a connected call's leg had before, if they are still up in silence."""
        if call.state is not State.CONNECTED or not call.replacements:
            return
        for leg in successors.left_over(self._asterisk, call):
            if self._asterisk.hang_up(leg):
                self._found(f"connected call {call.call_id}: channel {leg} was replaced and still up: hung up")

    def _report(self, call: Call, fact: facts.Fact | None) -> None:
        if fact is not None:
            self._found(f"{call.state} call {call.call_id}: {type(fact).__name__}")
            # A worker that has written or claimed the call meanwhile is at work on it: it is judged again later.
            if not self._resync.flow.report(call, fact, retry_on_conflict=False).applied:
                self.again_after = _SOON

    def _end_unanswered(self) -> None:
        """End the calls whose leg was not answered and is gone, unless an event that tells why does so meanwhile."""
        if self._unanswered:
            self._resync.writer.clock.sleep(_EVENTS_SECONDS)
        for call in self._unanswered:
            self._report(call, facts.CallerGone())

    def _caller_missing(self, call: Call, present: frozenset[str]) -> facts.Fact | None:
        if call.state is State.RINGING:
            return self._dialling(call)
        if call.state not in states.LIVE or call.state is State.ORIGINATING:
            return None
        entry = self._last_entries[call.channel_id, call.channel_created]
        if call.leg_id in self._own_legs if call.replacements else call.entry < entry:
            # It left and came back, and the end of this call was lost, or a fail-over has forgotten it.
            return facts.CallerLeft(leg_id=call.leg_id, is_up=True)
        if call.leg_id in present:
            return None
        leg, is_in_app = self._asterisk.channel_and_place(call.leg_id)
        if leg is None or not call.is_leg(leg.id, leg.created):
            return facts.CallerGone(leg_id=call.leg_id)
        return None if is_in_app else facts.CallerLeft(leg_id=call.leg_id, is_up=True)

    def _dialling(self, call: Call) -> facts.Fact | None:
        """Return whether a leg that rings by our row was answered, or is gone: the app's list shows neither."""
        leg = self._asterisk.channel(call.channel_id)
        if leg is None:
            return facts.CallerGone()
        return leg_events.answered(leg) if leg.stasis_app == self._asterisk.app else None

    def _destination_missing(self, call: Call, present: frozenset[str]) -> facts.Fact | None:
        if call.state is not State.CONNECTED or call.destination_id is None or call.destination_id in present:
            return None
        leg = self._asterisk.channel(call.destination_id)
        if leg is not None and leg.stasis_app == self._asterisk.app:
            return None
        return facts.DestinationGone(destination_id=call.destination_id)

    def _media_missing(self, call: Call, present: frozenset[str]) -> facts.Fact | None:
        """Return that the media leg is gone, or that it is ready and its event was lost."""
        if call.attempt == 0 or not call.legs_created or call.destination_id is not None:
            return None
        if call.state not in (State.PREPARED, State.CONNECTED):
            return None
        media_id = self._naming.media_id(call)
        if call.state is State.CONNECTED and media_id in present:
            return None
        leg = self._asterisk.channel(media_id)
        if leg is None:
            is_refusal = call.state is State.CONNECTED and not self._resync.inbound.runs.is_begun(call)
            return facts.MediaGone(
                attempt=call.attempt, nonce=call.nonce, reason="media leg is gone", is_found=True, is_refusal=is_refusal
            )
        if call.state is State.PREPARED and leg.stasis_app == self._asterisk.app:
            return facts.MediaReady(attempt=call.attempt, nonce=call.nonce)
        return None

    def _bridge_wrong(self, call: Call) -> facts.Fact | None:
        if self._bridges is None or call.state is not State.CONNECTED:
            return None
        legs, bridge_id = set(self._naming.legs(call).values()), self._naming.bridge_id(call)
        seen = self._bridges.get(bridge_id)
        if seen is not None and seen.channels >= legs:
            return None
        bridge = self._asterisk.bridge(bridge_id)
        if bridge is None:
            return facts.BridgeLost(attempt=call.attempt, nonce=call.nonce, reason="the bridge is gone")
        missing = ", ".join(sorted(legs - bridge.channels))
        return (
            facts.BridgeLost(attempt=call.attempt, nonce=call.nonce, reason=f"not in the bridge: {missing}")
            if missing
            else None
        )

    # ── Asterisk against calls ───────────────────────────────────────────────────────────────────────────────────────

    def _adopt(self, present: frozenset[str]) -> None:
        """Adopt callers that are in the app and that no call knows: their StasisStart was missed."""
        unknown = [leg for leg in sorted(present - self._known_legs) if ids.parse(leg) is None]
        if unknown and (whose := self._whose_app()):
            self._found(f"{whose}: unknown callers are left to it")
            return
        for channel_id in self._some(unknown):
            self._adopt_leg(channel_id)

    def _whose_app(self) -> str:
        """Return who else has the app by now, or had it until now; an empty text if it is ours."""
        connections = self._resync.connections
        if connections.is_preempted(self._connection.connection_id):
            return "a competing client has the app"
        # Until the look, which may have been long ago.
        seconds = (_DISPLACED + (self._store.now() - self._looked_at)).total_seconds()
        if self._resync.app_holders.has_lately_displaced(self._connection, seconds=seconds):
            self.again_after = _DISPLACED
            return "another process had the app until now"
        target = connections.inbound_target(self._connection)
        return "another organization has the app" if target is not None and target.is_anothers else ""

    def _adopt_leg(self, channel_id: str) -> None:
        try:
            leg = self._asterisk.channel(channel_id)
        except (errors.AnswerUnreadable, errors.AsteriskRefused) as exc:
            # One odd leg must not keep the others from being found; nor one whose 404 is not believed, or whose id is a
            # path of ARI's own.
            self._found(f"channel {channel_id} cannot be read ({exc}): left alone")
            return
        if leg is None or not leg.is_in_stasis or is_no_caller(leg):
            return
        if leg.stasis_app != self._asterisk.app and (others := self._other_apps(leg)):
            # It was moved to our app, or was made for ours and has gone to another.
            self._found(f"channel {channel_id} may be in {others}: left alone")
            return
        if stasis_args.is_transfer(leg.stasis_args):
            self._look_after(leg)
        elif not (self._has_just_replaced(leg) or self._is_outdated()):
            # Otherwise a leg of a call: its event tells, or the next resync.
            self._adopt_caller(leg)

    def _adopt_caller(self, leg: events.Channel) -> None:
        if self._resync.inbound.is_left_alone(self._connection, leg):
            self.findings.append(outgoing_leg(leg))
            return
        bridged_in = self._bridge_with(leg.id)
        if bridged_in is not None and not self._is_forgotten(bridged_in):
            self._found_bridged(leg.id, bridged_in)
            return
        # A call that a newer release wrote is left to that release.
        with contextlib.suppress(errors.CallUnreadable):
            metrics.RESYNC_FINDINGS.add("caller")
            self._resync.inbound.receive(connection=self._connection, leg=leg, args=self._args_of(leg))
            follower = self._store.replaced_by(self._connection.connection_id, leg.id)
            if follower is not None and follower.state is not State.ENDED:
                # Both were written at once: the next resync ends the one that has followed its leg to this one.
                self.again_after = _SOON

    def _look_after(self, leg: events.Channel) -> None:
        """Have a leg of a transfer that no call knows bridged by the platform, or ended."""
        bridged_in = self._bridge_with(leg.id)
        if bridged_in is not None and ids.parse(bridged_in) is None:
            self._found_bridged(leg.id, bridged_in)
        else:
            self._resync.inbound.transfer_legs.found(connection=self._connection, leg=leg)

    def _bridge_with(self, channel_id: str) -> str | None:
        self._ask_for_bridges()
        return self._bridge_of.get(channel_id)

    def _found_bridged(self, channel_id: str, bridge_id: str) -> None:
        """Leave a channel to the controller that has bridged it."""
        self._found(f"channel {channel_id} is in the foreign bridge {bridge_id}: left alone")

    def _is_outdated(self) -> bool:
        """True if this worker has stood still since the look: another process may have bridged its callers."""
        if self._store.now() - self._looked_at <= _OLD_LOOK:
            return False
        self.again_after = _SOON
        return True

    def _has_just_replaced(self, leg: events.Channel) -> bool:
        """True for a channel that has taken the place of a call's leg, though the call was read without it."""
        call = self._store.replaced_by(self._connection.connection_id, leg.id)
        if call is not None and call.unverified:
            self._report(call, facts.CallerFound())
            return True
        if leg.created in self._masqueraded or (call is not None and call.state is not State.ENDED):
            self.again_after = _SOON
            return True
        return False

    def _other_apps(self, leg: events.Channel) -> str:
        """Return the other apps that list a leg; an empty text if there is none."""
        try:
            return ", ".join(sorted(self._asterisk.apps_of(leg.id) - {self._asterisk.app}))
        except errors.AsteriskUnreachable as exc:
            return f"another app ({exc})"

    def _args_of(self, leg: events.Channel) -> tuple[str, ...]:
        """Return the arguments of a leg; none for one that was moved to our app, whose arguments only its event had."""
        return leg.stasis_args if leg.stasis_app == self._asterisk.app else ()

    def _is_forgotten(self, bridge_id: str) -> bool:
        """True for a bridge of ours whose call a restore or a fail-over has forgotten.

        Its caller is adopted, and goes from it into the new call's bridge: so it hears the agent until then.
        """
        own = ids.parse(bridge_id)
        return own is not None and own.prefix == self._naming.prefix and not self._store.load_all([own.call_id])

    def _remove_orphans(self, present: frozenset[str], counting: set[_Counting]) -> None:
        """Remove legs and bridges of ours whose attempt no longer counts, one after the other."""
        orphans = self._orphans(present | set(self._bridges or ()), counting)
        if not orphans:
            return
        # Many bridges deleted in parallel have crashed an Asterisk, which several connections may share.
        lease = f"clean-up of {self._asterisk.endpoint}"
        with self._resync.exclusive.lease(lease, self._resync.lease_seconds) as acquired:
            if not acquired:
                self.again_after = _SOON
                return
            for name in orphans:
                own = ids.parse(name)
                self._remove(name, is_leg=own is None or own.kind is ids.Kind.MEDIA)
                if self._bridges is None and own is not None:
                    # The app does not list the bridge, which is empty now.
                    bridge_id = ids.bridge_id(own.prefix, own.call_id, own.attempt, own.nonce)
                    self._remove(bridge_id, is_leg=False)

    def _orphans(self, names: frozenset[str], counting: set[_Counting]) -> list[str]:
        """Return which of these are orphans: a statement for each kind of name, however many there are."""
        parsed = {name: ids.parse(name) for name in names}
        doubtful = sorted(
            name
            for name, own in parsed.items()
            if (ids.is_originated(name) if own is None else (own.call_id, own.attempt, own.nonce) not in counting)
        )
        doubtful = self._some(doubtful)
        made = {name: own for name in doubtful if (own := parsed[name]) is not None}
        dialled = [name for name in doubtful if name not in made]
        orphans: list[str] = []
        if made:
            calls = self._store.load_all({own.call_id for own in made.values()})
            orphans += [name for name, own in made.items() if self._is_over(own, calls.get(own.call_id))]
        if dialled:
            requested = self._store.originated_all(self._connection.connection_id, dialled)
            orphans += [name for name in dialled if self._is_unwanted(name, requested.get(name))]
        return orphans

    def _is_over(self, own: ids.OwnId, call: Call | errors.CallUnreadable | None) -> bool:
        """True for a leg or bridge of an attempt that no longer counts."""
        if call is None:
            # The database was restored. With a prefix other than ours it is another installation's.
            return own.prefix == self._naming.prefix
        if isinstance(call, errors.CallUnreadable) or not self._naming.is_of(call, own):
            # A newer release wrote it; or a copy of our database, which has our old calls too, drew its own prefix.
            return False
        if not self._is_of_app(call):
            # Another tenant shares the Asterisk: its own resync judges the leg.
            return False
        if not self._naming.is_known(call, own):
            # An attempt is stored before its requests are made: a fail-over has lost the commit.
            return True
        if call.state is State.ENDED or own.attempt < call.attempt:
            return self._was_still(call.state_since)
        # The teardown of an ending call is at work on it.
        return False

    def _is_of_app(self, call: Call) -> bool:
        ours = self._connection.connection_id
        return call.connection_id == ours or self._resync.connections.share_an_app(call.connection_id, ours)

    def _is_unwanted(self, name: str, call: Call | errors.CallUnreadable | None) -> bool:
        """True for an originated leg that rings although its call is over, or forgotten by a restored database."""
        if isinstance(call, errors.CallUnreadable):
            return False
        if call is None:
            is_over = name.startswith(self._naming.prefix)
        else:
            is_over = call.state is State.ENDED and not call.caller_left and self._was_still(call.state_since)
        leg = self._asterisk.channel(name) if is_over else None
        return leg is not None and not leg.is_in_stasis

    def _remove(self, name: str, *, is_leg: bool) -> None:
        gone = not (self._asterisk.hang_up(name) if is_leg else self._asterisk.remove_bridge(name))
        if not gone:
            self._found(f"{'leg' if is_leg else 'bridge'} {name} had no live call: removed")

    def _some(self, names: list[str]) -> list[str]:
        """Return as many as one resync judges: drawn at random, so that each has its turn in one of the next."""
        if len(names) <= _JUDGED:
            return names
        log.warning("more names than one resync judges", connection=str(self._connection), names=len(names))
        return random.sample(names, _JUDGED)

    def _found(self, detail: str) -> None:
        metrics.RESYNC_FINDINGS.add("other")
        log.warning("resync finding", connection=str(self._connection), detail=detail)
        self.findings.append(TimelineEntry(kind="note", name="Resync", detail=detail))
