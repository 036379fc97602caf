"""The event sockets of a listener: each newer one open before its previous goes, and what is reported of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from listener import assignment_changes, event_socket, tasks
from shared.assignments import Assignment, Report

_log = structlog.stdlib.get_logger(__name__)

#: How long a socket reads on after its successor is open: Asterisk tells it when it has sent it the last event.
_OVERLAP_SECONDS = 1.5
#: Longer than a websocket takes to close.
_CLOSE_SECONDS = 4.0
#: State changes are reported at once, counters and times this often.
_COUNTERS_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Held:
    """A socket and its task."""

    socket: event_socket.Socket
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Holding:
    """The sockets of one key: the current one, and the previous one that stays until the current one is open."""

    current: _Held
    previous: _Held | None = None


class Holdings:
    """All sockets of one listener."""

    def __init__(self, around: event_socket.Surroundings) -> None:
        #: Set when something was noted that the scheduler should learn soon.
        self.news = asyncio.Event()
        self._around = around
        self._holdings: dict[str, _Holding] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent: dict[str, Report] = {}
        self._urgent: set[str] = set()
        self._gone: set[str] = set()
        self._counted = float("-inf")

    @property
    def held(self) -> dict[str, Assignment]:
        """By key, what is held or tried."""
        return {key: holding.current.socket.assignment for key, holding in self._holdings.items()}

    @property
    def is_any_open(self) -> bool:
        """Whether events flow on any socket."""
        return any(holding.current.socket.is_open for holding in self._holdings.values())

    def apply(self, changes: assignment_changes.Changes) -> None:
        """Opens and closes."""
        for key in changes.to_close:
            self._drop(key)
        for key in changes.to_yield:
            self._yield(key)
        for assignment in changes.to_open:
            self._open(assignment)
        if changes.beyond_capacity:
            _log.error("more connections assigned than LISTENER_CAPACITY", not_opened=len(changes.beyond_capacity))

    def _open(self, assignment: Assignment) -> None:
        key = assignment.key
        socket = event_socket.Socket(assignment, self._around, self)
        holding = self._holdings.get(key)
        if holding is None:
            self._holdings[key] = _Holding(self._start(socket))
        else:
            previous = holding.current
            previous.socket.superseded = True
            if previous.socket.is_open:
                holding.previous = previous
            else:
                previous.task.cancel()
            holding.current = self._start(socket)
        self._gone.discard(key)
        self.changed(socket)

    def _start(self, socket: event_socket.Socket) -> _Held:
        name = f"socket {socket.assignment.key} epoch {socket.assignment.epoch}"
        task = asyncio.create_task(tasks.supervise(name, socket.run, self._around.jitter), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _Held(socket, task)

    def _yield(self, key: str) -> None:
        current = self._holdings[key].current
        is_open = current.socket.is_open
        current.socket.give_way()
        if not is_open:
            current.task.cancel()

    def _drop(self, key: str) -> None:
        holding = self._holdings.pop(key)
        assignment = holding.current.socket.assignment
        holding.current.task.cancel()
        if holding.previous is not None:
            holding.previous.task.cancel()
        self._around.buffer.forget((assignment.connection_id, assignment.version))
        self._sent.pop(key, None)
        self._urgent.discard(key)
        self._gone.add(key)
        self.news.set()

    def opened(self, socket: event_socket.Socket) -> None:
        """The current socket is open: its previous may go, once it has read what was sent to it."""
        holding = self._holdings.get(socket.assignment.key)
        if holding is not None and holding.current.socket is socket and holding.previous is not None:
            asyncio.get_running_loop().call_later(_OVERLAP_SECONDS, holding.previous.task.cancel)
            holding.previous = None

    def changed(self, socket: event_socket.Socket) -> None:
        """A socket's state changed; that of a superseded one interests nobody."""
        key = socket.assignment.key
        if not socket.superseded and key in self._holdings:
            self._urgent.add(key)
            self.news.set()

    def unsent(self, now: float) -> tuple[list[Report], set[str]]:
        """The reports that changed since they were sent, and the keys whose reports are to go; `now` is monotonic."""
        due = self._urgent
        if now - self._counted >= _COUNTERS_SECONDS:
            self._counted = now
            due = set(self._holdings)
        reports = [self._holdings[key].current.socket.report() for key in due]
        return [report for report in reports if self._sent.get(report.key) != report], set(self._gone)

    def sent(self, reports: list[Report], gone: set[str]) -> None:
        """Redis has these."""
        for report in reports:
            holding = self._holdings.get(report.key)
            if holding is None:
                continue
            self._sent[report.key] = report
            if _essence(holding.current.socket.report()) == _essence(report):
                self._urgent.discard(report.key)
        self._gone -= gone

    def send_all(self) -> None:
        """Redis has lost what was sent."""
        self._sent.clear()
        self._urgent = set(self._holdings)
        self.news.set()

    async def close(self) -> None:
        """Closes all sockets, side by side."""
        await tasks.end(self._tasks, patience_seconds=_CLOSE_SECONDS)


def _essence(report: Report) -> tuple[object, ...]:
    return report.epoch, report.socket_id, report.state, report.error
