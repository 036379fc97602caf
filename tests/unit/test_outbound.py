"""The request that originates a leg: made once, and only for a call that has quota."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from shared.call import facts
from shared.call.calls import Call
from tests.support.calls import LIMITS, NOW, ORIGINATING
from tests.support.rounds import Rounds
from workers.claims import Claim
from workers.outbound import Origination

CALL = replace(ORIGINATING, caller_number="+4930999", ring_seconds=25.0)
LOOK = f"GET /channels/{CALL.channel_id}"
ORIGINATE = "POST /channels"


class StepClaim:
    """A claim that stands."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def note(self, fact: facts.Fact) -> bool:
        return True


class Scene:
    """The step, with an Asterisk that dials and a quota that lets it."""

    def __init__(self) -> None:
        self.asterisk = Rounds()
        self.users: list[int] = []
        self.step = Origination(
            asterisks=self.asterisk.asterisks,
            quota=cast(Any, SimpleNamespace(refusal=self._refuse, is_about_runs=lambda: False)),
            limits=LIMITS,
            store=cast(Any, SimpleNamespace(now=lambda: NOW)),
        )

    def _refuse(self, call: Call, *, user_id: int, budget: object) -> facts.Refused | None:
        self.users.append(user_id)
        return None

    def run(self, call: Call = CALL) -> list[facts.Fact]:
        return list(self.step.work(cast(Claim, StepClaim(call))))


def test_a_leg_is_originated_with_what_the_call_says() -> None:
    scene = Scene()
    assert scene.run() == [facts.Originated()]
    (request,) = scene.asterisk.requests
    assert request.what == ORIGINATE
    assert request.query == {
        "endpoint": "PJSIP/+4930123", "app": "voiceai",
        "appArgs": f"workflow_run_id=9,workflow_id=1,user_id=2,leg_id={CALL.channel_id}",
        "channelId": CALL.channel_id, "timeout": "25", "callerId": "<+4930999>",
    }  # fmt: skip
    assert scene.users == [2]


def test_what_the_request_did_not_name_is_as_usual() -> None:
    scene = Scene()
    scene.run(replace(CALL, caller_number="unknown", ring_seconds=None))
    (request,) = scene.asterisk.requests
    assert request.query is not None
    assert request.query["timeout"] == "60"
    assert "callerId" not in request.query
