"""Whose bytes are read next, with readers whose reads take as long as they say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from listener.read_turns import ReadTurns

TURN_SECONDS = 2.0


class Scene:
    """Turns whose clock is moved by the reads."""

    def __init__(self) -> None:
        self.now = 0.0
        self.later: deque[Callable[[], None]] = deque()
        self.pauses: list[float] = []
        self.turns = ReadTurns(TURN_SECONDS, self._later, lambda: self.now, lambda: self.now)
        self.order: list[str] = []

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        self.later.append(call)

    def end_turn(self) -> None:
        self.later.popleft()()


class Reader:
    """Has so many reads to do, of so many seconds each."""

    def __init__(self, scene: Scene, name: str, *, reads: int, seconds: float) -> None:
        self.name = name
        self.reads_behind = 0
        self.expected_seconds = 1.0
        self.reads = reads
        self._seconds = seconds
        self._scene = scene

    @property
    def is_caught_up(self) -> bool:
        return not self.reads

    def read_some(self) -> bool:
        self.reads -= 1
        self._scene.now += self._seconds
        self._scene.order.append(self.name)
        return self.reads > 0


def test_a_socket_is_read_at_once_while_nothing_waits() -> None:
    scene = Scene()
    reader = Reader(scene, "tenant", reads=1, seconds=0.3)
    assert scene.turns.ready(reader)
    assert scene.order == ["tenant"]
    assert reader.reads_behind == -1


def test_a_flood_leaves_the_event_loop_after_each_turn() -> None:
    scene = Scene()
    flood = Reader(scene, "flood", reads=1000, seconds=1.0)
    assert not scene.turns.ready(flood)
    for _ in range(3):
        assert len(scene.later) == 1
        before = scene.now
        scene.end_turn()
        assert scene.now - before == TURN_SECONDS


def test_reads_that_are_longer_than_a_turn_are_one_in_a_turn_and_leave_half_of_the_time() -> None:
    """The last byte of a large event, of a hundred sockets at once: each reads for long, and has no more to read."""
    scene = Scene()
    for number in range(100):
        scene.turns.ready(Reader(scene, f"flood {number}", reads=1, seconds=10.0))
    assert len(scene.order) == 1
    for _ in range(98):
        before = len(scene.order)
        scene.end_turn()
        assert len(scene.order) == before + 1
    assert scene.pauses == [10.0] * len(scene.pauses)


def test_a_read_that_was_interrupted_for_long_makes_a_pause_and_no_long_one() -> None:
    scene = Scene()
    scene.turns.ready(Reader(scene, "interrupted", reads=1, seconds=1000.0))
    scene.turns.ready(Reader(scene, "next", reads=1, seconds=0.3))
    assert scene.order == ["interrupted"]
    assert scene.pauses == [25 * TURN_SECONDS]


def test_a_socket_that_sends_little_waits_for_one_read_of_another_however_many_flood() -> None:
    scene = Scene()
    for number in range(100):
        scene.turns.ready(Reader(scene, f"flood {number}", reads=1000, seconds=1.0))
    for _ in range(200):
        scene.end_turn()
    tenant = Reader(scene, "tenant", reads=3, seconds=0.3)
    assert not scene.turns.ready(tenant)
    scene.order.clear()
    scene.end_turn()
    assert scene.order == ["tenant", "tenant", "tenant", *scene.order[3:]]


def test_a_known_socket_goes_before_a_hundred_new_ones() -> None:
    scene = Scene()
    tenant = Reader(scene, "tenant", reads=1, seconds=0.3)
    scene.turns.ready(tenant)
    for number in range(100):
        scene.turns.ready(Reader(scene, f"flood {number}", reads=1000, seconds=1.0))
    tenant.reads = 1
    scene.turns.ready(tenant)
    scene.order.clear()
    scene.end_turn()
    assert scene.order[0] == "tenant"


def test_floods_share_the_time_equally() -> None:
    scene = Scene()
    floods = [Reader(scene, f"flood {number}", reads=1000, seconds=1.0) for number in range(5)]
    for flood in floods:
        scene.turns.ready(flood)
    for _ in range(50):
        scene.end_turn()
    left = [flood.reads for flood in floods]
    assert max(left) - min(left) <= 1


def test_the_reader_that_is_reading_is_named() -> None:
    scene = Scene()
    seen: list[str] = []

    class Curious(Reader):
        def read_some(self) -> bool:
            seen.append(scene.turns.reading)
            return super().read_some()

    scene.turns.ready(Curious(scene, "7:2", reads=1, seconds=0.1))
    assert (seen, scene.turns.reading) == (["7:2"], "")


def test_a_tenant_whose_read_was_interrupted_for_long_still_goes_first() -> None:
    scene = Scene()
    tenant = Reader(scene, "tenant", reads=2, seconds=500.0)
    scene.turns.ready(tenant)
    for number in range(3):
        scene.turns.ready(Reader(scene, f"flood {number}", reads=1000, seconds=1.0))
    for _ in range(6):
        scene.end_turn()
    assert tenant.reads == 0


def test_a_tenant_that_kept_up_keeps_up_though_it_has_more_to_read_than_an_equal_share() -> None:
    scene = Scene()
    tenant = Reader(scene, "tenant", reads=0, seconds=0.3)
    for _ in range(20):
        tenant.reads = 1
        scene.turns.ready(tenant)
        scene.now += 10
    for number in range(100):
        scene.turns.ready(Reader(scene, f"flood {number}", reads=1000, seconds=1.0))
    tenant.reads = 10
    scene.turns.ready(tenant)
    scene.end_turn()
    scene.end_turn()
    assert tenant.reads == 0
