"""Sockets to listeners: who holds which connection version, under which epoch.

Postgres has the truth, Redis a copy for the listeners. A tick looks at both, moves what a lost listener held at once
and what is unevenly spread a few at a time, and writes to Redis what differs; so Redis may be emptied at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import redis
import structlog

from scheduler import actions, rebalancing
from scheduler.actions import Verdict
from scheduler.leader import Lease
from scheduler.listeners import Listeners, Sight
from scheduler.socket_rows import Move, Sockets, Status, assignment_of, key_of
from shared import assignments, errors
from shared.assignments import Report, SocketState
from shared.storage import database
from shared.storage.call_store import TimelineEntry

log = structlog.stdlib.get_logger(__name__)

#: Hand-overs under way at once, when sockets are spread anew.
_HAND_OVERS = 20
#: A listener that could not open what another has open gets nothing more handed over for this long.
_SHUNNED_SECONDS = 60.0
#: With nothing new at the listeners, Postgres is read this often.
_THOROUGH_SECONDS = 1.0


class Notes(Protocol):
    """The timeline. `store.PostgresStore` is the adapter."""

    def append_timeline(self, timeline: list[TimelineEntry], *, connection_id: int) -> None:
        """Writes rows about a connection."""


@dataclass(slots=True, kw_only=True)
class _Socket:
    """One wanted socket, and what is reported of it under its current epoch."""

    row: database.Row
    report: Report | None
    verdict: Verdict

    @property
    def key(self) -> str:
        return key_of(self.row)

    @property
    def is_connected(self) -> bool:
        return self.report is not None and self.report.state is SocketState.CONNECTED


class Assigner:
    """Assigns sockets, tick by tick.

    Args:
        timeout_seconds: A listener silent for this long is taken for dead.
    """

    def __init__(
        self,
        sockets: Sockets,
        listeners: Listeners,
        lease: Lease,
        notes: Notes,
        *,
        timeout_seconds: float,
        thorough_seconds: float = _THOROUGH_SECONDS,
    ) -> None:
        self._sockets = sockets
        self._listeners = listeners
        self._lease = lease
        self._notes = notes
        self._timeout_seconds = timeout_seconds
        self._thorough_seconds = thorough_seconds
        self._term = 0
        #: By our monotonic clock: when Redis was last looked at, and when all was.
        self._looked = float("-inf")
        self._done = float("-inf")
        self._seen: tuple[dict[str, int], int] | None = None
        self._patient_until = 0.0
        self._shunned: dict[str, float] = {}
        self._without_room = 0
        #: Redis was found empty: everything wants a resync.
        self.redis_was_emptied = False

    def tick(self) -> None:
        """One look. Raises TransientError when Redis or Postgres is away; the next tick goes on."""
        try:
            self._tick()
        except redis.RedisError as exc:
            # Whoever could not reach Redis could not send a heartbeat either: nobody is dead for that.
            self._be_patient()
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc

    @property
    def _is_patient(self) -> bool:
        return time.monotonic() < self._patient_until

    def _be_patient(self) -> None:
        self._patient_until = time.monotonic() + self._timeout_seconds
        self._seen = None

    def _tick(self) -> None:
        sight = self._look()
        now = time.monotonic()
        if self._seen == (sight.live, sight.news) and now - self._done < self._thorough_seconds:
            return
        self._seen = None
        if not self._is_patient and sight.live:
            sight = self._forget_silent(sight)
        sockets = self._judged(self._sockets.wanted(), sight)
        self._carry_out(sockets)
        staying = [socket for socket in sockets if socket.verdict is not Verdict.RETIRE]
        settled = self._move(staying, sight)
        for listener, fields in _told([socket.row for socket in staying], sight.live).items():
            self._listeners.write(listener, fields)
        self._done = now
        if settled and not self._is_patient:
            self._seen = (sight.live, sight.news)

    # ── who is alive ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> Sight:
        led_before = self._lease.term == self._term
        if not led_before:
            self._term = self._lease.term
            self._listeners.forget_written()
            self._looked, self._seen = float("-inf"), None
        sight = self._listeners.look(f"term {self._term}")
        before, self._looked = self._looked, time.monotonic()
        if sight.emptied:
            # To a leader that has just begun an empty Redis is nothing strange: the system may be starting.
            (log.warning if led_before else log.info)("Redis is empty: assignments are written anew")
            self._listeners.forget_written()
            self.redis_was_emptied = True
        # Heartbeats may wait in the same line as we did, or have stood still together with us; and a leader that has
        # just begun does not know whether Redis was away.
        stalled = sight.took_seconds > self._timeout_seconds / 4 or self._looked - before > self._timeout_seconds
        unclear = not led_before and bool(sight.silent) and not sight.live
        if sight.emptied or (led_before and stalled) or unclear:
            self._be_patient()
        return sight

    def _forget_silent(self, sight: Sight) -> Sight:
        """Strikes out the dead before anything is given to others, so that one that wakes up opens nothing."""
        back = set()
        for name in sight.silent:
            if self._listeners.forget(name, sight):
                log.warning("a listener is lost", listener=name)
            else:
                back.add(name)
        if not back:
            return sight
        return self._listeners.look(f"term {self._term}")

    # ── what is to be done with each ─────────────────────────────────────────────────────────────────────────────────

    def _judged(self, rows: Iterable[database.Row], sight: Sight) -> list[_Socket]:
        reports = self._listeners.reports(sight.live)
        newest = _newest(reports)
        judged, statuses = [], []
        for row in rows:
            epoch, listener = newest.get(key_of(row), (0, ""))
            if epoch > row["epoch"]:
                log.warning("Postgres was set back: what a listener holds is adopted", connection=key_of(row),
                            listener=listener, epoch=epoch)  # fmt: skip
                self._sockets.adopt(row, listener, epoch)
                row |= {"listener_id": listener, "epoch": epoch, "previous_listener_id": None, "previous_epoch": None}
            report = _report(reports, row["listener_id"], row["epoch"], row)
            previous = _report(reports, row["previous_listener_id"], row["previous_epoch"], row)
            verdict = actions.judge(row, report, previous)
            judged.append(_Socket(row=row, report=report, verdict=verdict))
            status = _status(row, report, sight.live)
            if status is not None:
                statuses.append(status)
        if statuses:
            self._sockets.note(statuses)
        return judged

    def _carry_out(self, sockets: Iterable[_Socket]) -> None:
        for socket in sockets:
            row = socket.row
            match socket.verdict:
                case Verdict.RETIRE:
                    self._sockets.retire(row)
                    log.info("retired", connection=socket.key)
                case Verdict.MARK_PREEMPTED:
                    self._sockets.mark_preempted(row)
                    self._tell(row, "AppTaken", actions.TAKEN)
                case Verdict.PARK:
                    reason = actions.parked(row)
                    self._sockets.park(row, reason)
                    row |= {"parked": True, "listener_id": None, "previous_listener_id": None}
                    self._tell(row, "Parked", reason)
                case Verdict.SETTLE:
                    self._sockets.settle(row)
                case Verdict.RELEASE_PREVIOUS:
                    self._sockets.let_go(row)
                    row |= {"previous_listener_id": None, "previous_epoch": None}
                case Verdict.REVERT:
                    self._shunned[row["listener_id"]] = time.monotonic() + _SHUNNED_SECONDS
                    log.warning("not handed over: the new listener cannot open it", connection=socket.key,
                                listener=row["listener_id"], stays_with=row["previous_listener_id"])  # fmt: skip
                case Verdict.RECLAIM | Verdict.KEEP:
                    pass

    def _tell(self, row: database.Row, name: str, detail: str) -> None:
        log.warning(detail, connection=key_of(row), app=row["app"])
        self._notes.append_timeline(
            [TimelineEntry(kind="note", name=name, detail=detail)], connection_id=row["connection_id"]
        )

    # ── who is to hold each ──────────────────────────────────────────────────────────────────────────────────────────

    def _move(self, sockets: list[_Socket], sight: Sight) -> bool:
        """Gives sockets to listeners; False when more is to be done on the next tick."""
        moves, waiting = self._moves(sockets, sight)
        if moves:
            moved = {key_of(row): row for row in self._sockets.move(moves, self._term)}
            for socket in sockets:
                if (row := moved.get(socket.key)) is not None:
                    socket.row |= row
            log.info("assigned", sockets=len(moved), first=[f"{key} → {row['listener_id']} epoch {row['epoch']}"
                                                           for key, row in list(moved.items())[:5]])  # fmt: skip
        return not (waiting or any(socket.row["previous_listener_id"] for socket in sockets))

    def _moves(self, sockets: list[_Socket], sight: Sight) -> tuple[list[Move], bool]:
        """What is to move now, and whether more is to move later."""
        live, patient = sight.live, self._is_patient
        placing = {
            socket.key: socket
            for socket in sockets
            if not socket.row["parked"]
            and (socket.row["listener_id"] in live or socket.row["listener_id"] is None or not patient)
        }
        if not live:
            return [], False
        places = rebalancing.place({key: socket.row["listener_id"] for key, socket in placing.items()}, live)
        self._note_room(sum(place is None for place in places.values()))
        moves: list[Move] = []
        spread: list[Move] = []
        for key, place in places.items():
            socket = placing[key]
            row, holder = socket.row, socket.row["listener_id"]
            if socket.verdict is Verdict.REVERT and row["previous_listener_id"] in live:
                moves.append(Move(row=row, listener=row["previous_listener_id"]))
            elif holder not in live:
                # An app that a stranger has is left to it for as long as when its holder is there.
                if place is not None and (row["may_reclaim"] or not row["taken"]):
                    moves.append(_run_attached(row, place, live))
            elif socket.verdict is Verdict.RECLAIM:
                moves.append(Move(row=row, listener=holder, is_reclaim=True))
            elif place not in (None, holder) and self._may_spread(socket, place):
                spread.append(_handed_over(socket, place))
        under_way = sum(socket.row["previous_listener_id"] is not None for socket in sockets)
        now = [] if patient else spread[: max(0, _HAND_OVERS - under_way)]
        return [*moves, *now], len(spread) > len(now)

    def _may_spread(self, socket: _Socket, place: str | None) -> bool:
        if socket.row["previous_listener_id"] is not None or socket.row["taken"]:
            return False
        return self._shunned.get(place or "", 0.0) <= time.monotonic()

    def _note_room(self, without: int) -> None:
        if without != self._without_room:
            self._without_room = without
            if without:
                log.error("no listener has room: raise LISTENER_CAPACITY or start one more", sockets=without)


def _handed_over(socket: _Socket, place: str | None) -> Move:
    """To another listener, while the one before has it open."""
    assert place is not None
    if not socket.is_connected:
        return Move(row=socket.row, listener=place)
    return Move(row=socket.row, listener=place, previous=socket.row["listener_id"], previous_epoch=socket.row["epoch"])


def _run_attached(row: database.Row, place: str, live: Mapping[str, int]) -> Move:
    """Move a socket away from a lost listener. During a hand-off the previous listener still has it open."""
    if row["previous_listener_id"] not in live or row["previous_listener_id"] == place:
        return Move(row=row, listener=place, is_reclaim=row["taken"])
    return Move(row=row, listener=place, previous=row["previous_listener_id"], previous_epoch=row["previous_epoch"])


def _told(rows: list[database.Row], live: Iterable[str]) -> dict[str, dict[str, str]]:
    """Listener → what it is to be told."""
    told: dict[str, dict[str, str]] = {listener: {} for listener in live}
    for row in rows:
        key = key_of(row)
        if row["previous_listener_id"] in told:
            told[row["previous_listener_id"]][key] = assignments.encode(
                assignment_of(row, row["previous_epoch"], draining=True)
            )
        if row["listener_id"] in told:
            told[row["listener_id"]][key] = assignments.encode(assignment_of(row, row["epoch"]))
    return told


def _newest(reports: Mapping[str, Mapping[str, Report]]) -> dict[str, tuple[int, str]]:
    """Connection key → the highest epoch under which a listener has it open, and which one has."""
    newest: dict[str, tuple[int, str]] = {}
    for listener, found in reports.items():
        for key, report in found.items():
            if report.state is SocketState.CONNECTED:
                newest[key] = max(newest.get(key, (0, "")), (report.epoch, listener))
    return newest


def _report(
    reports: Mapping[str, Mapping[str, Report]], listener: str | None, epoch: int | None, row: database.Row
) -> Report | None:
    """What a listener says of a socket, if it speaks of this epoch."""
    report = reports.get(listener or "", {}).get(key_of(row))
    return report if report is not None and report.epoch == epoch else None


def _status(row: database.Row, report: Report | None, live: Mapping[str, int]) -> Status | None:
    """What is to be written of a socket; None when nothing has changed."""
    if row["parked"] or (report is None and row["listener_id"] in live):
        return None
    if report is not None:
        state, since = str(report.state), _moment(report.since_ms)
        reconnects, error, last_event = report.reconnects, report.error, _moment(report.last_event_ms)
        if report.state is SocketState.REPLACED and not row["superseded"]:
            error = actions.TAKEN
    else:
        state, since = "unassigned", row["socket_since"]
        reconnects, error, last_event = row["reconnects"], row["last_error"], row["last_event_at"]
    past, past_at = row["past_error"], row["past_error_at"]
    if report is not None and report.last_error:
        past, past_at = report.last_error, _moment(report.last_error_ms)
    shown = (row["socket_state"], row["socket_since"], row["reconnects"], row["last_error"], row["past_error"])
    if (state, since, reconnects, error, past) == shown and not _is_news(row["last_event_at"], last_event):
        return None
    return Status(
        connection_id=row["connection_id"],
        version=row["version"],
        state=state,
        since=since,
        last_event=last_event,
        reconnects=reconnects,
        error=error,
        past_error=past,
        past_error_at=past_at,
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _is_news(before: datetime | None, now: datetime | None) -> bool:
    """Whether the time of the last event is worth a write: every ten seconds is enough for an operator."""
    if now is None or before is None:
        return now is not before
    return (now - before).total_seconds() > 10
