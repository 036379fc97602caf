"""Background tasks: restarted with back-off when they crash, and reliably cancelled at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from listener import backoff

_log = structlog.stdlib.get_logger(__name__)

_SLOWEST_SECONDS = 60.0
_CANCELLATIONS = 5


async def supervise(name: str, run: Callable[[], Awaitable[None]], jitter: Callable[[], float]) -> None:
    """Await `run()`, again whenever it raises; return when it returns."""
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        started = loop.time()
        try:
            return await run()
        except Exception:  # noqa: BLE001 - whatever it is, it must not end the task
            if loop.time() - started >= _SLOWEST_SECONDS:
                failures = 0
            failures += 1
            delay_seconds = backoff.delay_seconds(failures, jitter(), slowest=_SLOWEST_SECONDS)
            _log.exception("task crashed", task=name, retry_seconds=round(delay_seconds, 1))
            await asyncio.sleep(delay_seconds)


async def end(tasks: Iterable[asyncio.Task[None]], *, patience_seconds: float) -> None:
    """Cancel the tasks and wait until they have ended, in bounded time.

    Cancels more than once if need be: in Python 3.11 asyncio.wait_for, which redis uses, swallows a cancellation that
    arrives just when the awaited future is done.

    Args:
        patience_seconds: How long a task may take to clean up before it is cancelled again.
    """
    pending = {task for task in tasks if not task.done()}
    for _ in range(_CANCELLATIONS):
        if not pending:
            return
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=patience_seconds)
