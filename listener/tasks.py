"""Tasks that are meant to run for ever: one that dies is logged and started again, and takes no other with it.

And their end, which is certain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from listener import backoff

_log = structlog.stdlib.get_logger(__name__)

_SLOWEST_SECONDS = 60.0
_CANCELLATIONS = 5


async def supervise(name: str, run: Callable[[], Awaitable[None]], jitter: Callable[[], float]) -> None:
    """Awaits `run()`, again whenever it raises; ends when it returns."""
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
            _log.exception("a task died, it is started again", task=name, retry_seconds=round(delay_seconds, 1))
            await asyncio.sleep(delay_seconds)


async def end(tasks: Iterable[asyncio.Task[None]], *, patience_seconds: float) -> None:
    """Cancels the tasks and waits until they have ended, in bounded time.

    More than once if need be: in Python 3.11 asyncio.wait_for, which redis uses, swallows a cancellation that comes
    just when what it waits for is done.

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
