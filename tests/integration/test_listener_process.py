"""The listener's process: its settings, its end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from devstack import servers
from shared import keys
from shared.assignments import Assignment
from tests.support.listener_harness import (
    PASSWORD,
    SEALER,
    SECRET_KEY,
    Asterisk,
    Scheduler,
    assignment,
    connected,
    listening,
    stasis_start,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


def test_a_stopping_listener_hands_its_sockets_over(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:
            async with listening(scheduler.url) as staying:
                leaving = listening(scheduler.url, drain_seconds=10.0)
                left = await leaving.__aenter__()
                ours = assignment(pbx)
                await connected(scheduler, left, ours)
                stopping = asyncio.create_task(leaving.__aexit__(None, None, None))
                await until(lambda: scheduler.redis.zscore(keys.LISTENERS, left.id) is None, "deregistered")
                await pbx.send(stasis_start("in between"))
                assert not pbx.closed
                await connected(scheduler, staying, replace(ours, epoch=2))
                # At once, not only at the end of the time for it.
                await asyncio.wait_for(stopping, 1)
                assert pbx.closed == [pbx.sockets[0]]
                assert scheduler.callers() == ["in between"]
            assert len(pbx.asked) == 2

    play(scene())


def test_stopping_is_bounded_while_redis_is_unavailable(killable_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(killable_redis.url)
        async with Asterisk() as pbx:
            leaving = listening(scheduler.url, drain_seconds=1.0)
            listener = await leaving.__aenter__()
            await connected(scheduler, listener, assignment(pbx))
            await asyncio.to_thread(killable_redis.kill)
            await pbx.send(stasis_start("nowhere to go"))
            await asyncio.wait_for(leaving.__aexit__(None, None, None), 2.5)
            assert len(pbx.closed) == 1
        scheduler.redis.close()

    play(scene())


async def spawn(redis_url: str | None, **environment: str) -> asyncio.subprocess.Process:
    ours = {"SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "debug", "PYTHONPATH": str(ROOT), "HEARTBEAT_SECONDS": "0.2"}
    if redis_url is not None:
        ours["REDIS_URL"] = redis_url
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "listener.main"),
        cwd="/",
        env={"PATH": os.environ["PATH"], **ours, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def with_process(
    redis_url: str, act: Callable[[asyncio.subprocess.Process], Awaitable[None]], **environment: str
) -> tuple[int, str]:
    """Run the process; return its exit status and its output."""
    process = await spawn(redis_url, **environment)
    try:
        await act(process)
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def test_sigterm_ends_the_process_cleanly_and_no_secret_was_logged(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:

            async def act(process: asyncio.subprocess.Process) -> None:
                await until(lambda: scheduler.redis.zcard(keys.LISTENERS) == 1, "heartbeat", seconds=20)
                listener_id = scheduler.redis.zrange(keys.LISTENERS, 0, -1)[0].decode()
                assert listener_id.startswith("one-")
                wrong = replace(assignment(pbx, 2), sealed_password=SEALER.seal("hunter2-hunter2"))
                scheduler.assign(listener_id, assignment(pbx), wrong)
                await until(lambda: scheduler.is_connected(listener_id, assignment(pbx)), "connected")
                await pbx.send("garbage")
                await pbx.send(stasis_start("last"))
                # Its pong comes after what was sent before: the event was read, and may still be on its way to Redis.
                await (await pbx.newest.ping())
                process.send_signal(signal.SIGTERM)

            status, output = await with_process(scheduler.url, act, PROCESS_NAME="one")
            assert status == 0
            assert scheduler.callers() == ["last"]
            assert scheduler.redis.zcard(keys.LISTENERS) == 0
            assert not list(scheduler.redis.scan_iter("ari:reports:*"))
            assert len(pbx.closed) == 1
            assert pbx.closed[0].close_code == 1000
            secrets = [PASSWORD, "hunter2-hunter2", SECRET_KEY, scheduler.url.split("@")[0].split(":")[-1]]
            secrets += [request.headers["Authorization"].split()[1] for request in pbx.asked]
            assert not [secret for secret in secrets if secret in output]
            assert "socket connected" in output
            assert "Traceback" not in output

    play(scene())


def test_a_second_signal_ends_the_process_at_once(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:

            async def act(process: asyncio.subprocess.Process) -> None:
                await until(lambda: scheduler.redis.zcard(keys.LISTENERS) == 1, "heartbeat", seconds=20)
                listener_id = scheduler.redis.zrange(keys.LISTENERS, 0, -1)[0].decode()
                # Another listener, so that the first signal waits for a hand-over that never happens.
                seconds, _ = scheduler.redis.time()
                scheduler.redis.zadd(keys.LISTENERS, {"other": (seconds + 60) * 1000})
                await connected_process(scheduler, listener_id, assignment(pbx))
                process.send_signal(signal.SIGTERM)
                await until(lambda: scheduler.redis.zscore(keys.LISTENERS, listener_id) is None, "deregistered")
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(1):
                    await process.wait()

            status, _ = await with_process(scheduler.url, act)
            assert status == 128 + signal.SIGTERM

    play(scene())


async def connected_process(scheduler: Scheduler, listener_id: str, assigned: Assignment) -> None:
    scheduler.assign(listener_id, assigned)
    await until(lambda: scheduler.is_connected(listener_id, assigned), "connected")


@pytest.mark.parametrize(
    ("redis_url", "complaint"), [(None, "REDIS_URL: is not set"), ("redis://:hunter2@host:port/0", "not a usable URL")]
)
def test_wrong_settings_are_explained(redis_url: str | None, complaint: str) -> None:
    async def scene() -> None:
        process = await spawn(redis_url)
        output, _ = await asyncio.wait_for(process.communicate(), 8)
        assert process.returncode == 2
        assert complaint in output.decode()
        assert "Traceback" not in output.decode()
        assert "hunter2" not in output.decode()

    play(scene())
