"""Redis as the scheduler and the workers use it: assignments written, reports and messages read."""

from __future__ import annotations

from typing import Any

from shared import assignments, keys
from shared.assignments import Assignment, Report, SocketState
from tests.support import queued


class SchedulerSide:
    """The scheduler's side of a Redis, real or fake.

    Args:
        client: Not closed here.
    """

    def __init__(self, client: Any) -> None:
        self.redis = client

    def assign(self, listener_id: str, *assigned: Assignment) -> None:
        pipe = self.redis.pipeline(transaction=True)
        pipe.delete(keys.assignments(listener_id))
        for each in assigned:
            pipe.hset(keys.assignments(listener_id), each.key, assignments.encode(each))
        pipe.incr(keys.revision(listener_id))
        pipe.execute()

    def report(self, listener_id: str, assignment: Assignment) -> Report | None:
        text = self.redis.hget(keys.reports(listener_id), assignment.key)
        return None if text is None else assignments.decode_report(text)

    def is_connected(self, listener_id: str, assignment: Assignment) -> bool:
        report = self.report(listener_id, assignment)
        return report is not None and (report.state, report.epoch) == (SocketState.CONNECTED, assignment.epoch)

    def pushed(self, queue: str) -> list[dict[str, Any]]:
        return [message["kwargs"] for message in queued.messages(self.redis, queue)]

    def callers(self) -> list[str]:
        return [body["event"]["channel"]["id"] for body in self.pushed("admission")]

    def resyncs(self) -> list[tuple[int, str]]:
        return [(body["connection_id"], body["reason"]) for body in self.pushed("resync")]
