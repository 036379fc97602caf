"""Which callers are admitted before their call is first written, and which legs of the platform are served."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from shared.call import facts
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import Cause, Direction
from tests.support.calls import RECEIVED
from tests.support.rounds import GONE, Rounds, channel
from workers.admission import Admission
from workers.step_ports import NoQuota

LEG = replace(RECEIVED, direction=Direction.OUTBOUND, args=("workflow_run_id=9", "workflow_id=1"))


def admission(*, asks_network: bool = False) -> Admission:
    quota = NoQuota()
    quota.asks_network = asks_network
    others = ("connections", "routes", "slots", "slot_count", "runs", "asterisks", "naming", "limits")
    return Admission(quota=quota, **{name: MagicMock() for name in others})


def test_a_caller_whose_admission_asks_postgres_only_is_admitted_quickly() -> None:
    assert admission().is_quick(RECEIVED)


@pytest.mark.parametrize(
    ("call", "asks_network"),
    [
        pytest.param(RECEIVED, True, id="the quota service may take seconds"),
        pytest.param(replace(RECEIVED, direction=Direction.OUTBOUND), False, id="a platform's leg is looked at first"),
        # While it is not written, its end would find the entry before and change nothing.
        pytest.param(replace(RECEIVED, entry=2), False, id="a channel that came back"),
    ],
)
def test_any_other_call_is_written_first(call: Call, *, asks_network: bool) -> None:
    assert not admission(asks_network=asks_network).is_quick(call)


@pytest.mark.parametrize(
    ("state", "is_served"),
    [("Up", True), ("Ring", True), ("Ringing", False), ("Down", False), ("Dialing", False), ("Rsrvd", False)],
)
def test_a_platform_s_leg_is_served_once_its_far_end_has_answered(state: str, *, is_served: bool) -> None:
    """A leg that was created first and dialled later rings in Stasis: the agent would talk to an empty line."""
    fact = looked_at(channel(LEG.channel_id) | {"state": state})
    assert isinstance(fact, facts.Refused) is not is_served
    if not is_served:
        assert fact == facts.Refused(reason=f"the far end has not answered: {state}", hangup_cause=Cause.NOT_ALLOWED)


@pytest.mark.parametrize(
    ("leg", "fact"),
    [
        pytest.param(GONE, facts.CallerGone(leg_id=LEG.channel_id), id="gone"),
        pytest.param(
            channel(LEG.channel_id, created="2026-05-01T13:00:00.000+0000"),
            facts.CallerGone(leg_id=LEG.channel_id),
            id="another",
        ),
        pytest.param(
            channel(LEG.channel_id, app="other"),
            facts.CallerLeft(leg_id=LEG.channel_id, is_up=True),
            id="in another app",
        ),
    ],
)
def test_a_platform_s_leg_that_is_no_longer_in_the_app_is_not_served(leg: object, fact: facts.Fact) -> None:
    assert looked_at(leg) == fact


def looked_at(leg: object) -> facts.Fact | None:
    """Return what an admission makes of a platform's leg that Asterisk shows like this; None when it is served."""
    step = replace(admission(), asterisks=Rounds({f"GET /channels/{LEG.channel_id}": [leg]}).asterisks)
    target = SimpleNamespace(served_by=ConnectionVersion(7, 1), organization_id=3)
    claim = MagicMock(call=LEG, arrival=SimpleNamespace(target=target, check=None))
    claim.ask_once.side_effect = lambda _question, ask: ask()
    (fact, *_) = step.work(claim)
    return None if isinstance(fact, facts.RunAttached) else fact
