"""A server's event loop in a thread of its own, for tests that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_START_SECONDS = 15


class LoopThread(Generic[T]):
    """Runs an asynchronous context in a thread, from `start()` to `stop()`."""

    def __init__(self, name: str, serving: AbstractAsyncContextManager[T]) -> None:
        self._serving = serving
        self._ready: Future[T] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def start(self) -> T:
        """Enter the context and return what it yields; what it raises is raised."""
        self._thread.start()
        return self._ready.result(timeout=_START_SECONDS)

    def stop(self) -> None:
        """Leave the context."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=_START_SECONDS)

    def run(self, work: Coroutine[Any, Any, R], *, seconds: float = 150) -> R:
        """Run a coroutine in the loop and return its result."""
        assert self._loop is not None, "it was not started"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=seconds)

    async def _work(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._serving as served:
                self._ready.set_result(served)
                await self._stop.wait()
        except BaseException as exc:
            if self._ready.done():
                raise
            self._ready.set_exception(exc)
