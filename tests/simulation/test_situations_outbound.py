"""Situations of outbound calls: legs that the product or the platform originates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shared import messages
from shared.asterisk import events
from shared.call.states import Outcome, State
from shared.storage import connections
from simulator import channels, originates
from tests.simulation import platforms
from tests.simulation.asterisks import Asterisk
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import CONNECTION, ends_well, only, states, without


def test_a_far_end_that_answers_gets_an_agent_and_not_before(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment(answer_after_seconds=3.0)
    environment.open()
    environment.world.run(0.3)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(3.0)
    assert states(environment) == [State.RINGING]
    assert environment.asterisks["pbx1"].bridges == {}
    environment.world.run(4.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


@pytest.mark.parametrize(
    ("number", "outcome"), [("busy", Outcome.BUSY), ("congestion", Outcome.FAILED), ("reject", Outcome.FAILED)]
)
def test_a_far_end_that_does_not_answer_ends_the_run_within_a_second(
    environment: Environment, number: str, outcome: Outcome
) -> None:
    environment.callers.request_call(environment.tenants[0], number)
    environment.world.run(1.3)
    assert (only(environment).state, only(environment).outcome) == (State.ENDED, outcome)
    assert [run.is_completed for run in environment.runs.rows.values()] == [True]
    ends_well(environment)


@pytest.mark.parametrize("end_first", [False, True])
def test_a_far_end_that_hangs_up_before_its_run_is_attached_ends_the_run(
    environment: Environment, *, end_first: bool
) -> None:
    kept: list[events.Event] = []
    environment.listeners[0].passes = without(*events.EventType, kept_in=kept)
    run = environment.callers.platform_calls(environment.tenants[0], "100")
    environment.world.run(0.4)
    environment.callers.hang_up_all()
    environment.world.run(0.5)
    entered, left = (next(event for event in kept if event.type == kind) for kind in ("StasisStart", "StasisEnd"))

    def receive() -> None:
        environment.handle(
            "caller_entered", connection=CONNECTION, at_ms=environment.broker.redis_ms() or 0, event=entered
        )

    def end() -> None:
        environment.handle("leg_ended", connection=CONNECTION, event=left)

    for number, report in enumerate([end, receive] if end_first else [receive, end]):
        report()
        environment.world.run(1.0 + number)
    assert only(environment).state is State.ENDED
    assert run.is_completed
    assert environment.world.violations == []


def test_a_far_end_whose_answer_was_never_told_ends_its_run_when_it_hangs_up(environment: Environment) -> None:
    environment.listeners[0].passes = without(events.EventType.STASIS_START)
    run = environment.callers.platform_calls(environment.tenants[0], "100")
    environment.world.run(0.4)
    environment.callers.hang_up_all()
    environment.world.run(2.0)
    assert only(environment).workflow_run_id == run.run_id
    assert run.is_completed
    ends_well(environment)


def over_too_soon(make_environment: Callable[..., Environment], answer_after_seconds: float) -> Environment:
    """An originated leg rings, and its call is over: an Asterisk that hung carried out the request much later."""
    environment = make_environment(answer_after_seconds=answer_after_seconds)
    environment.open()
    environment.world.run(0.3)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(1.0)
    (row,) = environment.store.rows.values()
    assert row.call.state is State.RINGING
    row.call = replace(row.call, state=State.ENDED, outcome=Outcome.CANCELED, deadline_at=None)
    for run in environment.runs.rows.values():
        run.is_completed = True
    return environment


def test_a_far_end_that_answers_when_its_call_is_long_over_is_hung_up(
    make_environment: Callable[..., Environment],
) -> None:
    environment = over_too_soon(make_environment, answer_after_seconds=1.5)
    environment.world.run(2.3)
    assert not environment.asterisks["pbx1"].channels
    environment.invariants.check_end()
    assert environment.world.violations == []


def test_a_leg_that_rings_when_its_call_is_long_over_is_found_by_a_resync(
    make_environment: Callable[..., Environment],
) -> None:
    environment = over_too_soon(make_environment, answer_after_seconds=60.0)
    environment.world.run(6.0)
    environment.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    environment.world.run(7.0)
    assert not environment.asterisks["pbx1"].channels
    environment.invariants.check_end()
    assert environment.world.violations == []


def test_a_call_that_is_refused_before_any_worker_has_dialled_ends_at_once(
    make_environment: Callable[..., Environment],
) -> None:
    environment = make_environment(refuses=1.0)
    environment.open()
    environment.world.run(0.3)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(0.5)
    call = only(environment)
    assert (call.state, call.outcome) == (State.ENDED, Outcome.REFUSED)
    environment.invariants.check_end()
    assert environment.world.violations == []


@pytest.mark.parametrize("number", ["ring", "100"])
@pytest.mark.parametrize("late_by_seconds", [0.5, 3.0])
def test_a_leg_that_is_dialled_late_does_not_outlive_its_call(
    environment: Environment, late_by_seconds: float, number: str
) -> None:
    """The request got no answer, and takes effect when it counts as lost."""
    asterisk = environment.asterisks["pbx1"]
    environment.world.script("POST /channels", Fault.UNSENT)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(15.5)
    call = only(environment)
    assert (call.state, call.outcome) == (State.ENDING, Outcome.FAILED)
    assert [run.is_completed for run in environment.runs.rows.values()] == [True]

    def dial() -> None:
        originates.originate(
            asterisk, endpoint=f"PJSIP/{number}", app="app1", args=[], caller="", channel_id=call.channel_id,
            other_channel_id=None, timeout_seconds=20.0,
        )  # fmt: skip

    environment.world.after(late_by_seconds, dial)
    environment.world.run(27.0)
    assert not asterisk.channels
    assert states(environment) == [State.ENDED]
    assert environment.world.violations == []


def dials(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets every leg which Asterisk dials from now on."""
    dialled: list[str] = []
    add = Asterisk.add

    def noted(asterisk: Asterisk, channel: channels.Channel) -> None:
        if channel.kind is channels.Kind.ORIGINATED:
            dialled.append(channel.id)
        add(asterisk, channel)

    monkeypatch.setattr(Asterisk, "add", noted)
    return dialled


@pytest.mark.parametrize("fault", [Fault.KILLED_AFTER, Fault.UNANSWERED])
def test_a_far_end_is_not_rung_again_when_nothing_is_known_of_the_first_time(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """The request's worker or its answer is lost, the far end was busy, and the events that told it are lost, too."""
    dialled = dials(environment, monkeypatch)
    environment.listeners[0].passes = without(events.EventType.CHANNEL_DESTROYED, events.EventType.DIAL)
    environment.world.script("POST /channels", fault)
    environment.callers.request_call(environment.tenants[0], "busy")
    environment.world.run(30.0)
    call = only(environment)
    assert (call.state, call.outcome) == (State.ENDED, Outcome.FAILED)
    assert call.reason is not None
    assert call.reason.startswith("dialled, and what came of it is unknown: ")
    assert len(dialled) == 1
    assert [run.is_completed for run in environment.runs.rows.values()] == [True]
    assert environment.world.violations == []


@pytest.mark.parametrize(("fault", "count"), [(Fault.REFUSED, 1), (Fault.UNANSWERED, 1), (Fault.KILLED_BEFORE, 0)])
def test_what_was_not_sent_is_asked_for_again_and_what_may_have_been_is_looked_for(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, fault: Fault, count: int
) -> None:
    dialled = dials(environment, monkeypatch)
    environment.world.script("POST /channels", fault)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(30.0)
    assert len(dialled) == count
    assert states(environment) == [State.CONNECTED if count else State.ENDED]
    ends_well(environment)


def test_a_leg_that_rings_is_not_dialled_again_though_a_fail_over_has_forgotten_that_it_was(
    make_environment: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = make_environment(answer_after_seconds=10.0)
    environment.open()
    environment.world.run(0.3)
    dialled = dials(environment, monkeypatch)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(2.0)
    assert states(environment) == [State.RINGING]
    environment.fail_over(only(environment), 3)
    assert (states(environment), only(environment).is_dial_begun) == ([State.ORIGINATING], False)
    environment.world.run(13.0)
    assert states(environment) == [State.CONNECTED]
    assert len(dialled) == 1
    ends_well(environment)


def test_a_resync_does_not_take_a_far_end_that_rings_for_answered(
    make_environment: Callable[..., Environment],
) -> None:
    """The app lists the leg from the moment it is dialled."""
    environment = make_environment(answer_after_seconds=10.0)
    environment.open()
    environment.world.run(0.3)
    environment.callers.request_call(environment.tenants[0], "100")
    environment.world.run(5.0)
    for is_full in (False, True):
        environment.handle("resync_connection", connection=CONNECTION, full=is_full, reason="test")
        environment.world.run(environment.world.now + 1.0)
    assert states(environment) == [State.RINGING]
    environment.world.run(11.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


def test_a_platform_s_leg_that_rings_in_stasis_gets_no_agent(environment: Environment) -> None:
    """The platform creates it first and dials it then: its StasisStart comes before the answer."""
    run = environment.callers.platform_creates(environment.tenants[0], answers_after_seconds=1.0)
    environment.world.run(3.0)
    call = only(environment)
    assert (call.state, call.outcome, call.reason) == (
        State.ENDED, Outcome.REFUSED, "the far end has not answered: Ringing"
    )  # fmt: skip
    assert run.is_completed
    ends_well(environment)


def test_a_call_requested_twice_is_dialled_once(environment: Environment) -> None:
    request = environment.callers.request_call(environment.tenants[0], "100")
    environment.broker.put(messages.of_request(request))
    environment.world.run(2.0)
    environment.broker.put(messages.of_request(request))
    environment.world.run(3.0)
    assert states(environment) == [State.CONNECTED]
    assert len(environment.runs.rows) == 1
    ends_well(environment)


def test_a_call_requested_twice_is_dialled_once_though_its_connection_is_replaced_in_between(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tenant,), through = environment.tenants, platforms.Connections.outbound_connection

    def replaced_after(
        self: platforms.Connections, organization_id: int, preferred: int | None
    ) -> connections.ConnectionDetails:
        found = through(self, organization_id, preferred)
        if tenant.connection_id == found.connection.connection_id:
            environment.save_anew(tenant)
        return found

    monkeypatch.setattr(platforms.Connections, "outbound_connection", replaced_after)
    request = environment.callers.request_call(tenant, "100")
    environment.broker.put(messages.of_request(request))
    environment.world.run(5.0)
    assert states(environment) == [State.CONNECTED]
    assert len(environment.runs.rows) == 1
    ends_well(environment)


def test_a_run_of_another_tenant_is_refused_and_left_alone(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment(asterisks=("pbx1", "pbx2"))
    environment.open()
    environment.world.run(0.3)
    run = environment.runs.begin(environment.tenants[0].organization_id)
    environment.callers.platform_calls(environment.tenants[1], "100", run=run)
    environment.world.run(2.0)
    assert (only(environment).state, only(environment).outcome) == (State.ENDED, Outcome.REFUSED)
    assert (run.is_completed, run.channel_id) == (False, None)
    environment.callers.platform_calls(environment.tenants[0], "100", run=run)
    environment.world.run(4.0)
    assert states(environment)[-1] is State.CONNECTED
    ends_well(environment)
    assert run.is_completed


def test_a_leg_that_still_rings_is_not_adopted(make_environment: Callable[..., Environment]) -> None:
    """The app receives its events, and lists it."""
    environment = make_environment(answer_after_seconds=5.0)
    environment.open()
    environment.world.run(0.3)
    environment.callers.platform_calls(environment.tenants[0], "100")
    environment.world.run(1.0)
    environment.ask_resyncs("test", full=True)
    environment.world.run(5.0)
    assert states(environment) == []
    environment.world.run(6.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)
