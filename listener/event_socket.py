"""One event socket: opened, read, and opened again until it is replaced, superseded, drained or cancelled.

Taking a message waits for nothing: Asterisk cuts off a reader that stalls for 100 ms.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from listener import backoff, websocket
from listener.assignment_lease import AssignmentLease
from listener.buffer import Buffer, encode_message
from listener.connect_limiter import ConnectLimiter
from listener.leg_ends import LegEnds
from shared import errors, messages
from shared.assignments import Assignment, Report, SocketState
from shared.asterisk import events
from shared.call.ids import ConnectionVersion
from shared.process import metrics

_log = structlog.stdlib.get_logger(__name__)
_std = logging.getLogger(__name__)

_UNREADABLE_LOG_PAUSE_SECONDS = 5.0


class Stream(Protocol):
    """An open websocket (`websocket.EventStream`)."""

    async def pass_messages(self, take: Callable[[bytes], bool]) -> None:
        """Pass each message to `take`, until it returns False; raises SocketBroken when the websocket is closed."""

    async def close(self) -> None:
        """Close the websocket, in bounded time."""


class SocketObserver(Protocol):
    """Learns what happens to a socket (`socket_pool.SocketPool`)."""

    def on_open(self, socket: EventSocket) -> None:
        """The socket is open."""

    def on_change(self, socket: EventSocket) -> None:
        """The state or the error of the socket changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketContext:
    """What all sockets of a listener share."""

    #: (URL, Authorization header, CA bundle, name) → an open websocket; raises SocketBroken.
    connect: Callable[[str, str, str | None, str], Awaitable[Stream]]
    #: Opens a sealed password; raises SealBroken.
    unseal: Callable[[str], str]
    buffer: Buffer
    #: Redis's time; 0 before the first heartbeat, when no socket is open yet.
    now_ms: Callable[[], int]
    lease: AssignmentLease
    limiter: ConnectLimiter
    #: Uniform in [0, 1).
    jitter: Callable[[], float]


class EventSocket:
    """The event socket of one assignment."""

    def __init__(self, assignment: Assignment, context: SocketContext, observer: SocketObserver) -> None:
        self.assignment = assignment
        #: This listener has a newer socket for the connection, open or being opened.
        self.superseded = False
        self._context = context
        self._observer = observer
        self._connection = ConnectionVersion(assignment.connection_id, assignment.version)
        self._backoff = backoff.Backoff()
        self._log = _log.bind(connection=assignment.key, epoch=assignment.epoch)
        self._id = ""
        self._state = SocketState.CONNECTING
        self._since_ms = context.now_ms()
        self._last_event_ms: int | None = None
        self._openings = 0
        self._error = ""
        self._last_error = ""
        self._last_error_ms: int | None = None
        self._unreadable = 0
        self._dropped = 0
        self._unreadable_logged_at = float("-inf")
        self._opened_at = 0.0

    @property
    def state(self) -> SocketState:
        """Its state."""
        return self._state

    @property
    def last_event_ms(self) -> int | None:
        """When it last brought something, by Redis's clock; None if it has not."""
        return self._last_event_ms

    @property
    def is_open(self) -> bool:
        """True while events flow."""
        return self._state is SocketState.CONNECTED

    def report(self) -> Report:
        """Return the current state and counters."""
        return Report(
            connection_id=self.assignment.connection_id,
            version=self.assignment.version,
            epoch=self.assignment.epoch,
            socket_id=self._id,
            state=self._state,
            since_ms=self._since_ms,
            last_event_ms=self._last_event_ms,
            reconnects=max(0, self._openings - 1),
            error=self._error,
            last_error=self._last_error,
            last_error_ms=self._last_error_ms,
            unreadable=self._unreadable,
            dropped=self._dropped,
        )

    def start_draining(self) -> None:
        """Stay open until another listener takes over, but never open again.

        If the socket is not open now, the caller has to cancel `run`.
        """
        self.assignment = replace(self.assignment, draining=True)
        if not self.is_open:
            self._enter(SocketState.REPLACED)

    @property
    def _may_open(self) -> bool:
        return not (self.superseded or self.assignment.draining)

    async def run(self) -> None:
        """Keep the socket open; return when it was replaced, or broke after it was superseded or drained."""
        # Of this task: also on what a library logs for it.
        structlog.contextvars.bind_contextvars(connection=self.assignment.key)
        self._enter(SocketState.CONNECTING, self._error)
        while self._may_open:
            self._opened_at = float("inf")
            try:
                await self._open_and_read()
            except websocket.SocketBroken as broken:
                delay_seconds = self._note_broken(broken)
                if self._may_open:
                    await asyncio.sleep(delay_seconds)
            except Exception:
                self._enter(SocketState.CONNECTING, "internal error of the listener, see its log")
                raise
            else:
                return
        self._enter(SocketState.REPLACED)

    async def _open_and_read(self) -> None:
        self._id = uuid.uuid4().hex
        stream = await self._open()
        ends = LegEnds(self._buffer_event, asyncio.get_running_loop().call_later)
        try:
            self._opened_at = time.monotonic()
            self._openings += 1
            metrics.EVENT_SOCKETS_OPENED.add()
            self._context.buffer.request_resync(self._connection, "connected")
            self._enter(SocketState.CONNECTED)
            self._log.info("socket connected", socket=self._id)
            self._observer.on_open(self)
            await stream.pass_messages(functools.partial(self._take, ends))
            self._enter(SocketState.REPLACED)
            self._log_disconnect("app taken over by another client")
        except asyncio.CancelledError:
            self._log_disconnect("assignment revoked")
            raise
        finally:
            try:
                ends.flush()
            finally:
                await stream.close()

    def _log_disconnect(self, reason: str) -> None:
        reason = reason if self._may_open else "replaced by a newer socket of the pipeline"
        self._log.info("socket disconnected", socket=self._id, reason=reason)

    async def _open(self) -> Stream:
        assignment = self.assignment
        try:
            url = websocket.socket_url(assignment.endpoint, assignment.app)
            header = websocket.authorization(assignment.user, self._context.unseal(assignment.sealed_password))
        except (errors.InvalidConfiguration, errors.SealBroken) as exc:
            raise websocket.SocketBroken(str(exc), cause=backoff.Cause.PERMANENT) from None
        while True:
            await self._context.lease.wait_valid()
            async with self._context.limiter.slot():
                # The lease may have ended while this socket waited for its slot.
                if self._context.lease.valid:
                    return await self._context.connect(url, header, assignment.ca_bundle, assignment.key)

    def _take(self, ends: LegEnds, raw: bytes) -> bool:
        """Take one message; return False if another socket has taken the app over."""
        self._last_event_ms = at_ms = self._context.now_ms()
        if not events.may_match(raw):
            return True
        try:
            event = events.parse(raw)
        except errors.InvalidEvent as exc:
            self._note_unreadable(exc)
            return True
        if event is None:
            return True
        if event.type is events.EventType.APPLICATION_REPLACED:
            return False
        if _std.isEnabledFor(logging.DEBUG):
            self._log.debug("event received", type=str(event.type), leg=event.leg.id)
        ends.take(event, at_ms)
        return True

    def _buffer_event(self, event: events.Event, at_ms: int) -> bool:
        """Buffer an event's message, if it has one; return False when it had to be dropped."""
        message = messages.of_event(
            event,
            connection=self._connection,
            at_ms=at_ms,
        )
        if message is None:
            return True
        metrics.EVENTS.add()
        if self._context.buffer.put(encode_message(self._connection, message)):
            return True
        self._dropped += 1
        metrics.EVENTS_DROPPED.add("buffer-full")
        return False

    def _note_unreadable(self, exc: errors.InvalidEvent) -> None:
        self._unreadable += 1
        metrics.EVENTS_UNREADABLE.add()
        now = time.monotonic()
        if now - self._unreadable_logged_at >= _UNREADABLE_LOG_PAUSE_SECONDS:
            self._unreadable_logged_at = now
            self._log.warning("unreadable event", reason=str(exc), excerpt=exc.excerpt, so_far=self._unreadable)

    def _note_broken(self, broken: websocket.SocketBroken) -> float:
        """Record and log the failure; return the seconds to wait before the next attempt."""
        if broken.unreadable:
            self._unreadable += 1
            metrics.EVENTS_UNREADABLE.add()
        now = time.monotonic()
        delay_seconds = self._backoff.next_delay_seconds(
            broken.cause, now=now, open_seconds=max(0.0, now - self._opened_at), jitter=self._context.jitter()
        )
        # A host that stays away is one line in the log, not one for each attempt.
        if self._state is SocketState.CONNECTED or broken.reason != self._error:
            self._log.warning(
                "socket disconnected", socket=self._id, reason=broken.reason, retry_seconds=round(delay_seconds, 1)
            )
        self._enter(SocketState.CONNECTING, broken.reason)
        return delay_seconds

    def _enter(self, state: SocketState, error: str = "") -> None:
        if (state, error) != (self._state, self._error):
            if state is not self._state:
                self._since_ms = self._context.now_ms()
            if error:
                self._last_error, self._last_error_ms = error, self._context.now_ms()
            self._state, self._error = state, error
        self._observer.on_change(self)
