"""A worker's crews on a real Redis: what happens to one is nothing to the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest

from shared import messages, queues
from shared.call.steps import Step
from tests.support import worker_harness
from workers import actors, pools

pytestmark = pytest.mark.services


class Scene:
    """A worker whose steps note what they are given, and wait where the test wants them to."""

    def __init__(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, int]] = []
        self.held = threading.Event()
        self.serves: list[frozenset[Step]] = []
        self.holds: Callable[[str, int], bool] = lambda actor, connection_id: False
        self._lock = threading.Lock()
        self.at_work = 0
        monkeypatch.setattr(actors, "ACTORS", {name: (_read, self._step(name)) for name in messages.ACTORS})
        self.broker = queues.broker(redis_url)
        self._mustered: list[pools.WorkerPool] = []
        self._url = redis_url

    def start(self, *served: str) -> None:
        self._mustered = pools.muster(
            self._url,
            self._tools,
            name="worker",
            served=frozenset(served),
            threads={"set-up": 4, "teardown": 2, "resync": 1},
        )
        for crew in self._mustered:
            crew.start()

    def _tools(self, serves: frozenset[Step]) -> Any:
        self.serves.append(serves)
        return SimpleNamespace(writer=SimpleNamespace(store=None))

    def _step(self, actor: str) -> Callable[..., None]:
        def step(tools: Any, *, connection_id: int) -> None:
            if self.holds(actor, connection_id):
                with self._lock:
                    self.at_work += 1
                assert self.held.wait(30)
            self.ran.append((actor, connection_id))

        return step

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
        self.held.set()
        began = time.monotonic()
        pools.stop(self._mustered, 10)
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
def test_a_flood_that_hangs_holds_up_no_set_up(scene: Scene, flood: str) -> None:
    scene.holds = lambda actor, connection_id: actor == flood
    for connection_id in range(50):
        scene.send(flood, connection_id, times=4)
    scene.start()
    for actor in ("caller_entered", "create_run", "start_media", "join_legs"):
        scene.send(actor, 99, times=5)
        scene.wait(actor, 5, connection_id=99)
    assert (flood, 0) not in scene.ran


def test_an_asterisk_that_hangs_holds_up_no_other_tenant(scene: Scene) -> None:
    """Its steps are all of a kind that others need as well."""
    scene.holds = lambda actor, connection_id: connection_id == 1
    scene.send("start_media", 1, times=30)
    scene.send("join_legs", 1, times=30)
    scene.start()
    worker_harness.until(lambda: scene.at_work == 3, seconds=5, what="not begun")
    for actor in ("caller_entered", "create_run", "start_media", "join_legs"):
        scene.send(actor, 2, times=5)
        scene.wait(actor, 5, connection_id=2)
    assert scene.at_work == 3
    scene.held.set()
    scene.wait("join_legs", 30, connection_id=1)


def test_threads_go_on_to_the_steps_they_serve_and_a_resync_to_none(scene: Scene) -> None:
    scene.start()
    set_up = frozenset({Step.BRIDGE, Step.MEDIA, Step.RUNS, Step.ADMISSION, Step.ORIGINATE})
    assert scene.serves == [set_up, frozenset({Step.TEARDOWN}), frozenset()]


def test_a_worker_serves_the_queues_it_is_told_and_no_others(scene: Scene) -> None:
    scene.start("media", "teardown")
    assert scene.serves == [frozenset({Step.MEDIA}), frozenset({Step.TEARDOWN})]
    scene.send("join_legs", 1)
    scene.send("start_media", 1)
    scene.send("tear_down", 1)
    scene.wait("start_media", 1, connection_id=1)
    scene.wait("tear_down", 1, connection_id=1)
    assert scene.broker.count(["bridge"])["bridge"].waiting == 1


def test_crews_stop_side_by_side(scene: Scene) -> None:
    scene.start()
    scene.send("tear_down", 1)
    scene.wait("tear_down", 1, connection_id=1)
    assert scene.close() < 8
