"""A background task that crashes is restarted; every task ends at shutdown."""

import asyncio

from listener.tasks import end, supervise


def test_a_task_that_crashes_is_restarted_until_it_returns() -> None:
    runs: list[int] = []

    async def run() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            raise RuntimeError("unexpected")

    asyncio.run(asyncio.wait_for(supervise("test", run, lambda: 0.0), 1))
    assert runs == [0, 1, 2]


def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    async def scene() -> None:
        swallowed: list[int] = []

        async def run() -> None:
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    if swallowed:
                        raise
                    swallowed.append(1)

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        await asyncio.wait_for(end([task], patience_seconds=0.01), 1)
        assert task.cancelled()
        assert swallowed

    asyncio.run(scene())


def test_ending_is_bounded() -> None:
    async def scene() -> None:
        over = asyncio.Event()

        async def run() -> None:
            while not over.is_set():
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        await asyncio.wait_for(end([task], patience_seconds=0.01), 1)
        assert not task.done()
        over.set()
        task.cancel()
        await task

    asyncio.run(scene())
