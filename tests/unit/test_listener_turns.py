"""A few at a time, and nobody waits for those who never finish."""

import asyncio

from listener.connect_limiter import Turns


async def at_work(turns: Turns, tasks: int, work: asyncio.Event) -> list[asyncio.Task[None]]:
    async def one() -> None:
        async with turns.turn():
            started.append(1)
            await work.wait()

    started: list[int] = []
    running = [asyncio.create_task(one()) for _ in range(tasks)]
    await asyncio.sleep(0.02)
    assert len(started) == 2
    return running


def test_turns_are_few_and_given_back() -> None:
    async def scene() -> None:
        turns, work = Turns(at_once=2, hold_seconds=60), asyncio.Event()
        running = await at_work(turns, 5, work)
        work.set()
        await asyncio.wait_for(asyncio.gather(*running), 1)
        # As many as before: none was given back twice.
        for task in await at_work(turns, 5, asyncio.Event()):
            task.cancel()

    asyncio.run(scene())


def test_a_turn_that_takes_long_is_given_to_the_next_once() -> None:
    async def scene() -> None:
        turns, work = Turns(at_once=2, hold_seconds=0.05), asyncio.Event()
        running = await at_work(turns, 4, work)
        await asyncio.sleep(0.1)
        work.set()
        await asyncio.wait_for(asyncio.gather(*running), 1)
        for task in await at_work(turns, 5, asyncio.Event()):
            task.cancel()

    asyncio.run(scene())
