"""Attempts as ordered by message: none is spent on an Asterisk that gives no answer, and none is begun twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors, messages
from shared.asterisk import rest
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.call.states import State
from tests.support.calls import NOW, PREPARED
from workers.attempts import Attempts

CALL = replace(PREPARED, attempt=1)


class BreakerOpen:
    """An Asterisk whose circuit breaker is open."""

    def __init__(self) -> None:
        self.looked_up: list[Call] = []

    def of(self, call: Call, budget: rest.RequestBudget) -> BreakerOpen:
        self.looked_up.append(call)
        return self

    @property
    def must_probe(self) -> bool:
        raise errors.AsteriskUnreachable("circuit breaker open", may_have_acted=False)


class HalfOpen(BreakerOpen):
    """An Asterisk whose circuit breaker admits one probe, which gets no answer."""

    @property
    def must_probe(self) -> bool:
        return True

    def channel(self, channel_id: str) -> None:
        raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)


class ReadOnly:
    """A store that only reads: nothing may be recorded."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def load(self, call_id: UUID) -> Call:
        return self._call

    def now(self) -> datetime:
        return NOW

    def append_timeline(self, timeline: Sequence[object], *, call: Call) -> None:
        pass


def attempts_of(call: Call, asterisk: BreakerOpen, later: list[tuple[messages.Message, timedelta]]) -> Attempts:
    """Return the handlers of attempts around one call, which must not be written."""
    writer = SimpleNamespace(store=ReadOnly(call), limits=Limits(), clock=time)
    return Attempts(
        flow=cast(Any, None),
        writer=cast(Any, writer),
        asterisks=cast(Any, asterisk),
        naming=Naming("aip-"),
        send_later=lambda message, wait: later.append((message, wait)),
    )


@pytest.mark.parametrize("asterisk", [BreakerOpen(), HalfOpen()], ids=["open", "half-open"])
@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize(("left_seconds", "sent"), [(3.0, True), (0.4, False)])
def test_no_attempt_is_spent_on_an_asterisk_that_gives_no_answer(
    asterisk: BreakerOpen, attempt: int, left_seconds: float, *, sent: bool
) -> None:
    """The command is sent again after a moment; if the deadline comes before that, the sweep sends it."""
    call = replace(CALL, attempt=attempt - 1, deadline_at=NOW + timedelta(seconds=left_seconds))
    later: list[tuple[messages.Message, timedelta]] = []
    attempts_of(call, asterisk, later).start(call_id=call.call_id, attempt=attempt)
    assert bool(later) is sent
    for message, wait in later:
        assert (message.actor_name, message.kwargs["attempt"]) == ("start_media", attempt)
        assert timedelta() < wait < timedelta(seconds=1)


def test_a_command_that_no_longer_applies_makes_no_request() -> None:
    asterisk = BreakerOpen()
    for call in (replace(CALL, state=State.ENDING, attempt=0), replace(CALL, attempt=1), replace(CALL, attempt=2)):
        attempts_of(call, asterisk, []).start(call_id=call.call_id, attempt=1)
    assert asterisk.looked_up == []
