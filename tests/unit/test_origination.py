"""The requests of the step that dials: the leg is looked for if an earlier worker may have asked for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from shared import errors
from shared.call import facts
from tests.support.calls import LIMITS, ORIGINATING
from tests.support.rounds import GONE, Rounds, channel
from workers.outbound import Origination

LEG = channel(ORIGINATING.channel_id)
LOOK, DIAL = [f"GET /channels/{ORIGINATING.channel_id}"], ["POST /channels"]
REFUSED = facts.Refused(reason="blocked", hangup_cause=57)


@pytest.mark.parametrize(
    ("retries", "answers", "refusal", "rounds", "fact"),
    [
        pytest.param(0, {DIAL[0]: [LEG]}, None, [DIAL], facts.Originated(), id="dialled"),
        pytest.param(0, {}, REFUSED, [], REFUSED, id="refused"),
        pytest.param(1, {LOOK[0]: [LEG]}, REFUSED, [LOOK], facts.Originated(), id="rings already"),
        pytest.param(1, {LOOK[0]: [GONE], DIAL[0]: [LEG]}, None, [LOOK, DIAL], facts.Originated(), id="dialled again"),
        pytest.param(1, {LOOK[0]: [GONE]}, REFUSED, [LOOK], REFUSED, id="refused meanwhile"),
        pytest.param(
            0,
            {DIAL[0]: [errors.AsteriskRefused(400, "Invalid endpoint specified")]},
            None,
            [DIAL],
            facts.OriginateRefused(reason="400 Invalid endpoint specified"),
            id="refused by Asterisk",
        ),
    ],
)
def test_the_requests_of_an_origination(
    retries: int, answers: dict[str, list[object]], refusal: facts.Refused | None, rounds: list[list[str]], fact: object
) -> None:
    asterisk, quota = Rounds(answers), MagicMock()
    quota.refusal.return_value = refusal
    step = Origination(asterisks=asterisk.asterisks, quota=quota, limits=LIMITS)
    claim = MagicMock(call=replace(ORIGINATING, step_retries=retries))
    assert step.work(cast(Any, claim)) == (fact,)
    assert asterisk.rounds == rounds


@pytest.mark.parametrize("silent", [LOOK, DIAL], ids=["look", "request"])
def test_without_an_answer_the_step_gives_up(silent: list[str]) -> None:
    """The deadline dispatches it again, which looks first."""
    no_answer = errors.AsteriskUnreachable("no answer in time", may_have_acted=True)
    asterisk, claim = Rounds({LOOK[0]: [GONE], silent[0]: [no_answer]}), MagicMock()
    claim.call = replace(ORIGINATING, step_retries=1)
    quota = MagicMock(refusal=MagicMock(return_value=None))
    assert Origination(asterisks=asterisk.asterisks, quota=quota, limits=LIMITS).work(cast(Any, claim)) == ()
    claim.give_up.assert_called_once_with("no answer in time")
