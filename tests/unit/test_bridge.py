"""The rounds of a join: the caller is answered and every leg added at the same time, then the bridge is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.call import facts
from shared.call.legs import Naming
from tests.support.calls import JOINING
from tests.support.rounds import GONE, LOOK_AT_APP, Rounds, channel
from workers.bridge import Join

NAMING = Naming("aip-")
CALLER = f"/channels/{JOINING.channel_id}"
MEDIA_ID, BRIDGE_ID = NAMING.media_id(JOINING), NAMING.bridge_id(JOINING)
ANSWER, ADD = f"POST {CALLER}/answer", f"POST /bridges/{BRIDGE_ID}/addChannel"
JOIN = [ADD, ANSWER]
LOOK = [f"GET /bridges/{BRIDGE_ID}"]
EMPTY = {"id": BRIDGE_ID, "channels": []}
WITH_CALLER = {"id": BRIDGE_ID, "channels": [JOINING.channel_id]}
WHOLE = {"id": BRIDGE_ID, "channels": [JOINING.channel_id, MEDIA_ID]}
REFUSED = errors.AsteriskRefused(422, "Channel not in Stasis application")


@pytest.mark.parametrize(
    ("is_continued", "answers", "rounds", "fact"),
    [
        pytest.param(True, {LOOK[0]: [WHOLE]}, [JOIN, LOOK], facts.Joined(attempt=1), id="joined"),
        pytest.param(
            False,
            {LOOK[0]: [EMPTY, WHOLE]},
            [LOOK, JOIN, LOOK],
            facts.Joined(attempt=1),
            id="another worker may have begun it",
        ),
        pytest.param(
            False, {LOOK[0]: [WHOLE]}, [LOOK, [ANSWER], LOOK], facts.Joined(attempt=1), id="the legs are in the bridge"
        ),
        pytest.param(
            False,
            {LOOK[0]: [WITH_CALLER, WHOLE]},
            [LOOK, JOIN, LOOK],
            facts.Joined(attempt=1),
            id="the caller is in the bridge",
        ),
        pytest.param(
            True, {ANSWER: [GONE]}, [JOIN], facts.CallerGone(leg_id=JOINING.channel_id), id="the caller is gone"
        ),
        pytest.param(
            True,
            {ADD: [REFUSED], f"GET {CALLER}": [channel(JOINING.channel_id)], f"GET /channels/{MEDIA_ID}": [GONE]},
            [JOIN, [f"GET {CALLER}", LOOK_AT_APP], [f"GET /channels/{MEDIA_ID}"]],
            facts.MediaGone(attempt=1, reason="media leg ended while being joined"),
            id="the media leg is gone",
        ),
        pytest.param(
            True,
            {LOOK[0]: [WITH_CALLER], f"GET {CALLER}": [GONE]},
            [JOIN, LOOK, [f"GET {CALLER}", LOOK_AT_APP]],
            facts.CallerGone(leg_id=JOINING.channel_id),
            id="a leg has left the bridge",
        ),
    ],
)
def test_the_requests_of_a_join_round_by_round(
    answers: Mapping[str, Sequence[object]], rounds: list[list[str]], fact: facts.Fact, *, is_continued: bool
) -> None:
    asterisk = Rounds(answers)
    step = Join(asterisks=asterisk.asterisks, naming=NAMING, runs=cast(Any, None), store=cast(Any, None))
    claim = SimpleNamespace(call=JOINING, is_continued=is_continued)
    assert step.work(cast(Any, claim)) == (fact,)
    assert asterisk.rounds == rounds


@pytest.mark.parametrize(
    ("bridge", "added"),
    [(EMPTY, [[MEDIA_ID, JOINING.channel_id]]), (WITH_CALLER, [[MEDIA_ID]]), (WHOLE, [])],
    ids=["both", "the media leg", "none"],
)
def test_a_leg_that_is_in_the_bridge_is_not_added_again(bridge: Mapping[str, object], added: list[list[str]]) -> None:
    """It would leave and come back, which both parties hear."""
    asterisk = Rounds({LOOK[0]: [bridge, WHOLE]})
    step = Join(asterisks=asterisk.asterisks, naming=NAMING, runs=cast(Any, None), store=cast(Any, None))
    step.work(cast(Any, SimpleNamespace(call=JOINING, is_continued=False)))
    adds = [cast(Any, request.body) for request in asterisk.requests if request.what == ADD]
    assert [body["channel"] for body in adds] == added
