"""The core's commands as messages: enqueued for now, or for after their pause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
import redis

from shared import errors, messages, queues
from shared.call import commands
from tests.support.calls import CALL_ID


class Broker:
    """Notes what is enqueued, and for when."""

    def __init__(self) -> None:
        self.enqueued: list[tuple[str, int | None]] = []

    def enqueue(self, message: messages.Message, *, delay: int | None = None) -> None:
        self.enqueued.append((message.actor_name, delay))


def test_a_command_with_a_pause_is_delivered_after_it() -> None:
    broker = Broker()
    start = commands.StartMedia(call_id=CALL_ID, attempt=1)
    later = commands.StartMedia(call_id=CALL_ID, attempt=2, pause=timedelta(seconds=0.5))
    queues.BrokerCommandQueue(cast(Any, broker)).enqueue([start, later], connection_id=7)
    assert broker.enqueued == [("start_media", None), ("start_media", 500)]


class Sessions:
    """A broker with these sessions; raises what it is given instead."""

    def __init__(self, found: list[str] | redis.RedisError | None) -> None:
        self._found = found

    def live_sessions(self) -> list[str] | None:
        if isinstance(self._found, redis.RedisError):
            raise self._found
        return self._found


def test_a_worker_lives_as_long_as_one_of_its_sessions() -> None:
    sessions = ["w.1/0a/set-up/77-88", "w.1/0a/resync/99-aa", "w.2/1b/teardown/bb-cc", "early/set-up/dd-ee"]
    assert queues.LiveWorkers(cast(Any, Sessions(sessions))).names() == frozenset({"w.1/0a", "w.2/1b", "early"})
    assert queues.LiveWorkers(cast(Any, Sessions(None))).names() is None, "not known"
    with pytest.raises(errors.QueueUnavailable, match="ConnectionError: away"):
        queues.LiveWorkers(cast(Any, Sessions(redis.ConnectionError("away")))).names()
