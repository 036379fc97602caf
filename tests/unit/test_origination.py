"""The step that dials: what it stores and asks, in this order. It asks once, and then only looks for the leg."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from tests.support.calls import LIMITS, NOW, ORIGINATING
from tests.support.rounds import GONE, Rounds, channel
from workers.outbound import Origination

LEG = channel(ORIGINATING.channel_id)
LOOK, DIAL = f"GET /channels/{ORIGINATING.channel_id}", "POST /channels"
REFUSED = facts.Refused(reason="blocked", hangup_cause=57, limit="quota")
UNTIL = NOW + LIMITS.originate_wait()
BEGUN = replace(ORIGINATING, attempt_in_doubt_until=UNTIL)
NO_ANSWER = errors.AsteriskUnreachable("no answer in time")
NOT_CONNECTED = errors.AsteriskUnreachable("connection refused", may_have_acted=False)
NOTED = f"note {UNTIL}"


class Scene:
    """The step and its claim, with everything that happens in its order."""

    def __init__(
        self,
        call: Call,
        answers: dict[str, list[object]],
        *,
        refusal: facts.Refused | None = None,
        about_runs: bool = False,
        claims: bool = True,
    ) -> None:
        self.call = call
        self.happened: list[str] = []
        self._asterisk = Rounds(answers)
        self._claims = claims
        store = SimpleNamespace(now=lambda: NOW)
        answer = SimpleNamespace(before=lambda *_args, **_named: refusal, never=None)
        quota = SimpleNamespace(
            is_about_runs=lambda: about_runs,
            refusal=answer.never if about_runs else answer.before,
            authorization=answer.before if about_runs else answer.never,
        )
        step = Origination(
            asterisks=self._asterisk.asterisks, quota=cast(Any, quota), limits=LIMITS, store=cast(Any, store)
        )
        self.facts = step.work(cast(Any, self))
        self.happened += [request for made in self._asterisk.rounds for request in made]

    def note(self, fact: facts.DialBegun) -> bool:
        assert self._asterisk.rounds == []
        self.happened.append(f"note {fact.in_doubt_until}")
        return self._claims

    def give_up(self, reason: str) -> None:
        self.happened.append(f"give up: {reason}")


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (LEG, facts.Originated()),
        (errors.AsteriskRefused(400, "Invalid endpoint"), facts.OriginateRefused(reason="400 Invalid endpoint")),
        (NOT_CONNECTED, facts.DialUnsent(in_doubt_until=UNTIL, reason="Asterisk gave no answer: connection refused")),
        (errors.OutOfTime("no time left"), facts.DialUnsent(in_doubt_until=UNTIL, reason="no time left")),
    ],
    ids=["dialled", "refused", "not connected", "no time left"],
)
def test_a_leg_is_asked_for_once_that_is_stored(answer: object, fact: facts.Fact) -> None:
    scene = Scene(ORIGINATING, {DIAL: [answer]})
    assert (scene.happened, scene.facts) == ([NOTED, DIAL], (fact,))


def test_a_request_without_an_answer_is_left_to_the_deadline() -> None:
    scene = Scene(ORIGINATING, {DIAL: [NO_ANSWER]})
    assert (scene.happened, scene.facts) == ([NOTED, "give up: no answer in time", DIAL], ())


def test_a_worker_whose_claim_is_over_does_not_dial() -> None:
    """Another one may, or the call has ended."""
    scene = Scene(ORIGINATING, {}, claims=False)
    assert (scene.happened, scene.facts) == ([NOTED, "give up: the call is over, or another worker dials"], ())


@pytest.mark.parametrize("about_runs", [False, True])
def test_a_call_without_quota_is_not_dialled(*, about_runs: bool) -> None:
    scene = Scene(ORIGINATING, {}, refusal=REFUSED, about_runs=about_runs)
    assert (scene.happened, scene.facts) == ([], (REFUSED,))


def test_a_leg_that_may_have_been_asked_for_is_looked_for() -> None:
    scene = Scene(BEGUN, {LOOK: [LEG]}, refusal=REFUSED)
    assert (scene.happened, scene.facts) == ([LOOK], (facts.Originated(),))


def test_a_leg_that_is_not_there_is_not_asked_for_again() -> None:
    scene = Scene(BEGUN, {LOOK: [GONE]})
    assert (scene.happened, scene.facts) == ([LOOK], (facts.DialLost(),))


def test_a_look_without_an_answer_says_nothing() -> None:
    scene = Scene(BEGUN, {LOOK: [NO_ANSWER]})
    assert (scene.happened, scene.facts) == (["give up: no answer in time", LOOK], ())
