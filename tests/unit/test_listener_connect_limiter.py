"""A few connects at a time; one that never finishes does not block the others."""

import asyncio

from listener.connect_limiter import ConnectLimiter


async def at_work(limiter: ConnectLimiter, tasks: int, work: asyncio.Event) -> list[asyncio.Task[None]]:
    async def one() -> None:
        async with limiter.slot():
            started.append(1)
            await work.wait()

    started: list[int] = []
    running = [asyncio.create_task(one()) for _ in range(tasks)]
    await asyncio.sleep(0.02)
    assert len(started) == 2
    return running


def test_slots_are_limited_and_released() -> None:
    async def scene() -> None:
        limiter, work = ConnectLimiter(slots=2, slot_seconds=60), asyncio.Event()
        running = await at_work(limiter, 5, work)
        work.set()
        await asyncio.wait_for(asyncio.gather(*running), 1)
        # As many as before: none was released twice.
        for task in await at_work(limiter, 5, asyncio.Event()):
            task.cancel()

    asyncio.run(scene())


def test_a_slot_that_is_occupied_for_long_is_released_once() -> None:
    async def scene() -> None:
        limiter, work = ConnectLimiter(slots=2, slot_seconds=0.05), asyncio.Event()
        running = await at_work(limiter, 4, work)
        await asyncio.sleep(0.1)
        work.set()
        await asyncio.wait_for(asyncio.gather(*running), 1)
        for task in await at_work(limiter, 5, asyncio.Event()):
            task.cancel()

    asyncio.run(scene())
