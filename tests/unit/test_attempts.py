"""Attempts as ordered by message: none is spent on an Asterisk that gives no answer, and none is begun twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock
from uuid import UUID

import pytest

from shared import errors, messages
from shared.asterisk import rest
from shared.call import facts, faults
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.steps import Step
from tests.support.calls import ATTEMPTING, NOW, PREPARED, WAITING
from tests.support.rounds import GONE, Rounds, channel
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
    """Return the handlers of attempts around one call, which is told nothing but what hinders it."""
    writer = SimpleNamespace(
        store=ReadOnly(call), limits=Limits(), clock=time, new_nonce=lambda _call: "", record=MagicMock()
    )
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
    handlers = attempts_of(call, asterisk, later)
    handlers.start(call_id=call.call_id, attempt=attempt)
    assert bool(later) is sent
    for message, wait in later:
        assert (message.actor_name, message.kwargs["attempt"]) == ("start_media", attempt)
        assert timedelta() < wait < timedelta(seconds=1)
    reason = "circuit breaker open" if type(asterisk) is BreakerOpen else "connection refused"
    assert hindered(handlers) == [f"{faults.NO_ANSWER}: {reason}"]
    # Once is enough.
    again = attempts_of(replace(call, obstacle=f"{faults.NO_ANSWER}: {reason}"), asterisk, later)
    again.start(call_id=call.call_id, attempt=attempt)
    assert hindered(again) == []


def hindered(handlers: Attempts) -> list[str]:
    """Return what the call was told of what hinders it."""
    told = [call.args[1] for call in cast(MagicMock, handlers.writer.record).call_args_list]
    assert all(fact.state is State.PREPARED for fact in told)
    return [fact.obstacle for fact in told]


def test_a_command_that_no_longer_applies_makes_no_request() -> None:
    asterisk = BreakerOpen()
    for call in (replace(CALL, state=State.ENDING, attempt=0), replace(CALL, attempt=1), replace(CALL, attempt=2)):
        attempts_of(call, asterisk, []).start(call_id=call.call_id, attempt=1)
    assert asterisk.looked_up == []


# ── an attempt of unknown outcome ─────────────────────────────────────────────────────────────────────────────────────

NAMING = Naming("aip-")
MEDIA, BRIDGE = f"/channels/{NAMING.media_id(WAITING)}", f"/bridges/{NAMING.bridge_id(WAITING)}"
NO_BRIDGE = errors.AsteriskRefused(404, "Bridge not found")
NO_ANSWER = errors.AsteriskUnreachable("no answer in time", may_have_acted=True)
LEG, EMPTY = channel(NAMING.media_id(WAITING)), {"id": NAMING.bridge_id(WAITING), "channels": []}
LOOK = [f"GET {MEDIA}", f"GET {BRIDGE}"]


def asked(call: Call, answers: dict[str, Sequence[object]]) -> tuple[Attempts, Rounds, MagicMock]:
    """Return the handlers of attempts around one call and an Asterisk, with the flow that they report to."""
    asterisk, flow = Rounds(answers), MagicMock()
    handlers = replace(attempts_of(call, cast(Any, asterisk.asterisks), []), flow=flow)
    return handlers, asterisk, flow


@pytest.mark.parametrize(
    ("leg", "bridge", "rounds", "is_used"),
    [
        pytest.param(LEG, EMPTY, [LOOK], True, id="both are there"),
        pytest.param(LEG, NO_BRIDGE, [LOOK, [f"POST {BRIDGE}"]], True, id="the bridge is missing"),
        pytest.param(GONE, EMPTY, [LOOK], False, id="the leg is missing"),
        pytest.param(GONE, NO_BRIDGE, [LOOK], False, id="both are missing"),
    ],
)
def test_an_attempt_of_unknown_outcome_is_looked_for_before_the_next_one_begins(
    leg: object, bridge: object, rounds: list[list[str]], *, is_used: bool
) -> None:
    """Its agent is on the line, and would take no second leg for the run."""
    handlers, asterisk, flow = asked(ATTEMPTING, {LOOK[0]: [leg], LOOK[1]: [bridge]})
    handlers.start(call_id=ATTEMPTING.call_id, attempt=2)
    assert asterisk.rounds == rounds
    (reported,) = flow.report.call_args_list
    assert reported.kwargs == ({} if is_used else {"ordered": Step.MEDIA})
    assert isinstance(reported.args[1], facts.LegsFound if is_used else facts.AttemptBegun)


def test_a_bridge_that_cannot_be_made_does_not_count() -> None:
    refused = errors.AsteriskRefused(500, "Allocation failed")
    answers: dict[str, Sequence[object]] = {LOOK[0]: [LEG], LOOK[1]: [NO_BRIDGE], f"POST {BRIDGE}": [refused]}
    handlers, _, flow = asked(ATTEMPTING, answers)
    handlers.start(call_id=ATTEMPTING.call_id, attempt=2)
    assert isinstance(flow.report.call_args.args[1], facts.AttemptBegun)


@pytest.mark.parametrize("silent", LOOK)
def test_no_attempt_begins_while_it_is_not_known_what_is_there(silent: str) -> None:
    """It would remove the legs of the one before, which may be joined."""
    handlers, _, flow = asked(ATTEMPTING, {LOOK[0]: [LEG], LOOK[1]: [EMPTY], silent: [NO_ANSWER]})
    handlers.start(call_id=ATTEMPTING.call_id, attempt=2)
    assert flow.report.call_args_list == []


# ── a media leg that is overdue ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("leg", "reported", "obstacle"),
    [
        pytest.param(LEG, [facts.MediaReady(attempt=1)], None, id="in the app"),
        pytest.param(channel(NAMING.media_id(WAITING), app=""), [], faults.NOT_ACCEPTED, id="still connects"),
        pytest.param(GONE, [facts.MediaGone(attempt=1, reason="media leg is gone", is_found=True)], None, id="gone"),
        pytest.param(NO_ANSWER, [], f"{faults.NO_ANSWER}: no answer in time", id="no answer"),
    ],
)
def test_a_media_leg_is_ready_when_it_is_in_the_app(
    leg: object, reported: list[facts.Fact], obstacle: str | None
) -> None:
    handlers, _, flow = asked(WAITING, {LOOK[0]: [leg]})
    handlers.check(call_id=WAITING.call_id, attempt=1)
    assert [call.args[1] for call in flow.report.call_args_list] == reported
    assert hindered(handlers) == ([obstacle] if obstacle else [])
