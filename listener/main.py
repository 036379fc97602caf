"""The listener: `python -m listener.main`. Keeps event sockets open and pushes their events; decides nothing.

SIGTERM or SIGINT ends it within DRAIN_SECONDS, a second one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import sys
import uuid
from collections.abc import Callable

import structlog
import uvloop

from listener import gauges, redis_store, tasks, websocket
from listener.assignment_lease import AssignmentLease
from listener.bounded_connection import ReadLimits
from listener.buffer import Buffer
from listener.connect_limiter import ConnectLimiter
from listener.event_socket import SocketContext
from listener.heartbeat_thread import HeartbeatThread
from listener.heartbeats import Heartbeats
from listener.publisher import Publisher
from listener.read_turns import ReadTurns
from listener.socket_pool import SocketPool
from shared import dependencies, errors
from shared.asterisk import name_lookups, tls
from shared.broker.bounds import Bounds
from shared.process import health, logs, memory, metrics_server, open_files, registry, settings
from shared.process.metric_kinds import Process
from shared.process.redis_clock import RedisClock

_log = structlog.stdlib.get_logger(__name__)

#: Largest part of DRAIN_SECONDS in which other listeners may take the sockets over before they are closed.
_HANDOVER_PART = 0.6
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 0.2
#: The process ends this long after DRAIN_SECONDS, whatever has gone wrong.
_LAST_RESORT_SECONDS = 10.0
#: The lease ends after this part of the time after which the scheduler counts the listener as lost.
_LEASE_PART = 0.75
_SPARE_FILES = 200


class Listener:
    """One listener, wired. Create it inside the event loop.

    Args:
        jitter: Uniform in [0, 1); a parameter for tests.
    """

    def __init__(self, config: settings.Listener, jitter: Callable[[], float] = random.random) -> None:
        # Loads every authority of the system: here, not when the first socket is opened.
        tls.context(None)
        self.id = f"{config.name}-{uuid.uuid4().hex[:8]}"
        self._config = config
        self._store = redis_store.RedisStore(
            redis_store.client(config.redis_url.get_secret_value()),
            self.id,
            capacity=config.listener_capacity,
            timeout_seconds=config.listener_timeout_seconds,
            bounds=Bounds(group_messages=config.group_messages, group_bytes=config.group_bytes),
        )
        self._buffer = Buffer(capacity=config.listener_buffer, share=config.listener_buffer_share)
        self._lease = AssignmentLease(config.listener_timeout_seconds * _LEASE_PART)
        clock = RedisClock()
        turns = ReadTurns(config.read_turn_ms / 1000, asyncio.get_running_loop().call_later)
        lookups = name_lookups.NameLookups(config.guard(), threads=config.name_lookups)
        connect = functools.partial(websocket.connect, lookups=lookups, turns=turns, limits=read_limits(config))
        self._pool = SocketPool(
            SocketContext(
                connect=connect,
                unseal=config.sealer().open,
                buffer=self._buffer,
                now_ms=lambda: clock.now_ms() or 0,
                lease=self._lease,
                limiter=ConnectLimiter(),
                jitter=jitter,
            )
        )
        gauges.read(self._pool, self._buffer, capacity=config.listener_buffer, connections=config.metrics_connections)
        heartbeats = Heartbeats(
            self._store,
            pool=self._pool,
            buffer=self._buffer,
            clock=clock,
            lease=self._lease,
            interval_seconds=config.heartbeat_seconds,
            capacity=config.listener_capacity,
        )
        beats = redis_store.ThreadStore(config.redis_url.get_secret_value(), self.id, seconds=config.heartbeat_seconds)
        self._heartbeat_thread = HeartbeatThread(
            beats.beat,
            lambda: turns.reading,
            interval_seconds=config.heartbeat_seconds,
            silent_seconds=config.listener_timeout_seconds,
        )
        publisher = Publisher(self._store, self._buffer, jitter, clock.now_ms)
        self._heartbeats = functools.partial(tasks.supervise, "heartbeats", heartbeats.run, jitter)
        self._wakeups = functools.partial(tasks.supervise, "wakeups", heartbeats.wake, jitter)
        self._publisher = functools.partial(tasks.supervise, "publisher", publisher.run, jitter)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then shut down, in DRAIN_SECONDS at most."""
        _log.info("listener started", listener=self.id)
        heartbeats = asyncio.create_task(self._heartbeats(), name="heartbeats")
        wakeups = asyncio.create_task(self._wakeups(), name="wakeups")
        publisher = asyncio.create_task(self._publisher(), name="publisher")
        liveness = asyncio.create_task(self._liveness(), name="liveness")
        turns = asyncio.create_task(self._note_turns(), name="turns")
        self._heartbeat_thread.start()
        try:
            await stop.wait()
            self._heartbeat_thread.stop()
            deadline = asyncio.get_running_loop().time() + self._config.drain_seconds
            await tasks.end([heartbeats], patience_seconds=_PATIENCE_SECONDS)
            async with asyncio.timeout_at(deadline):
                await self._shut_down(deadline)
            _log.info("listener stopped")
        except TimeoutError:
            _log.warning("listener stopped early, DRAIN_SECONDS exceeded", events_lost=self._buffer.size)
        finally:
            self._heartbeat_thread.stop()
            await self._pool.close()
            await tasks.end([heartbeats, wakeups, publisher, liveness, turns], patience_seconds=_PATIENCE_SECONDS)
            with contextlib.suppress(TimeoutError, OSError):
                await self._store.close()

    async def _liveness(self) -> None:
        """Touch HEALTH_FILE for as long as the event loop runs."""
        liveness = health.Liveness(self._config.health_file)
        while True:
            liveness.touch()
            await asyncio.sleep(health.TOUCH_SECONDS)

    async def _note_turns(self) -> None:
        """Tell the heartbeat thread that the event loop turns."""
        while True:
            self._heartbeat_thread.note_turn()
            await asyncio.sleep(self._config.heartbeat_seconds / 2)

    async def _shut_down(self, deadline: float) -> None:
        """Hand the sockets over, close those that are left, push the waiting events, delete the reports."""
        _log.info("listener stopping", sockets=len(self._pool.assigned), events_waiting=self._buffer.size)
        self._lease.revoke()
        if await self._deregister():
            await self._hand_over()
        await self._pool.close()
        while self._buffer.size:
            # By the clock: a cancellation can get lost in redis (`tasks.end`).
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError
            await asyncio.sleep(_POLL_SECONDS)
        with contextlib.suppress(errors.QueueUnavailable):
            await self._store.remove_reports()

    async def _deregister(self) -> int:
        """Return how many other listeners can take the sockets over."""
        try:
            return await self._store.deregister()
        except errors.QueueUnavailable:
            return 0

    async def _hand_over(self) -> None:
        """Read on while other listeners take the sockets over: each new socket replaces the old one without a gap."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_seconds * _HANDOVER_PART):
                while self._pool.is_any_open:
                    await asyncio.sleep(_POLL_SECONDS)


def read_limits(config: settings.Listener) -> ReadLimits:
    """Return what one event socket may bring."""
    return ReadLimits(
        read_bytes=config.read_bytes,
        turn_frames=config.read_frames,
        turn_seconds=config.read_ms / 1000,
        frames_per_second=config.event_frames_per_second,
        bytes_per_second=config.event_bytes_per_second,
        message_bytes=config.event_message_bytes,
        lag_seconds=config.event_lag_seconds,
    )


async def _serve(config: settings.Listener) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop, number, config.drain_seconds)
    await Listener(config).run(stop)


def _stop_or_exit(stop: asyncio.Event, number: signal.Signals, drain_seconds: float) -> None:
    if stop.is_set():
        _log.warning("listener stopped at once by a second signal", signal=number.name)
        os._exit(128 + number)
    stop.set()
    asyncio.get_running_loop().call_later(drain_seconds + _LAST_RESORT_SECONDS, os._exit, 1)


def main() -> int:
    """Run until told to stop; return the exit status: 1 if it has failed, 2 if its settings are wrong."""
    try:
        config = settings.load(settings.Listener)
        logs.configure(config, "listener")
        logs.catch_all()
        metrics_server.start(config, Process.LISTENER)
        metrics_server.depends_on(dependencies.of(config))
        open_files.raise_limit(config.listener_capacity + _SPARE_FILES)
        memory.freeze()
        return _run(config)
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"listener: {exc}\n")
        return 2


def _run(config: settings.Listener) -> int:
    try:
        with registry.running(config, "listener"):
            uvloop.run(_serve(config))
    except errors.InvalidSettings:
        raise
    except Exception:  # noqa: BLE001 - logged by the registry; Python's own text would have secrets and numbers
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
