"""What the answers to both creating requests come to: a refusal settles nothing while the other is unknown."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors, messages
from shared.asterisk import rest
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Direction, State
from workers import asterisks, media

NOW = datetime(2026, 5, 1, tzinfo=UTC)
CALL = Call(
    call_id=UUID(int=1),
    connection_id=1,
    connection_version=1,
    organization_id=1,
    channel_id="1.1",
    channel_created="c",
    entry=1,
    direction=Direction.INBOUND,
    state=State.PREPARED,
    received_at=NOW,
    state_since=NOW,
    deadline_at=NOW,
    attempt=1,
    workflow_id=1,
    user_id=2,
    workflow_run_id=3,
    media_client="media",
)
REFUSED = errors.AsteriskRefused(400, "no such client")
UNKNOWN = errors.AsteriskUnreachable("no answer in time")


class Asterisk:
    """Answers each creating request as told, and remembers it."""

    def __init__(self, of_media: errors.PipelineError | None, of_bridge: errors.PipelineError | None) -> None:
        self._media, self._bridge = of_media, of_bridge
        self.asked: list[tuple[str, dict[str, str]]] = []

    def create_media(self, channel_id: str, *, client: str, parameters: dict[str, str]) -> None:
        self.asked.append((channel_id, parameters))
        if self._media is not None:
            raise self._media

    def create_bridge(self, bridge_id: str) -> None:
        self.asked.append((bridge_id, {}))
        if self._bridge is not None:
            raise self._bridge


@pytest.mark.parametrize(
    ("of_media", "of_bridge", "fact"),
    [
        (None, None, facts.LegsCreated),
        (REFUSED, None, facts.LegsRefused),
        (None, REFUSED, facts.LegsRefused),
        (REFUSED, REFUSED, facts.LegsRefused),
        (UNKNOWN, None, facts.LegsUnknown),
        (None, UNKNOWN, facts.LegsUnknown),
        (UNKNOWN, REFUSED, facts.LegsUnknown),
        (REFUSED, UNKNOWN, facts.LegsUnknown),
    ],
)
def test_what_both_answers_come_to(
    of_media: errors.PipelineError | None, of_bridge: errors.PipelineError | None, fact: type[facts.Fact]
) -> None:
    asterisk, in_parallel = Asterisk(of_media, of_bridge), asterisks.ParallelRequests(2)
    tools = SimpleNamespace(
        media_id=lambda call: "m1", bridge_id=lambda call: "b1", in_parallel=in_parallel, token_secret=None
    )
    try:
        reported = media._ask(cast(Any, tools), cast(Any, asterisk), CALL)
    finally:
        in_parallel.close()
    assert type(reported) is fact
    whose = {"workflow_id": "1", "user_id": "2", "workflow_run_id": "3"}
    assert sorted(asterisk.asked) == [("b1", {}), ("m1", whose)]


class LeftAlone:
    """An Asterisk whose breaker is open."""

    def __init__(self) -> None:
        self.looked_up: list[Call] = []

    def of(self, call: Call, budget: rest.RequestBudget) -> LeftAlone:
        self.looked_up.append(call)
        return self

    @property
    def must_probe(self) -> bool:
        raise errors.AsteriskUnreachable("left alone for a moment", may_have_acted=False)


class InDoubt(LeftAlone):
    """One that is to show first whether it answers, and does not."""

    @property
    def must_probe(self) -> bool:
        return True

    def channel(self, channel_id: str) -> None:
        raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)


class Unwritten:
    """A store that only reads: nothing may be recorded."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def load(self, call_id: UUID) -> Call:
        return self._call

    def now(self) -> datetime:
        return NOW

    def append_timeline(self, timeline: list[object], *, call: Call) -> None:
        pass


@pytest.mark.parametrize("asterisk", [LeftAlone(), InDoubt()], ids=["open", "half-open"])
@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize(("left_seconds", "sent"), [(3.0, True), (0.4, False)])
def test_no_attempt_is_spent_on_an_asterisk_that_is_left_alone(
    asterisk: LeftAlone, attempt: int, left_seconds: float, *, sent: bool
) -> None:
    """The order is given again in a moment; when the deadline comes before that, the sweep gives it."""
    call = replace(CALL, attempt=attempt - 1, deadline_at=NOW + timedelta(seconds=left_seconds))
    writer = SimpleNamespace(store=Unwritten(call), limits=Limits(), clock=time)
    later: list[tuple[messages.Message, timedelta]] = []
    tools = SimpleNamespace(
        writer=writer, asterisks=asterisk, send_later=lambda message, wait: later.append((message, wait))
    )
    media.start_media(cast(Any, tools), call_id=call.call_id, attempt=attempt)
    assert bool(later) is sent
    for message, wait in later:
        assert (message.actor_name, message.kwargs["attempt"]) == ("start_media", attempt)
        assert timedelta() < wait < timedelta(seconds=1)


def test_an_order_that_no_longer_applies_asks_nobody() -> None:
    asterisk = LeftAlone()
    for call in (replace(CALL, state=State.ENDING, attempt=0), replace(CALL, attempt=1), replace(CALL, attempt=2)):
        writer = SimpleNamespace(store=Unwritten(call), limits=Limits(), clock=time)
        tools = SimpleNamespace(writer=writer, asterisks=asterisk)
        media.start_media(cast(Any, tools), call_id=call.call_id, attempt=1)
    assert asterisk.looked_up == []


def test_the_requests_of_every_step_at_work_go_side_by_side() -> None:
    """A step whose Asterisk hangs keeps no request of another step waiting: each has threads of its own."""
    steps, requests = 3, 5
    together = threading.Barrier(steps * requests)
    in_parallel = asterisks.ParallelRequests(steps)
    results: list[list[object]] = []

    def step() -> None:
        results.append(in_parallel(*[lambda: together.wait(10)] * requests))

    threads = [threading.Thread(target=step) for _ in range(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    in_parallel.close()
    assert len(results) == steps
