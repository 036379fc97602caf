"""One event socket: opened, read, and opened again until it is replaced, superseded or cancelled.

The read loop awaits nothing but the next message: Asterisk cuts off a reader that stalls for 100 ms.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from listener import addresses, backoff, sieve
from listener.assignment_lease import Standing
from listener.buffer import Buffer
from listener.clocks import RedisClock
from listener.connect_limiter import Turns
from listener.entries import of_message
from listener.errors import SocketBroken
from shared import errors, messages
from shared.assignments import Assignment, Report, SocketState
from shared.asterisk import events

_log = structlog.stdlib.get_logger(__name__)

_COMPLAINT_PAUSE_SECONDS = 5.0


class Wire(Protocol):
    """An open websocket (`wires.Wire`)."""

    async def receive(self) -> bytes:
        """The next message; raises SocketBroken when there will be none."""

    async def close(self) -> None:
        """Closes it, in bounded time."""


class Watcher(Protocol):
    """Who holds the socket."""

    def opened(self, socket: Socket) -> None:
        """It is open."""

    def changed(self, socket: Socket) -> None:
        """Its state or error changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every socket of a listener shares."""

    #: (URL, Authorization header, CA bundle) → an open websocket; raises SocketBroken.
    open_wire: Callable[[str, str, str | None], Awaitable[Wire]]
    #: Opens a sealed password; raises SealBroken.
    unseal: Callable[[str], str]
    buffer: Buffer
    clock: RedisClock
    standing: Standing
    turns: Turns
    #: Uniform in [0, 1).
    jitter: Callable[[], float]
    #: Begins the ids of our own legs.
    id_prefix: str


class Socket:
    """The event socket of one assignment."""

    def __init__(self, assignment: Assignment, around: Surroundings, watcher: Watcher) -> None:
        self.assignment = assignment
        #: A newer socket of this listener is there, or on its way.
        self.superseded = False
        self._around = around
        self._watcher = watcher
        self._connection = (assignment.connection_id, assignment.version)
        self._ladder = backoff.Ladder()
        self._log = _log.bind(connection=assignment.key, epoch=assignment.epoch)
        self._id = ""
        self._state = SocketState.CONNECTING
        self._since_ms = around.clock.now_ms()
        self._last_event_ms: int | None = None
        self._openings = 0
        self._error = ""
        self._last_error = ""
        self._last_error_ms: int | None = None
        self._unreadable = 0
        self._dropped = 0
        self._complained = float("-inf")
        self._opened = 0.0

    @property
    def is_open(self) -> bool:
        """Whether events flow."""
        return self._state is SocketState.CONNECTED

    def report(self) -> Report:
        """The socket as it is now."""
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

    def give_way(self) -> None:
        """From now on it is not opened again: another listener is to take over. Whoever holds it ends one not open."""
        self.assignment = replace(self.assignment, draining=True)
        if not self.is_open:
            self._enter(SocketState.REPLACED)

    @property
    def _is_last(self) -> bool:
        """Whether it is not to be opened again."""
        return self.superseded or self.assignment.draining

    async def run(self) -> None:
        """Keeps the socket open; returns when it was replaced, or broke after it was superseded or gave way."""
        self._enter(SocketState.CONNECTING, self._error)
        while not self._is_last:
            self._opened = float("inf")
            try:
                await self._open_and_read()
            except SocketBroken as broken:
                delay_seconds = self._after(broken)
                if not self._is_last:
                    await asyncio.sleep(delay_seconds)
            except Exception:
                self._enter(SocketState.CONNECTING, "a fault of the listener's own, see its log")
                raise
            else:
                return
        self._enter(SocketState.REPLACED)

    async def _open_and_read(self) -> None:
        self._id = uuid.uuid4().hex
        wire = await self._open()
        try:
            self._opened = time.monotonic()
            self._openings += 1
            self._around.buffer.ask_resync(self._connection, "connected")
            self._enter(SocketState.CONNECTED)
            self._log.info("connected", socket=self._id)
            self._watcher.opened(self)
            await self._read(wire)
            self._enter(SocketState.REPLACED)
            self._log.info("disconnected", socket=self._id, reason=self._why_ended("another socket took the app over"))
        except asyncio.CancelledError:
            self._log.info("disconnected", socket=self._id, reason=self._why_ended("no longer ours to hold"))
            raise
        finally:
            await wire.close()

    def _why_ended(self, otherwise: str) -> str:
        return "a newer socket of ours took over" if self._is_last else otherwise

    async def _open(self) -> Wire:
        assignment = self.assignment
        try:
            url = addresses.socket_url(assignment.endpoint, assignment.app)
            header = addresses.authorization(assignment.user, self._around.unseal(assignment.sealed_password))
        except (errors.InvalidConfiguration, errors.SealBroken) as exc:
            raise SocketBroken(str(exc), lasting=True) from None
        while True:
            await self._around.standing.wait()
            async with self._around.turns.turn():
                if self._around.standing.good:
                    return await self._around.open_wire(url, header, assignment.ca_bundle)

    async def _read(self, wire: Wire) -> None:
        """Until the app is taken over."""
        now_ms = self._around.clock.now_ms
        while True:
            raw = await wire.receive()
            self._last_event_ms = at_ms = now_ms()
            if not sieve.may_be_wanted(raw):
                continue
            try:
                event = events.parse(raw)
            except errors.InvalidEvent as exc:
                self._complain(exc)
                continue
            if event is None:
                continue
            if event.type is events.EventType.APPLICATION_REPLACED:
                return
            self._pass_on(event, at_ms)

    def _pass_on(self, event: events.Event, at_ms: int) -> None:
        connection_id, version = self._connection
        message = messages.of_event(
            event,
            prefix=self._around.id_prefix,
            connection_id=connection_id,
            connection_version=version,
            at_ms=at_ms,
        )
        if message is not None and not self._around.buffer.put(of_message(self._connection, message)):
            self._dropped += 1

    def _complain(self, exc: errors.InvalidEvent) -> None:
        self._unreadable += 1
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_PAUSE_SECONDS:
            self._complained = now
            self._log.warning("unreadable event", reason=str(exc), excerpt=exc.excerpt, so_far=self._unreadable)

    def _after(self, broken: SocketBroken) -> float:
        """Notes what happened; gives the seconds to wait."""
        if broken.unreadable:
            self._unreadable += 1
        delay_seconds = self._ladder.next_delay_seconds(
            open_seconds=max(0.0, time.monotonic() - self._opened),
            lasting=broken.lasting and not (broken.starting and self._openings),
            jitter=self._around.jitter(),
        )
        # A host that stays away is one line, not one an attempt.
        if self._state is SocketState.CONNECTED or broken.reason != self._error:
            self._log.warning(
                "disconnected", socket=self._id, reason=broken.reason, retry_seconds=round(delay_seconds, 1)
            )
        self._enter(SocketState.CONNECTING, broken.reason)
        return delay_seconds

    def _enter(self, state: SocketState, error: str = "") -> None:
        if (state, error) != (self._state, self._error):
            if state is not self._state:
                self._since_ms = self._around.clock.now_ms()
            if error:
                self._last_error, self._last_error_ms = error, self._around.clock.now_ms()
            self._state, self._error = state, error
        self._watcher.changed(self)
