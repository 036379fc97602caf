"""Why legs are not joined, when a join is given up, and what the run is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import State
from tests.support.calls import CALLS, CONNECTED, JOINING
from tests.support.rounds import GONE, Rounds, channel
from workers.bridge import Join

NAMING = Naming("aip-")
CALLER = f"/channels/{JOINING.channel_id}"
MEDIA_ID, BRIDGE_ID = NAMING.media_id(JOINING), NAMING.bridge_id(JOINING)
ANSWER, ADD = f"POST {CALLER}/answer", f"POST /bridges/{BRIDGE_ID}/addChannel"
JOIN = [ADD, ANSWER]
LOOK = [f"GET /bridges/{BRIDGE_ID}"]
EMPTY = {"id": BRIDGE_ID, "channels": []}
REFUSED = errors.AsteriskRefused(422, "Channel not in Stasis application")


HERE = {f"GET {CALLER}": [channel(JOINING.channel_id)], f"GET /channels/{MEDIA_ID}": [channel(MEDIA_ID)]}


@pytest.mark.parametrize(
    ("is_continued", "answers", "fact"),
    [
        pytest.param(
            False, {LOOK[0]: [GONE]}, facts.JoinRefused(attempt=1, reason="the bridge is gone"), id="no bridge"
        ),
        pytest.param(
            True, {ADD: [REFUSED], **HERE}, facts.JoinRefused(attempt=1, reason=str(REFUSED)), id="refused"
        ),
        pytest.param(
            True, {LOOK[0]: [EMPTY], **HERE}, facts.JoinRefused(attempt=1, reason="a leg is not in the bridge"),
            id="not joined",
        ),
        pytest.param(
            True, {LOOK[0]: [GONE], **HERE}, facts.JoinRefused(attempt=1, reason="a leg is not in the bridge"),
            id="the bridge went",
        ),
        pytest.param(
            True, {ANSWER: [REFUSED], **HERE, f"GET {CALLER}": [channel(JOINING.channel_id, app="other")]},
            facts.CallerLeft(leg_id=JOINING.channel_id, is_up=True), id="the caller is elsewhere",
        ),
    ],
)  # fmt: skip
def test_why_legs_are_not_joined(
    answers: Mapping[str, Sequence[object]], fact: facts.Fact, *, is_continued: bool
) -> None:
    step = Join(asterisks=Rounds(answers).asterisks, naming=NAMING, runs=cast(Any, None), store=cast(Any, None))
    claim = SimpleNamespace(call=JOINING, is_continued=is_continued)
    assert step.work(cast(Any, claim)) == (fact,)


@pytest.mark.parametrize("state", [State.JOINING, State.ENDED])
@pytest.mark.parametrize("is_anothers", [True, False])
def test_a_leg_that_a_call_has_followed_to_and_that_has_a_call_of_its_own_is_left_to_that(
    state: State, *, is_anothers: bool
) -> None:
    """A resync found it as it took its place. Joined twice, the caller would be torn out of the other bridge."""
    call = replace(JOINING, replacements=("new",))
    own = replace(call, call_id=UUID(int=2) if is_anothers else call.call_id, state=state)
    asterisk = Rounds({LOOK[0]: [GONE]})
    store = SimpleNamespace(
        of_channel=lambda connection_id, leg: own if (connection_id, leg) == (call.connection_id, "new") else None
    )
    step = Join(asterisks=asterisk.asterisks, naming=NAMING, runs=cast(Any, None), store=cast(Any, store))
    facts_ = step.work(cast(Any, SimpleNamespace(call=call, is_continued=False)))
    is_left = is_anothers and state is not State.ENDED
    assert (facts_ == (facts.CallerLeft(leg_id="new", is_up=True),)) is is_left
    assert (asterisk.rounds == []) is is_left


@pytest.mark.parametrize("request_", [*JOIN, LOOK[0]])
def test_a_join_of_unknown_outcome_is_given_up(request_: str) -> None:
    given_up: list[object] = []
    away = errors.AsteriskUnreachable("no answer in time")
    step = Join(
        asterisks=Rounds({request_: [away]}).asterisks, naming=NAMING, runs=cast(Any, None), store=cast(Any, None)
    )
    claim = SimpleNamespace(call=JOINING, is_continued=True, give_up=given_up.append)
    assert step.work(cast(Any, claim)) == ()
    assert given_up == [away]


@pytest.mark.parametrize("call", CALLS.values(), ids=lambda call: str(call.state))
def test_the_run_of_a_connected_call_is_told_its_legs(call: Call) -> None:
    told: list[tuple[Call, str, str]] = []
    runs = SimpleNamespace(note_media=lambda call, *, media_id, bridge_id: told.append((call, media_id, bridge_id)))
    Join(asterisks=cast(Any, None), naming=NAMING, runs=cast(Any, runs), store=cast(Any, None)).recorded(call)
    assert told == ([(call, MEDIA_ID, BRIDGE_ID)] if call.state == "connected" else [])


@pytest.mark.parametrize("named", [(JOINING.leg_id, MEDIA_ID, BRIDGE_ID), ("another", MEDIA_ID, BRIDGE_ID)])
def test_a_run_that_names_the_legs_from_the_start_is_not_asked(named: Sequence[str]) -> None:
    told: list[str] = []
    runs = SimpleNamespace(note_media=lambda _call, *, media_id, bridge_id: told.extend((media_id, bridge_id)))
    Join(asterisks=cast(Any, None), naming=NAMING, runs=cast(Any, runs), store=cast(Any, None)).recorded(
        CONNECTED, named
    )
    assert told == ([] if JOINING.leg_id in named else [MEDIA_ID, BRIDGE_ID])
