"""A worker's pools on a real Redis: a backlog in one does not delay the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import dramatiq
import pytest

from shared import messages, queues
from shared.call.steps import Step
from shared.storage.call_store import CallStore
from tests.support import worker_harness
from workers import actors, pools
from workers.step_ports import Handler

pytestmark = pytest.mark.services


class Scene:
    """A worker whose handlers note their messages, and wait where the test wants them to."""

    def __init__(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, int]] = []
        self.released = threading.Event()
        self.serves: list[frozenset[Step]] = []
        self.blocks: Callable[[str, int], bool] = lambda actor, connection_id: False
        self._lock = threading.Lock()
        self.blocked = 0
        monkeypatch.setattr(actors, "_READERS", dict.fromkeys(messages.ACTORS, _read))
        self.broker = queues.broker(redis_url)
        self._pools: list[pools.WorkerPool] = []
        self._url = redis_url

    def start(self, *served: str) -> None:
        self._pools = pools.build_pools(
            self._url,
            self._handlers,
            store=cast(CallStore, None),
            name="worker",
            served=frozenset(served),
            threads={"set-up": 4, "teardown": 2, "resync": 1},
        )
        for pool in self._pools:
            pool.start()

    def _handlers(self, serves: frozenset[Step], _tag: str) -> Mapping[str, Handler]:
        self.serves.append(serves)
        return {actor: partial(self._handle, actor) for actor in messages.ACTORS}

    def _handle(self, actor: str, *, connection_id: int) -> None:
        if self.blocks(actor, connection_id):
            with self._lock:
                self.blocked += 1
            assert self.released.wait(30)
        self.ran.append((actor, connection_id))

    def send(self, actor: str, connection_id: int, *, times: int = 1) -> None:
        for _ in range(times):
            self.broker.enqueue(
                dramatiq.Message(
                    queue_name=messages.ACTORS[actor],
                    actor_name=actor,
                    args=(),
                    kwargs={"v": messages.VERSION, "connection_id": connection_id},
                    options={"group": connection_id},
                )
            )

    def wait(self, actor: str, number: int, *, connection_id: int) -> None:
        worker_harness.until(
            lambda: self.ran.count((actor, connection_id)) >= number, seconds=10, what=lambda: f"ran: {self.ran}"
        )

    def close(self) -> float:
        self.released.set()
        began = time.monotonic()
        pools.stop(self._pools, 10)
        self.broker.close()
        return time.monotonic() - began


def _read(body: dict[str, Any]) -> dict[str, Any]:
    return {"connection_id": body["connection_id"]}


@pytest.fixture
def scene(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(redis_url, monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("flood", ["tear_down", "resync_connection"])
def test_a_flood_that_hangs_delays_no_set_up(scene: Scene, flood: str) -> None:
    scene.blocks = lambda actor, connection_id: actor == flood
    for connection_id in range(50):
        scene.send(flood, connection_id, times=4)
    scene.start()
    for actor in ("caller_entered", "create_run", "start_media", "join_legs"):
        scene.send(actor, 99, times=5)
        scene.wait(actor, 5, connection_id=99)
    assert (flood, 0) not in scene.ran


def test_an_asterisk_that_hangs_delays_no_other_tenant(scene: Scene) -> None:
    """Its messages wait in the queues that the other tenants need, too."""
    scene.blocks = lambda actor, connection_id: connection_id == 1
    scene.send("start_media", 1, times=30)
    scene.send("join_legs", 1, times=30)
    scene.start()
    worker_harness.until(lambda: scene.blocked == 3, seconds=5, what="not begun")
    for actor in ("caller_entered", "create_run", "start_media", "join_legs"):
        scene.send(actor, 2, times=5)
        scene.wait(actor, 5, connection_id=2)
    assert scene.blocked == 3
    scene.released.set()
    scene.wait("join_legs", 30, connection_id=1)


def test_threads_go_on_to_the_steps_of_their_pool_and_a_resync_to_none(scene: Scene) -> None:
    scene.start()
    set_up = frozenset({Step.BRIDGE, Step.MEDIA, Step.RUNS, Step.ADMISSION, Step.ORIGINATE})
    assert scene.serves == [set_up, frozenset({Step.TEARDOWN}), frozenset()]


def test_a_worker_serves_the_queues_of_its_setting_and_no_others(scene: Scene) -> None:
    scene.start("media", "teardown")
    assert scene.serves == [frozenset({Step.MEDIA}), frozenset({Step.TEARDOWN})]
    scene.send("join_legs", 1)
    scene.send("start_media", 1)
    scene.send("tear_down", 1)
    scene.wait("start_media", 1, connection_id=1)
    scene.wait("tear_down", 1, connection_id=1)
    assert scene.broker.count(["bridge"])["bridge"].waiting == 1


def test_pools_stop_at_the_same_time(scene: Scene) -> None:
    scene.start()
    scene.send("tear_down", 1)
    scene.wait("tear_down", 1, connection_id=1)
    assert scene.close() < 8
