"""Assigns event sockets to listeners: which listener has which connection version, under which epoch.

Postgres has the truth, Redis a copy for the listeners. A tick reads both, moves sockets away from lost listeners at
once and evens out the load a few sockets at a time, then writes to Redis what differs. So Redis may be emptied at any
time.

A tick that leaves nothing to do *settles*. While nothing else than reports has changed since, a tick reads neither
sockets nor assignments, only the reports that are new, and writes the statuses that follow from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import redis
import structlog

from scheduler import actions, move_plan, socket_status, turns
from scheduler.actions import Action, ObservedSocket
from scheduler.leader import Leader
from scheduler.listeners import Listeners, Snapshot
from scheduler.quarantine import Quarantine
from scheduler.socket_rows import EventSocket, SocketRows, SocketStatus, assignment_of
from shared import assignments, errors
from shared.call.ids import ConnectionVersion
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)

#: A listener that could not open a socket that another has open gets no hand-offs for this long.
_COOLDOWN_SECONDS = 60.0
#: Postgres is read this often while the listeners report nothing new.
_FULL_SCAN_SECONDS = 1.0
#: For so long what a tick has seen is told.
_RECENT_SECONDS = 15.0
#: However quiet it is, everything is read this often.
_SETTLED_SECONDS = 60.0


class Timeline(Protocol):
    """The timeline. `postgres_calls.PostgresCalls` is the adapter."""

    def append_timeline(self, timeline: list[TimelineEntry], *, connection_id: int) -> None:
        """Write entries about a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settled:
    """What was seen by a tick that left nothing to do: what sees the same has nothing to do either."""

    #: By this process's monotonic clock: when everything is read again, whatever was seen.
    until: float
    live: dict[str, int]
    reports_revision: int
    #: Of the sockets in Postgres.
    fingerprint: str
    #: With the statuses that were last written. Changed in place.
    sockets: dict[ConnectionVersion, EventSocket]
    #: Those that are not the only one of their app instance.
    contested: frozenset[ConnectionVersion]


class Assigner:
    """Assigns sockets, tick by tick.

    Args:
        timeout_seconds: A listener without a heartbeat for this long is considered dead.
        full_scan_seconds: How often to read Postgres while the listeners report nothing new.
    """

    def __init__(
        self,
        sockets: SocketRows,
        listeners: Listeners,
        leader: Leader,
        timeline: Timeline,
        quarantine: Quarantine,
        *,
        timeout_seconds: float,
        full_scan_seconds: float = _FULL_SCAN_SECONDS,
    ) -> None:
        self._sockets = sockets
        self._listeners = listeners
        self._leader = leader
        self._timeline = timeline
        self._quarantine = quarantine
        self._timeout_seconds = timeout_seconds
        self._full_scan_seconds = full_scan_seconds
        self._term = 0
        #: By this process's monotonic clock: the last snapshot, and the last tick that looked at Postgres.
        self._snapshot_at = float("-inf")
        self._scanned_at = float("-inf")
        #: None while there is, or may be, something to do.
        self._settled: _Settled | None = None
        #: Until then a silent listener is not considered dead, by the same clock.
        self._grace_until = 0.0
        #: Listener → until when it gets no hand-offs, by the same clock.
        self._cooldown_until: dict[str, float] = {}
        self._without_room = 0
        #: The last tick that heard of a listener, by the same clock.
        self._heard_at = float("-inf")
        #: As of the last tick.
        self._seen: dict[ConnectionVersion, EventSocket] = {}
        self._live: dict[str, int] = {}
        self._ticked_at = float("-inf")
        #: Set when Redis was found empty: every connection needs a resync.
        self.redis_was_emptied = False

    def tick(self) -> None:
        """Assign once. Raises TransientError when Redis or Postgres is away; the next tick goes on from there."""
        try:
            self._tick()
        except redis.RedisError as exc:
            # If we could not reach Redis, the listeners' heartbeats could not either: none is dead because of that.
            self._start_grace_period()
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc
        except errors.LeadershipLost as exc:
            # Unless Postgres was restored, and has forgotten that leader.
            self._leader.raise_term(exc.term)
            raise

    def hears_listeners(self) -> bool:
        """Return whether a listener was heard of just now: what the sockets' statuses say is recent."""
        return time.monotonic() - self._heard_at < self._timeout_seconds

    def _tick(self) -> None:
        snapshot = self._take_snapshot()
        # If this tick fails, the next one reads everything.
        settled, self._settled = self._settled, None
        if settled is None or not self._is_still_settled(settled, snapshot):
            settled = self._assign(snapshot)
        if settled is not None:
            self._settled = replace(settled, reports_revision=snapshot.reports_revision)
        if snapshot.live and not self._in_grace_period:
            self._heard_at = time.monotonic()
        self._live, self._ticked_at = snapshot.live, time.monotonic()

    def sockets(self) -> list[EventSocket] | None:
        """Return the event sockets as of the last tick; None if that was long ago. Waits for nothing."""
        return list(self._seen.values()) if time.monotonic() - self._ticked_at < _RECENT_SECONDS else None

    def listeners(self) -> int | None:
        """Return the number of listeners that live, as `sockets` does."""
        return len(self._live) if time.monotonic() - self._ticked_at < _RECENT_SECONDS else None

    def _is_still_settled(self, settled: _Settled, snapshot: Snapshot) -> bool:
        """Look for a change that asks for more than writing statuses; write those if there is none."""
        if snapshot.live != settled.live or (snapshot.live and snapshot.silent):
            return False
        now = time.monotonic()
        if now - self._scanned_at >= self._full_scan_seconds:
            if now >= settled.until or not self._listeners.are_assignments_in_place(snapshot.live):
                return False
            if self._sockets.fingerprint() != settled.fingerprint:
                return False
            self._scanned_at = now
        return snapshot.reports_revision == settled.reports_revision or self._take_new_reports(settled, snapshot)

    def _take_new_reports(self, settled: _Settled, snapshot: Snapshot) -> bool:
        """Write the statuses that follow from new reports. Returns False if one of them asks for an action."""
        sockets = settled.sockets
        statuses: dict[ConnectionVersion, SocketStatus] = {}
        for listener, report in self._listeners.reports(snapshot.live).changed:
            socket = sockets.get(report.connection_version)
            if socket is None or report.epoch > socket.epoch:
                return False
            if (listener, report.epoch) != (socket.listener_id, socket.epoch):
                continue
            if actions.next_action(socket, report, None) is not Action.KEEP:
                return False
            status = socket_status.changed_status(socket, report, snapshot.live)
            if status is None:
                continue
            if socket.connection in settled.contested and turns.is_other_turn(socket, replace(socket, status=status)):
                return False
            statuses[socket.connection] = status
        for connection, status in self._sockets.write_statuses(statuses).items():
            sockets[connection] = replace(sockets[connection], status=status)
        return True

    def _assign(self, snapshot: Snapshot) -> _Settled | None:
        """Read everything, and do what there is to do. Returns None if it left something to do."""
        now = time.monotonic()
        if snapshot.live and not self._in_grace_period:
            snapshot = self._evict_silent(snapshot)
        # Before the sockets: a change in between is seen by the next tick.
        fingerprint = self._sockets.fingerprint()
        observed = self._act(self._observe(self._sockets.wanted(), snapshot))
        sockets, is_complete = self._move(observed, snapshot)
        for listener, fields in _assignments_by_listener(sockets, snapshot.live).items():
            self._listeners.write_assignments(listener, fields)
        self._scanned_at = now
        self._seen = {socket.connection: socket for socket in sockets}
        if not is_complete or self._in_grace_period:
            return None
        return _Settled(
            # After a cool-down hand-offs are due, though nothing changes.
            until=now if self._cooling_down() else now + _SETTLED_SECONDS,
            live=snapshot.live,
            reports_revision=snapshot.reports_revision,
            fingerprint=fingerprint,
            sockets=self._seen,
            contested=turns.contested(sockets),
        )

    # ── which listeners are alive ────────────────────────────────────────────────────────────────────────────────────

    @property
    def _in_grace_period(self) -> bool:
        return time.monotonic() < self._grace_until

    def _start_grace_period(self) -> None:
        self._grace_until = time.monotonic() + self._timeout_seconds
        self._settled = None

    def _take_snapshot(self) -> Snapshot:
        term = self._leader.job_term
        led_before = term == self._term
        if not led_before:
            self._term = term
            self._listeners.rewrite_all()
            self._snapshot_at, self._settled = float("-inf"), None
        snapshot = self._listeners.snapshot(term)
        before, self._snapshot_at = self._snapshot_at, time.monotonic()
        if snapshot.emptied:
            # For a new leader an empty Redis is nothing unusual: the whole system may be starting.
            (log.warning if led_before else log.info)("redis empty, rewriting all assignments")
            self._listeners.rewrite_all()
            self.redis_was_emptied = True
        # Heartbeats may be delayed by what delayed our own request, or have stopped while this process was frozen too.
        # And a new leader does not know whether Redis was away.
        was_stalled = (
            snapshot.took_seconds > self._timeout_seconds / 4 or self._snapshot_at - before > self._timeout_seconds
        )
        is_unclear = not led_before and bool(snapshot.silent) and not snapshot.live
        if snapshot.emptied or (led_before and was_stalled) or is_unclear:
            self._start_grace_period()
        return snapshot

    def _evict_silent(self, snapshot: Snapshot) -> Snapshot:
        """Evict dead listeners before their sockets are assigned to others, so that one that wakes up opens nothing."""
        is_outdated = False
        for name in snapshot.silent:
            if self._listeners.evict(name, snapshot):
                log.warning("listener lost", listener=name)
                suspect = self._listeners.take_suspect(name)
                if suspect is not None:
                    self._quarantine.note_lost(name, suspect)
            else:
                is_outdated = True
        return self._listeners.snapshot(self._term) if is_outdated else snapshot

    # ── what to do with each socket ──────────────────────────────────────────────────────────────────────────────────

    def _observe(self, sockets: Iterable[EventSocket], snapshot: Snapshot) -> list[ObservedSocket]:
        """Join sockets with their reports; write the statuses that have changed; choose what to do with each."""
        reports = self._listeners.reports(snapshot.live)
        newest = reports.newest()
        current = [self._with_reported_epoch(row, *newest.get(row.connection, (0, ""))) for row in sockets]
        reported = {each.connection: reports.find(each.connection, each.listener_id, each.epoch) for each in current}
        statuses = {
            each.connection: status
            for each in current
            if (status := socket_status.changed_status(each, reported[each.connection], snapshot.live)) is not None
        }
        written = self._sockets.write_statuses(statuses)
        current = [replace(each, status=written.get(each.connection, each.status)) for each in current]
        waiting = turns.waiting(current)
        current = [replace(each, waits=True) if each.connection in waiting else each for each in current]
        giving_way = [each for each in current if each.superseded or each.waits]
        observed: list[ObservedSocket] = []
        for socket in current:
            report = reported[socket.connection]
            previous = reports.find(socket.connection, socket.previous_listener_id, socket.previous_epoch)
            is_ours = report is not None and turns.is_replaced_by_ours(socket, report, giving_way, reported)
            action = actions.next_action(
                socket, report, previous, may_be_incomplete=self._in_grace_period, replaced_by_ours=is_ours
            )
            observed.append(ObservedSocket(socket=socket, report=report, action=action))
        return observed

    def _with_reported_epoch(self, socket: EventSocket, epoch: int, listener: str) -> EventSocket:
        """Adopt a listener's epoch that is higher than Postgres's, which was then restored from a backup."""
        if epoch <= socket.epoch:
            return socket
        log.warning("epoch adopted from listener, postgres was set back", connection=str(socket.connection),
                    listener=listener, epoch=epoch, known_epoch=socket.epoch)  # fmt: skip
        return self._sockets.adopt(socket, listener, epoch)

    def _act(self, observed: Iterable[ObservedSocket]) -> list[ObservedSocket]:
        """Carry out the actions, except for moves. Returns the sockets that are still wanted, as they are now."""
        wanted: list[ObservedSocket] = []
        for each in observed:
            socket = each.socket
            match each.action:
                case Action.RETIRE:
                    if self._sockets.retire(socket):
                        log.info("socket retired", connection=str(socket.connection))
                        continue
                case Action.MARK_PREEMPTED:
                    socket = self._sockets.mark_preempted(socket)
                    self._record(socket, "AppPreempted", "app preempted", actions.PREEMPTED)
                case Action.PARK:
                    reason = actions.parked_reason(socket)
                    socket = self._sockets.park(socket, reason)
                    self._record(socket, "Parked", "socket parked", reason)
                case Action.END_QUARANTINE:
                    socket = self._sockets.end_quarantine(socket)
                    self._record(socket, "QuarantineEnded", "quarantine ended", "tried again")
                case Action.CLEAR_RECLAIMS:
                    self._sockets.clear_reclaims(socket)
                case Action.RELEASE_PREVIOUS:
                    socket = self._sockets.release_previous(socket)
                case Action.REVERT:
                    self._start_cooldown(socket)
                case Action.RECLAIM | Action.REOPEN | Action.KEEP:
                    pass
            wanted.append(replace(each, socket=socket))
        return wanted

    def _record(self, socket: EventSocket, name: str, event: str, reason: str) -> None:
        log.warning(event, connection=str(socket.connection), app=socket.app, reason=reason)
        self._timeline.append_timeline(
            [TimelineEntry(kind="note", name=name, detail=reason)], connection_id=socket.connection.connection_id
        )

    def _start_cooldown(self, socket: EventSocket) -> None:
        if socket.listener_id is not None:
            self._cooldown_until[socket.listener_id] = time.monotonic() + _COOLDOWN_SECONDS
        log.warning("hand-off reverted: new listener failed to connect", connection=str(socket.connection),
                    listener=socket.listener_id, previous_listener=socket.previous_listener_id)  # fmt: skip

    # ── which listener gets each socket ──────────────────────────────────────────────────────────────────────────────

    def _move(self, observed: list[ObservedSocket], snapshot: Snapshot) -> tuple[list[EventSocket], bool]:
        """Assign sockets to listeners.

        Returns:
            The sockets as they are now; False when the next tick has more to move.
        """
        sockets, has_deferred = [each.socket for each in observed], False
        if snapshot.live:
            plan = move_plan.plan(
                observed,
                snapshot.live,
                cooling_down=self._cooling_down(),
                in_grace_period=self._in_grace_period,
            )
            self._log_room(plan.without_room)
            has_deferred = plan.has_deferred
            moved = self._sockets.move(plan.moves) if plan.moves else {}
            sockets = [moved.get(socket.connection, socket) for socket in sockets]
            if plan.moves:
                first = [f"{each.connection} → {each.listener_id} epoch {each.epoch}" for each in moved.values()][:5]
                log.info("sockets assigned", sockets=len(moved), first=first)
        return sockets, not (has_deferred or any(socket.previous_listener_id for socket in sockets))

    def _cooling_down(self) -> set[str]:
        now = time.monotonic()
        return {listener for listener, until in self._cooldown_until.items() if until > now}

    def _log_room(self, without_room: int) -> None:
        if without_room != self._without_room:
            self._without_room = without_room
            if without_room:
                log.error("no listener capacity left: raise LISTENER_CAPACITY or start another listener",
                          sockets=without_room)  # fmt: skip


def _assignments_by_listener(sockets: Iterable[EventSocket], live: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """Return, for each live listener, the fields of its assignments hash."""
    fields: dict[str, dict[str, str]] = {listener: {} for listener in live}
    for socket in sockets:
        previous, previous_epoch = socket.previous_listener_id, socket.previous_epoch
        if previous in fields and previous_epoch is not None:
            draining = assignment_of(socket, previous_epoch, draining=True)
            fields[previous][draining.key] = assignments.encode(draining)
        if socket.listener_id in fields and (socket.is_open or not socket.waits):
            assignment = assignment_of(socket, socket.epoch, draining=socket.waits)
            fields[socket.listener_id][assignment.key] = assignments.encode(assignment)
    return fields
