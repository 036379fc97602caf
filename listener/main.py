"""The listener: `python -m listener.main`. Holds event sockets and pushes what they bring; decides nothing.

SIGTERM or SIGINT ends it within DRAIN_SECONDS, a second one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import resource
import signal
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from listener import event_socket, tasks, websocket
from listener.assignment_lease import Standing
from listener.buffer import Buffer
from listener.clocks import RedisClock
from listener.connect_limiter import Turns
from listener.heartbeats import Heartbeats
from listener.publisher import Pushes
from listener.redis_store import Store
from listener.socket_pool import Holdings
from shared import errors
from shared.asterisk import tls
from shared.process import health, logs, settings

_log = structlog.stdlib.get_logger(__name__)

#: Of the drain, at most: for others to take our sockets over before we close them.
_HAND_OVER_PART = 0.6
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 0.2
#: The process ends this long after the drain, whatever has gone wrong.
_LAST_RESORT_SECONDS = 10.0
#: Of the time after which we count as dead: for so long after a heartbeat we may open sockets.
_STANDING_PART = 0.75
#: Names are resolved in threads: a few dead name servers must not hold up the others.
_RESOLVERS = 64
_SPARE_FILES = 200


class _Resolvers(ThreadPoolExecutor):
    """Threads that resolve names; nobody waits for them at the end, a name server may take half a minute."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


class Listener:
    """One listener, wired. Make it inside the event loop.

    Args:
        chance: Uniform in [0, 1); a parameter for tests.
    """

    def __init__(self, config: settings.Listener, jitter: Callable[[], float] = random.random) -> None:
        # Reads every authority of the system: here, not when the first socket is opened.
        tls.context(None)
        self.id = f"{config.name}-{uuid.uuid4().hex[:8]}"
        self._config = config
        self._store = Store(
            config.redis_url.get_secret_value(),
            self.id,
            capacity=config.listener_capacity,
            timeout_seconds=config.listener_timeout_seconds,
        )
        self._buffer = Buffer(capacity=config.listener_buffer, share=config.listener_buffer_share)
        self._standing = Standing(config.listener_timeout_seconds * _STANDING_PART)
        clock = RedisClock()
        self._holdings = Holdings(
            event_socket.Surroundings(
                open_wire=functools.partial(websocket.open_wire, rule=config.guard()),
                unseal=config.sealer().open,
                buffer=self._buffer,
                clock=clock,
                standing=self._standing,
                turns=Turns(),
                jitter=jitter,
                id_prefix=config.id_prefix,
            )
        )
        heartbeats = Heartbeats(
            self._store,
            holdings=self._holdings,
            buffer=self._buffer,
            clock=clock,
            standing=self._standing,
            interval_seconds=config.heartbeat_seconds,
            capacity=config.listener_capacity,
        )
        pushes = Pushes(self._store, self._buffer, jitter)
        self._heartbeats = functools.partial(tasks.supervise, "heartbeats", heartbeats.run, jitter)
        self._pushes = functools.partial(tasks.supervise, "pushes", pushes.run, jitter)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then leaves, in DRAIN_SECONDS at most."""
        _log.info("listening", listener=self.id)
        heartbeats = asyncio.create_task(self._heartbeats(), name="heartbeats")
        pushes = asyncio.create_task(self._pushes(), name="pushes")
        pulse = asyncio.create_task(self._pulse(), name="pulse")
        try:
            await stop.wait()
            deadline = asyncio.get_running_loop().time() + self._config.drain_seconds
            await tasks.end([heartbeats], patience_seconds=_PATIENCE_SECONDS)
            async with asyncio.timeout_at(deadline):
                await self._leave(deadline)
            _log.info("stopped")
        except TimeoutError:
            _log.warning("stopped before all was done", events_lost=self._buffer.held)
        finally:
            await self._holdings.close()
            await tasks.end([heartbeats, pushes, pulse], patience_seconds=_PATIENCE_SECONDS)
            with contextlib.suppress(TimeoutError, OSError):
                await self._store.close()

    async def _pulse(self) -> None:
        """While the event loop turns."""
        pulse = health.Liveness(self._config.health_file)
        while True:
            pulse.touch()
            await asyncio.sleep(health.TOUCH_SECONDS)

    async def _leave(self, deadline: float) -> None:
        """Hands over, closes, flushes, and is gone."""
        _log.info("stopping", sockets=len(self._holdings.held), events_waiting=self._buffer.held)
        self._standing.revoke()
        if await self._others():
            await self._hand_over()
        await self._holdings.close()
        while self._buffer.held:
            # By the clock: a cancellation can get lost in redis (`supervision.end`).
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError
            await asyncio.sleep(_POLL_SECONDS)
        with contextlib.suppress(errors.QueueUnavailable):
            await self._store.remove_reports()

    async def _others(self) -> int:
        try:
            return await self._store.leave()
        except errors.QueueUnavailable:
            return 0

    async def _hand_over(self) -> None:
        """Reads on while the scheduler gives our connections to others: each new socket replaces ours without a gap."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_seconds * _HAND_OVER_PART):
                while self._holdings.is_any_open:
                    await asyncio.sleep(_POLL_SECONDS)


async def _serve(config: settings.Listener) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_Resolvers(_RESOLVERS, thread_name_prefix="resolver"))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop, number, config.drain_seconds)
    await Listener(config).run(stop)


def _stop_or_exit(stop: asyncio.Event, number: signal.Signals, drain_seconds: float) -> None:
    if stop.is_set():
        _log.warning("stopped at once by a second signal", signal=number.name)
        os._exit(128 + number)
    stop.set()
    asyncio.get_running_loop().call_later(drain_seconds + _LAST_RESORT_SECONDS, os._exit, 1)


def _raise_file_limit(needed: int) -> None:
    """Every socket is an open file, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        _log.warning("the limit of open files is below LISTENER_CAPACITY", limit=wanted, needed=needed)


def main() -> int:
    """Runs until told to stop; gives the exit status."""
    try:
        config = settings.load(settings.Listener)
        logs.configure(config, "listener")
        _raise_file_limit(config.listener_capacity + _SPARE_FILES)
        asyncio.run(_serve(config))
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"listener: {exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: it would wait for the resolvers.
    os._exit(status)
