"""Scenes: asynchronous tests, bounded in time, that poll for what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene to its end, in 20 s at most."""
    asyncio.run(asyncio.wait_for(scene, 20))


async def until(holds: Callable[[], bool], what: str, *, seconds: float = 6.0) -> None:
    """Wait until the condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)
