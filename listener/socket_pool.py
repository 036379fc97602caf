"""The event sockets of a listener: opened, drained and closed as assigned, and the reports about them.

When a connection gets a newer socket, its previous one is closed only after the newer one is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from listener import tasks
from listener.event_socket import EventSocket, SocketContext
from shared.assignments import Assignment, Report
from shared.call.ids import ConnectionVersion

_log = structlog.stdlib.get_logger(__name__)

#: How long a socket reads on after its successor is open. Usually it ends earlier, with ApplicationReplaced: the last
#: event that Asterisk sends it.
_OVERLAP_SECONDS = 1.5
#: Longer than a websocket takes to close.
_CLOSE_SECONDS = 4.0
#: State changes are reported at once, counters and times this often.
_COUNTERS_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What turns the sockets of the pool into the assigned ones."""

    #: New, or newer than the assignment of the pool under the same key.
    to_open: tuple[Assignment, ...] = ()
    #: Keys no longer assigned.
    to_close: tuple[str, ...] = ()
    #: Keys whose socket stays while it is open, and is not opened again.
    to_drain: tuple[str, ...] = ()
    #: New, but more than the pool has room for.
    beyond_capacity: tuple[Assignment, ...] = ()


def diff(
    assigned: Mapping[str, Assignment], read: Mapping[str, Assignment | None], *, complete: bool, capacity: int
) -> Changes:
    """Compare the assignments of the pool with those in Redis. Pure.

    Args:
        assigned: By key, the assignments of the pool.
        read: By key, the assignments in Redis; None for an unreadable one, which changes nothing.
        complete: True if a key missing from `read` was revoked. False if Redis may have been emptied since the last
            read: then nothing is closed, and a missing socket that breaks is not opened again, because another
            listener may have its connection by now.
        capacity: Most sockets; a newer assignment of a key in the pool needs no more room.
    """
    missing = tuple(key for key in assigned if key not in read)
    to_close = missing if complete else ()
    room = capacity - (len(assigned) - len(to_close))
    newer, new = [], []
    to_drain = [key for key in missing if not (complete or assigned[key].draining)]
    for key, assignment in read.items():
        if assignment is None:
            continue
        if assignment.draining:
            if key in assigned and not assigned[key].draining and assignment.epoch >= assigned[key].epoch:
                to_drain.append(key)
        elif key not in assigned:
            new.append(assignment)
        elif _is_newer(assignment, assigned[key]):
            newer.append(assignment)
    return Changes(
        to_open=(*newer, *new[: max(0, room)]),
        to_close=to_close,
        to_drain=tuple(to_drain),
        beyond_capacity=tuple(new[max(0, room) :]),
    )


def _is_newer(assignment: Assignment, current: Assignment) -> bool:
    if assignment.epoch != current.epoch:
        return assignment.epoch > current.epoch
    # A draining assignment that is no longer draining counts as new.
    return assignment.fingerprint != current.fingerprint or current.draining


@dataclass(slots=True, eq=False)
class _Running:
    """A socket and its task."""

    socket: EventSocket
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Slot:
    """The sockets of one key: the current one, and the previous one that stays until the current one is open."""

    current: _Running
    previous: _Running | None = None


class SocketPool:
    """All sockets of one listener."""

    def __init__(self, context: SocketContext) -> None:
        #: Set when the scheduler should get a report soon.
        self.changed = asyncio.Event()
        self._context = context
        self._slots: dict[str, _Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent: dict[str, Report] = {}
        #: Keys to report at once.
        self._urgent: set[str] = set()
        #: Keys whose reports are to be deleted.
        self._closed: set[str] = set()
        self._counters_sent_at = float("-inf")

    @property
    def assigned(self) -> dict[str, Assignment]:
        """By key, the assignments whose sockets are open or being opened."""
        return {key: slot.current.socket.assignment for key, slot in self._slots.items()}

    def sockets(self) -> list[EventSocket]:
        """Return the current socket of each key. In any thread, at any time."""
        return [slot.current.socket for slot in list(self._slots.values())]

    @property
    def is_any_open(self) -> bool:
        """True while events flow on any socket."""
        return any(slot.current.socket.is_open for slot in self._slots.values())

    @property
    def is_any_reported(self) -> bool:
        """True if Redis has a report of this listener, as far as is known."""
        return bool(self._sent)

    def apply(self, changes: Changes) -> None:
        """Close, drain and open sockets."""
        for key in changes.to_close:
            self._close(key)
        for key in changes.to_drain:
            self._drain(key)
        for assignment in changes.to_open:
            self._open(assignment)
        if changes.beyond_capacity:
            _log.error("assignments beyond LISTENER_CAPACITY", not_opened=len(changes.beyond_capacity))

    def _open(self, assignment: Assignment) -> None:
        key = assignment.key
        socket = EventSocket(assignment, self._context, self)
        slot = self._slots.get(key)
        if slot is None:
            self._slots[key] = _Slot(self._start(socket))
        else:
            previous = slot.current
            previous.socket.superseded = True
            if previous.socket.is_open:
                slot.previous = previous
            else:
                previous.task.cancel()
            slot.current = self._start(socket)
        self._closed.discard(key)
        self.on_change(socket)

    def _start(self, socket: EventSocket) -> _Running:
        name = f"socket {socket.assignment.key} epoch {socket.assignment.epoch}"
        task = asyncio.create_task(tasks.supervise(name, socket.run, self._context.jitter), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _Running(socket, task)

    def _drain(self, key: str) -> None:
        current = self._slots[key].current
        is_open = current.socket.is_open
        current.socket.start_draining()
        if not is_open:
            current.task.cancel()

    def _close(self, key: str) -> None:
        slot = self._slots.pop(key)
        assignment = slot.current.socket.assignment
        slot.current.task.cancel()
        if slot.previous is not None:
            slot.previous.task.cancel()
        self._context.buffer.forget(ConnectionVersion(assignment.connection_id, assignment.version))
        self._sent.pop(key, None)
        self._urgent.discard(key)
        self._closed.add(key)
        self.changed.set()

    def on_open(self, socket: EventSocket) -> None:
        """Close the previous socket of the key, once it has read what was sent to it."""
        slot = self._slots.get(socket.assignment.key)
        if slot is not None and slot.current.socket is socket and slot.previous is not None:
            asyncio.get_running_loop().call_later(_OVERLAP_SECONDS, slot.previous.task.cancel)
            slot.previous = None

    def on_change(self, socket: EventSocket) -> None:
        """Report the socket at once, unless it is superseded: only the current socket of a key is reported."""
        key = socket.assignment.key
        if not socket.superseded and key in self._slots:
            self._urgent.add(key)
            self.changed.set()

    def unsent(self, now: float) -> tuple[list[Report], set[str]]:
        """Return the reports that changed since they were sent, and the keys whose reports are to be deleted.

        Args:
            now: By the monotonic clock.
        """
        due = self._urgent
        if now - self._counters_sent_at >= _COUNTERS_SECONDS:
            self._counters_sent_at = now
            due = set(self._slots)
        reports = [self._slots[key].current.socket.report() for key in due]
        return [report for report in reports if self._sent.get(report.key) != report], set(self._closed)

    def mark_sent(self, reports: list[Report], deleted: set[str]) -> None:
        """Note that Redis has these reports, and has deleted those of the keys."""
        for report in reports:
            slot = self._slots.get(report.key)
            if slot is None:
                continue
            self._sent[report.key] = report
            if _urgent_part(slot.current.socket.report()) == _urgent_part(report):
                self._urgent.discard(report.key)
        self._closed -= deleted

    def resend_all(self) -> None:
        """Report every socket again: Redis has lost the reports."""
        self._sent.clear()
        self._urgent = set(self._slots)
        self.changed.set()

    async def close(self) -> None:
        """Close all sockets, in parallel."""
        await tasks.end(self._tasks, patience_seconds=_CLOSE_SECONDS)


def _urgent_part(report: Report) -> tuple[object, ...]:
    return report.epoch, report.socket_id, report.state, report.error
