"""The rounds of a teardown: what is asked at the same time, what only after a look, and what is left pending."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.call import facts, ids
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Outcome
from shared.platform.ports import NoPlatformSlots, PlatformSlots
from tests.support.calls import ENDING, NOW, RINGING, seconds
from tests.support.rounds import GONE, LOOK_AT_APP, Rounds, channel
from workers import teardown
from workers.claims import Claim
from workers.teardown import Teardown

NAMING = Naming("aip-")
CALLER = f"/channels/{ENDING.channel_id}"
MEDIA = f"/channels/{NAMING.media_id(ENDING)}"
BRIDGE = f"/bridges/{NAMING.bridge_id(ENDING)}"
IN_APP = channel(ENDING.channel_id)
HERE = channel("here")
#: The look at the caller's leg, and at what is in the app.
PLACE = [f"GET {CALLER}", LOOK_AT_APP]
#: The app lists the leg that a caller was transferred to wherever that goes.
LISTED_D: dict[str, object] = {"channel_ids": ["d"]}
DIALLED = replace(ENDING, channel_id=ids.originated_id("aip-", 7, "request"), attempt=0)
PLACE_OF_DIALLED = [f"GET /channels/{DIALLED.channel_id}", LOOK_AT_APP]
LISTED_DIALLED: dict[str, object] = {"channel_ids": [DIALLED.channel_id]}
MOVED_HERE = channel(ENDING.channel_id, app="ivr")
CLAIMED = IN_APP | {"dialplan": {"app_name": "StasisBroadcast", "app_data": "1000,^voiceai"}}
LISTED: dict[str, object] = {"channel_ids": [ENDING.channel_id]}
EMPTY: dict[str, object] = {"channel_ids": []}
WHOLE = {"id": NAMING.bridge_id(ENDING), "channels": []}
UNREACHABLE = errors.AsteriskUnreachable("no answer in time")
REFUSED = replace(ENDING, attempt=0, continue_in_dialplan=True, reason="no route")

Answers = Mapping[str, Sequence[object]]


class StepClaim:
    """A claim that has time for so many pauses."""

    def __init__(self, call: Call, pauses: int = 99) -> None:
        self.call = call
        self.pauses: list[float] = []
        self._left = pauses

    def pause(self, pause_seconds: float) -> None:
        if len(self.pauses) == self._left:
            raise errors.OutOfTime("the step ran out of its time")
        self.pauses.append(pause_seconds)

    def ask_once(self, _question: str, ask: Callable[[], str]) -> str:
        return ask()

    @contextlib.contextmanager
    def transaction(self, instead: Callable[[errors.PipelineError], facts.Fact]) -> Iterator[str]:
        self.instead = instead
        yield "the call's"


class Runs:
    """A platform that ends every run, unless told otherwise."""

    def __init__(self, error: errors.PipelineError | None = None) -> None:
        self._error = error
        self.ended: list[tuple[Call, str, str]] = []
        self.within: list[str | None] = []

    def end(self, call: Call, *, media_id: str, bridge_id: str, within: str | None) -> None:
        self.ended.append((call, media_id, bridge_id))
        self.within.append(within)
        if self._error is not None:
            raise self._error


class Store:
    def now(self) -> datetime:
        return NOW


def torn_down(
    call: Call, answers: Answers, pauses: int = 99, runs: Runs | None = None, slots: PlatformSlots | None = None
) -> tuple[facts.Fact, Rounds, StepClaim]:
    asterisk, claim = Rounds(answers), StepClaim(call, pauses)
    step = Teardown(
        asterisks=asterisk.asterisks,
        naming=NAMING,
        runs=cast(Any, runs or Runs()),
        store=cast(Any, Store()),
        platform_slots=slots or NoPlatformSlots(),
    )
    (fact,) = step.work(cast(Claim, claim))
    return fact, asterisk, claim


@pytest.mark.parametrize(
    ("call", "answers", "rounds"),
    [
        pytest.param(
            replace(ENDING, caller_left=True),
            {f"GET {MEDIA}": [GONE]},
            [[f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {MEDIA}"]],
            id="the caller has left",
        ),
        pytest.param(
            replace(ENDING, media_ready=True),
            {f"GET {CALLER}": [IN_APP, GONE], f"DELETE {MEDIA}": [GONE], f"DELETE {BRIDGE}": [GONE]},
            [PLACE, [f"DELETE {CALLER}", f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {CALLER}"]],
            id="the agent has hung up",
        ),
        pytest.param(
            replace(ENDING, media_ready=False),
            {f"GET {CALLER}": [IN_APP, GONE], f"GET {MEDIA}": [GONE]},
            [
                PLACE,
                [f"DELETE {CALLER}"],
                [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"],
                [f"GET {CALLER}", f"GET {MEDIA}"],
            ],
            id="the agent never answered: hanging its leg up may block Asterisk",
        ),
        pytest.param(
            replace(ENDING, media_ready=True, destination_id="d"),
            {f"GET {CALLER}": [IN_APP, GONE], "GET /channels/d": [channel("d"), GONE], f"DELETE {MEDIA}": [GONE]},
            [
                [f"GET {CALLER}", "GET /channels/d", LOOK_AT_APP],
                [f"DELETE {CALLER}", "DELETE /channels/d", f"DELETE {MEDIA}", f"DELETE {BRIDGE}"],
                [f"GET {CALLER}", "GET /channels/d"],
            ],
            id="both parties of a transferred call go",
        ),
        pytest.param(
            replace(ENDING, media_ready=True, destination_id="d", caller_left=True),
            {"GET /channels/d": [channel("d", app="another")], LOOK_AT_APP: [LISTED_D], f"DELETE {MEDIA}": [GONE]},
            [["GET /channels/d", LOOK_AT_APP], [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"]],
            id="where the destination went after Stasis is not ours",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [GONE], f"DELETE {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"]],
            id="all are gone",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [channel(ENDING.channel_id, app="another")], f"GET {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {MEDIA}"]],
            id="the caller is in another app",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [IN_APP], LOOK_AT_APP: [EMPTY], f"GET {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {MEDIA}"]],
            id="the caller was moved to another app",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [MOVED_HERE, GONE], LOOK_AT_APP: [LISTED], f"GET {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {CALLER}", f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {CALLER}", f"GET {MEDIA}"]],
            id="the caller was moved here from another app",
        ),
        pytest.param(
            DIALLED,
            {PLACE_OF_DIALLED[0]: [channel(DIALLED.channel_id, app="ivr")], LOOK_AT_APP: [LISTED_DIALLED]},
            [PLACE_OF_DIALLED],
            id="a leg that we dialled is in another app, and ours lists it still",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [CLAIMED, GONE], LOOK_AT_APP: [LISTED], f"GET {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {CALLER}", f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {CALLER}", f"GET {MEDIA}"]],
            id="the caller was claimed for us",
        ),
        pytest.param(
            ENDING,
            {f"GET {CALLER}": [channel(ENDING.channel_id, created="2026-05-02")], f"GET {MEDIA}": [GONE]},
            [PLACE, [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {MEDIA}"]],
            id="another channel has the caller's id",
        ),
        pytest.param(
            replace(ENDING, attempt=0),
            {f"GET {CALLER}": [IN_APP, IN_APP, GONE]},
            [PLACE, [f"DELETE {CALLER}"], [f"GET {CALLER}"], [f"GET {CALLER}"]],
            id="nothing was made, and the caller takes a moment to go",
        ),
        pytest.param(
            replace(RINGING, state=ENDING.state, hangup_cause=16),
            {f"DELETE {CALLER}": [GONE]},
            [[f"DELETE {CALLER}"]],
            id="a leg that rings needs no look",
        ),
        pytest.param(
            REFUSED,
            {f"GET {CALLER}": [IN_APP, channel(ENDING.channel_id, app="another")], LOOK_AT_APP: [LISTED, EMPTY]},
            [PLACE, [f"POST {CALLER}/variable"] * 3, [f"POST {CALLER}/continue"], [f"GET {CALLER}"], PLACE],
            id="a refused caller continues in the dialplan",
        ),
    ],
)
def test_the_requests_of_a_teardown_round_by_round(call: Call, answers: Answers, rounds: list[list[str]]) -> None:
    fact, asterisk, _ = torn_down(call, answers)
    assert [round_ for round_ in asterisk.rounds if round_] == rounds
    assert fact == facts.LegsRemoved(leg_id=call.channel_id)


def test_every_attempt_is_removed_in_one_round() -> None:
    call = replace(ENDING, attempt=2, caller_left=True)
    _, asterisk, _ = torn_down(call, {})
    attempts = list(NAMING.attempts(call))
    legs = [f"DELETE /channels/{leg}" for attempt in attempts for leg in attempt.legs.values()]
    assert asterisk.rounds[0] == [*legs, *(f"DELETE /bridges/{attempt.bridge_id}" for attempt in attempts)]


def test_the_caller_gets_its_cause_and_the_media_leg_the_one_that_the_listener_knows() -> None:
    _, asterisk, _ = torn_down(replace(ENDING, hangup_cause=17), {f"GET {CALLER}": [IN_APP, GONE]})
    removals = [request for request in asterisk.requests if request.method == "DELETE"]
    assert [request.query for request in removals] == [{"reason_code": "17"}, {"reason_code": "86"}, None]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({f"DELETE {MEDIA}": [UNREACHABLE]}, "no answer in time"),
        ({f"DELETE {BRIDGE}": [UNREACHABLE], f"DELETE {MEDIA}": [GONE]}, "no answer in time"),
        ({f"GET {MEDIA}": [HERE, UNREACHABLE]}, "no answer in time"),
        ({f"GET {MEDIA}": [HERE]}, f"channel {NAMING.media_id(ENDING)} was hung up and is still there"),
        (
            {f"DELETE {BRIDGE}": [UNREACHABLE], f"GET {MEDIA}": [HERE]},
            f"no answer in time; channel {NAMING.media_id(ENDING)} was hung up and is still there",
        ),
    ],
)
def test_what_is_not_seen_gone_is_left_pending(answers: Answers, reason: str) -> None:
    fact, asterisk, _ = torn_down(replace(ENDING, caller_left=True), answers)
    assert fact == facts.RemovalPending(reason=reason)
    assert asterisk.rounds[0] == [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"]


DENIED = errors.AsteriskUnreachable("answered 403 Write access denied", may_have_acted=False)


@pytest.mark.parametrize(
    "failure", [DENIED, UNREACHABLE, errors.AsteriskRefused(405, "Method Not Allowed")], ids=["403", "no answer", "405"]
)
def test_what_could_not_be_removed_is_gone_when_a_look_says_so(failure: errors.PipelineError) -> None:
    """As for a user that may only read."""
    answers: Answers = {
        f"GET {CALLER}": [IN_APP, GONE], f"DELETE {CALLER}": [failure],
        f"DELETE {MEDIA}": [failure], f"GET {MEDIA}": [GONE],
        f"DELETE {BRIDGE}": [failure], f"GET {BRIDGE}": [GONE],
    }  # fmt: skip
    fact, asterisk, claim = torn_down(replace(ENDING, media_ready=True), answers)
    assert fact == facts.LegsRemoved(leg_id=ENDING.channel_id)
    assert asterisk.rounds[2] == [f"GET {CALLER}", f"GET {MEDIA}", f"GET {BRIDGE}"]
    assert claim.pauses == []


@pytest.mark.parametrize("what", [f"GET {CALLER}", f"GET {MEDIA}", f"GET {BRIDGE}"])
@pytest.mark.parametrize("is_there", [True, False], ids=["still there", "cannot be looked at"])
def test_what_could_not_be_removed_and_is_not_seen_gone_is_left_pending(what: str, *, is_there: bool) -> None:
    found: object = DENIED
    if is_there:
        found = WHOLE if what == f"GET {BRIDGE}" else IN_APP
    answers: dict[str, Sequence[object]] = {
        f"GET {CALLER}": [IN_APP, GONE], f"DELETE {CALLER}": [DENIED],
        f"DELETE {MEDIA}": [DENIED], f"GET {MEDIA}": [GONE],
        f"DELETE {BRIDGE}": [DENIED], f"GET {BRIDGE}": [GONE],
    }  # fmt: skip
    answers[what] = [*answers[what][:-1], found]
    fact, _, _ = torn_down(ENDING, answers)
    assert fact == facts.RemovalPending(reason="answered 403 Write access denied")


def test_a_run_that_is_not_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object, **__: object) -> None:
        raise errors.DatabaseUnavailable("locked")

    monkeypatch.setattr(Runs, "end", end)
    fact, _, _ = torn_down(replace(ENDING, caller_left=True), {f"DELETE {MEDIA}": [GONE]})
    assert fact == facts.RemovalPending(reason="the run is not ended: locked", run_is_over=False)


def test_a_failure_of_several_requests_is_told_once() -> None:
    unreachable: Answers = {f"DELETE {MEDIA}": [UNREACHABLE], f"DELETE {BRIDGE}": [UNREACHABLE]}
    assert torn_down(replace(ENDING, caller_left=True), unreachable)[0] == facts.RemovalPending(
        reason="no answer in time"
    )


def test_a_caller_that_cannot_be_looked_at_is_not_hung_up() -> None:
    fact, asterisk, _ = torn_down(ENDING, {f"GET {CALLER}": [UNREACHABLE], f"GET {MEDIA}": [GONE]})
    assert asterisk.rounds == [PLACE, [f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], [f"GET {MEDIA}"]]
    assert fact == facts.RemovalPending(reason="no answer in time")


def test_a_caller_without_its_variables_does_not_continue() -> None:
    fact, asterisk, _ = torn_down(
        REFUSED, {f"GET {CALLER}": [IN_APP], f"POST {CALLER}/variable": [{}, UNREACHABLE, {}]}
    )
    assert f"POST {CALLER}/continue" not in [request.what for request in asterisk.requests]
    assert fact == facts.RemovalPending(reason="no answer in time")


def test_a_caller_that_does_not_continue_is_left_pending() -> None:
    fact, _, _ = torn_down(REFUSED, {f"GET {CALLER}": [IN_APP]})
    assert fact == facts.RemovalPending(
        reason=f"channel {ENDING.channel_id} was continued in the dialplan and is still in the app"
    )


def test_each_look_comes_after_a_longer_pause_and_only_for_what_is_left() -> None:
    answers: Answers = {f"GET {CALLER}": [IN_APP, IN_APP, GONE], f"GET {MEDIA}": [HERE]}
    _, asterisk, claim = torn_down(ENDING, answers)
    assert asterisk.rounds[2:5] == [[f"GET {CALLER}", f"GET {MEDIA}"]] * 2 + [[f"GET {MEDIA}"]]
    assert claim.pauses == sorted(teardown._LOOKS)


def test_a_step_out_of_time_says_what_is_left() -> None:
    fact, asterisk, _ = torn_down(replace(ENDING, caller_left=True), {f"GET {MEDIA}": [HERE]}, pauses=1)
    assert len(asterisk.rounds) == 2
    assert fact == facts.RemovalPending(reason=f"channel {NAMING.media_id(ENDING)} was hung up and is still there")


def test_a_request_in_doubt_keeps_a_call_from_ending() -> None:
    call = replace(ENDING, caller_left=True, attempt_in_doubt_until=NOW + seconds(5))
    fact, _, _ = torn_down(call, {f"DELETE {MEDIA}": [GONE]})
    assert isinstance(fact, facts.RemovalPending)
    assert fact.not_before == NOW + seconds(5)
    assert fact.reason == "a request of unknown outcome may still take effect"


@pytest.mark.parametrize("field", ["attempt_in_doubt_until", "earlier_in_doubt_until"])
def test_a_request_that_can_take_effect_no_more_is_not_waited_for(field: str) -> None:
    call = replace(ENDING, caller_left=True, **{field: NOW})  # type: ignore[arg-type]
    assert torn_down(call, {f"DELETE {MEDIA}": [GONE]})[0] == facts.LegsRemoved(leg_id=ENDING.channel_id)


def test_the_run_is_ended_with_the_names_of_its_legs() -> None:
    runs = Runs()
    torn_down(ENDING, {f"GET {CALLER}": [GONE]}, runs=runs)
    assert runs.ended == [(ENDING, NAMING.media_id(ENDING), NAMING.bridge_id(ENDING))]


def test_a_run_that_is_not_ended_keeps_no_leg() -> None:
    call, runs = replace(ENDING, caller_left=True), Runs(errors.DatabaseUnavailable("the row is locked"))
    fact, asterisk, _ = torn_down(call, {f"DELETE {MEDIA}": [GONE]}, runs=runs)
    assert fact == facts.RemovalPending(reason="the run is not ended: the row is locked", run_is_over=False)
    assert asterisk.rounds == [[f"DELETE {MEDIA}", f"DELETE {BRIDGE}"], *asterisk.rounds[1:]]
    both, _, _ = torn_down(call, {f"DELETE {MEDIA}": [UNREACHABLE]}, runs=runs)
    assert both == facts.RemovalPending(
        reason="the run is not ended: the row is locked; no answer in time", run_is_over=False
    )


@pytest.mark.parametrize(
    ("is_there", "within"), [pytest.param(False, "the call's", id="gone"), pytest.param(True, None, id="still there")]
)
def test_the_run_ends_in_the_transaction_that_ends_the_call_or_alone(*, is_there: bool, within: str | None) -> None:
    """Nothing looks at the run again when the call has ended: no fail-over may forget one of the two."""
    left = channel(NAMING.media_id(ENDING)) if is_there else GONE
    call, runs = replace(ENDING, caller_left=True, media_ready=True), Runs()
    fact, _, _ = torn_down(call, {f"GET {MEDIA}": [left]}, pauses=1, runs=runs)
    assert isinstance(fact, facts.RemovalPending if is_there else facts.LegsRemoved)
    assert runs.within == [within]


def test_a_run_whose_end_fails_with_the_commit_is_pending() -> None:
    call = replace(ENDING, caller_left=True, media_ready=True)
    _, _, claim = torn_down(call, {f"GET {MEDIA}": [GONE]})
    assert claim.instead(errors.DatabaseRefused("a trigger says no")) == facts.RemovalPending(
        reason="the run is not ended: a trigger says no", run_is_over=False
    )


def test_slots_are_given_back_before_the_runs_row_is_locked() -> None:
    told: list[str] = []

    class Slots(NoPlatformSlots):
        def give_back(self, call: Call, *, media_ids: Collection[str]) -> None:
            told.append("slot")

    class NotedRuns(Runs):
        def end(self, call: Call, *, media_id: str, bridge_id: str, within: str | None) -> None:
            told.append("run")

    call = replace(ENDING, caller_left=True, media_ready=True)
    torn_down(call, {f"GET {MEDIA}": [GONE]}, runs=NotedRuns(), slots=Slots())
    assert told == ["slot", "run"]


def test_a_connection_that_is_gone_leaves_the_legs_pending() -> None:
    def of(_call: Call, _claim: object) -> None:
        raise errors.PermanentError("there is no connection 7:1")

    step = Teardown(
        asterisks=cast(Any, SimpleNamespace(of=of)), naming=NAMING, runs=cast(Any, Runs()), store=cast(Any, Store())
    )
    facts_reported = step.work(cast(Claim, StepClaim(ENDING)))
    assert facts_reported == (facts.RemovalPending(reason="there is no connection 7:1"),)


def test_a_caller_continues_with_the_reason_in_its_variables() -> None:
    gone = {f"GET {CALLER}": [IN_APP, GONE]}
    _, asterisk, _ = torn_down(replace(REFUSED, outcome=Outcome.REFUSED, hangup_cause=1), gone)
    told = [request.query for request in asterisk.requests if request.what.endswith("/variable")]
    assert told == [
        {"variable": "AIP_OUTCOME", "value": "refused"},
        {"variable": "AIP_REASON", "value": "no route"},
        {"variable": "AIP_CAUSE", "value": "1"},
    ]
