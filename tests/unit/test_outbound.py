"""The request that originates a leg: made once, and only for a call that has quota."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from tests.support.calls import LIMITS, ORIGINATING
from tests.support.rounds import GONE, Rounds, channel
from workers.claims import Claim
from workers.outbound import Origination

CALL = replace(ORIGINATING, caller_number="+4930999", ring_seconds=25.0)
LOOK = f"GET /channels/{CALL.channel_id}"
ORIGINATE = "POST /channels"


class StepClaim:
    """A claim that may be given up."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.given_up: list[str] = []

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)


class Scene:
    """The step, with an Asterisk and a quota that answer as told."""

    def __init__(self, answers: dict[str, list[object]] | None = None, refusal: facts.Refused | None = None) -> None:
        self.asterisk = Rounds(answers)
        self.users: list[int] = []
        self._refusal = refusal
        self.step = Origination(
            asterisks=self.asterisk.asterisks,
            quota=cast(Any, SimpleNamespace(refusal=self._refuse)),
            limits=LIMITS,
        )

    def _refuse(self, call: Call, *, user_id: int, budget: object) -> facts.Refused | None:
        self.users.append(user_id)
        return self._refusal

    def run(self, call: Call = CALL) -> tuple[list[facts.Fact], StepClaim]:
        claim = StepClaim(call)
        return list(self.step.work(cast(Claim, claim))), claim


def test_a_leg_is_originated_with_what_the_call_says() -> None:
    scene = Scene()
    assert scene.run()[0] == [facts.Originated()]
    (request,) = scene.asterisk.requests
    assert request.what == ORIGINATE
    assert request.query == {
        "endpoint": "PJSIP/+4930123", "app": "voiceai", "appArgs": "workflow_run_id=9,workflow_id=1,user_id=2",
        "channelId": CALL.channel_id, "timeout": "25", "callerId": "+4930999",
    }  # fmt: skip
    assert scene.users == [2]


def test_what_the_request_did_not_name_is_as_usual() -> None:
    scene = Scene()
    scene.run(replace(CALL, caller_number="unknown", ring_seconds=None))
    (request,) = scene.asterisk.requests
    assert request.query is not None
    assert request.query["timeout"] == "60"
    assert "callerId" not in request.query


def test_a_call_without_quota_is_not_dialled() -> None:
    refusal = facts.Refused(reason="blocked", hangup_cause=57)
    scene = Scene(refusal=refusal)
    assert scene.run()[0] == [refusal]
    assert scene.asterisk.requests == []


@pytest.mark.parametrize(
    ("found", "rounds"),
    [(channel(CALL.channel_id), [[LOOK]]), (GONE, [[LOOK], [ORIGINATE]])],
    ids=["there", "not there"],
)
def test_a_leg_that_an_earlier_worker_may_have_originated_is_looked_for(found: object, rounds: list[list[str]]) -> None:
    scene = Scene({LOOK: [found]})
    assert scene.run(replace(CALL, step_retries=1))[0] == [facts.Originated()]
    assert scene.asterisk.rounds == rounds


def test_a_refused_request_ends_the_call() -> None:
    scene = Scene({ORIGINATE: [errors.AsteriskRefused(400, "no such endpoint")]})
    (fact,) = scene.run()[0]
    assert isinstance(fact, facts.OriginateRefused)
    assert "no such endpoint" in fact.reason


def test_a_request_without_an_answer_leaves_the_call_to_its_deadline() -> None:
    scene = Scene({ORIGINATE: [errors.AsteriskUnreachable("no answer in time")]})
    reported, claim = scene.run()
    assert reported == []
    assert claim.given_up == ["no answer in time"]
