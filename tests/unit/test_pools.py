"""How a worker's threads are divided into pools, and which steps each pool goes on to."""

from __future__ import annotations

from typing import Any

import pytest

from shared import messages
from shared.call.steps import Step
from shared.process import settings
from workers import pools


def test_every_queue_has_one_pool() -> None:
    served = [queue for own in pools.POOLS.values() for queue in own]
    assert sorted(served) == sorted(messages.QUEUES)


def test_every_pool_has_a_setting_for_its_threads() -> None:
    config = settings.Worker.model_validate(
        {"redis_url": "redis://h", "secret_key": "x" * 16, "database_url": "postgresql://h/d"}
    )
    assert set(config.pool_threads) == set(pools.POOLS)


def test_a_call_that_was_begun_is_finished_before_another_is_begun() -> None:
    set_up = [queue for queue in messages.QUEUES if queue in pools.POOLS["set-up"]]
    assert set_up == ["bridge", "media", "runs", "admission", "originate"]


def test_a_pool_goes_on_to_the_steps_of_its_queues_and_a_resync_to_none() -> None:
    served = {name: pools.served_steps(own) for name, own in pools.POOLS.items()}
    assert served == {
        "set-up": frozenset(Step) - {Step.TEARDOWN},
        "teardown": frozenset({Step.TEARDOWN}),
        "resync": frozenset(),
    }


class Pool:
    def __init__(self, sessions: int) -> None:
        self.sessions = sessions


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([1, 1, 1], 60),
        ([3, 3, 3], 60),
        ([12, 12, 11], 15),
        # This one serves the teardown queue only; beside it are three that serve all.
        ([10], 6),
        ([300, 300, 300], 0),
        ([], 0),
    ],
)
def test_a_process_has_as_many_parts_of_a_whole_as_it_has_pools(known: list[int], expected: int) -> None:
    made = [Pool(sessions) for sessions in known]
    assert pools.share(made, 60) == expected  # type: ignore[arg-type]


class Alive:
    """A pool whose session has counted as alive since a moment."""

    def __init__(self, since: float) -> None:
        self._since = since

    def lives_since(self, moment: float) -> bool:
        return self._since <= moment


def test_a_process_lives_as_long_as_one_of_its_pools() -> None:
    running: list[Any] = [Alive(3.0), Alive(7.0)]
    assert [pools.lives_since(running, moment) for moment in (2.0, 3.0, 8.0)] == [False, True, True]
    assert not pools.lives_since([], 8.0)
