"""The core's commands as messages: enqueued for now, or for after their pause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from shared import messages, queues
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
