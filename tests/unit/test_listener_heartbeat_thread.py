"""When the thread beside the event loop sends a heartbeat."""

from __future__ import annotations

from listener.heartbeat_thread import HeartbeatThread
from shared import errors


class Scene:
    """A heartbeat thread at a time of the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[str] = []
        self.available = True
        self.thread = HeartbeatThread(
            self._send, lambda: "7:2", interval_seconds=0.5, silent_seconds=2.0, monotonic=lambda: self.now
        )

    def _send(self, suspect: str) -> None:
        if not self.available:
            raise errors.QueueUnavailable("away")
        self.sent.append(suspect)


def test_a_busy_event_loop_does_not_hold_up_the_heartbeats() -> None:
    scene = Scene()
    for seconds in (0.0, 0.9):
        scene.now = 100.0 + seconds
        scene.thread.beat()
    assert scene.sent == ["", ""]


def test_an_event_loop_that_has_stopped_does_not_look_alive() -> None:
    scene = Scene()
    scene.now += 2.1
    scene.thread.beat()
    assert scene.sent == []
    scene.thread.note_turn()
    scene.thread.beat()
    assert scene.sent == [""]


def test_the_socket_that_holds_up_the_event_loop_is_named_before_the_heartbeats_stop() -> None:
    scene = Scene()
    scene.now += 1.5
    scene.thread.beat()
    assert scene.sent == ["7:2"]
    scene.thread.note_turn()
    scene.thread.beat()
    assert scene.sent == ["7:2", ""]


def test_a_redis_that_is_away_ends_no_heartbeats() -> None:
    scene = Scene()
    scene.available = False
    scene.thread.beat()
    scene.available = True
    scene.thread.beat()
    assert scene.sent == [""]
