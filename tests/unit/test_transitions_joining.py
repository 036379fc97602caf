"""Joining the legs, and losing the bridge later."""

from __future__ import annotations

from dataclasses import replace

from shared.call import facts
from shared.call.states import Outcome
from tests.support.calls import (
    CONNECTED,
    JOINING,
    LIMITS,
    NOW,
    advance,
    seconds,
)


def test_joined_legs_are_a_connected_call() -> None:
    after, ordered = advance(JOINING, facts.Joined(attempt=1))
    assert (after.connected_at, after.deadline_at) == (NOW, NOW + seconds(LIMITS.call_seconds))
    assert ordered == []


def test_a_join_of_another_attempt_connects_nothing() -> None:
    call = replace(JOINING, attempt=2)
    assert advance(call, facts.Joined(attempt=1), facts.JoinRefused(attempt=1, reason="")) == (call, [])


def test_a_connection_s_own_bound_ends_a_call() -> None:
    connected, _ = advance(replace(JOINING, call_seconds=90.0), facts.Joined(attempt=1))
    assert connected.deadline_at == NOW + seconds(90)


def test_a_lost_bridge_fails_the_call() -> None:
    after, _ = advance(CONNECTED, facts.BridgeLost(attempt=1, reason="gone"))
    assert (after.outcome, after.reason) == (Outcome.FAILED, "bridge lost: gone")


def test_a_bridge_of_another_attempt_that_is_lost_ends_nothing() -> None:
    call = replace(CONNECTED, attempt=2)
    assert advance(call, facts.BridgeLost(attempt=1, reason="gone")) == (call, [])
