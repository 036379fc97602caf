"""How many refusals of a user are recorded."""

from __future__ import annotations

from console import refusal_bound
from console.refusal_bound import RefusalBound
from shared.operator.audit import Action


def action(subject: str = "call 1", name: str = "hangup") -> Action:
    return Action(name=name, subject=subject)


def test_a_refusal_is_recorded_once_in_a_minute_for_its_user_action_and_subject() -> None:
    now = 0.0
    bound = RefusalBound(lambda: now)
    asked = [("vera", action()), ("vera", action("call 2")), ("vera", action(name="call unmask")), ("tom", action())]
    assert [bound.takes(*each) for each in asked] == [True] * 4
    assert [bound.takes(*each) for each in asked] == [False] * 4
    now = refusal_bound.SECONDS
    assert bound.takes(*asked[0])


def test_a_user_who_tries_another_subject_each_time_is_recorded_so_often() -> None:
    bound = RefusalBound(lambda: 0.0)
    taken = [bound.takes("vera", action(f"call {number}")) for number in range(refusal_bound.MOST_OF_USER + 5)]
    assert taken == [True] * refusal_bound.MOST_OF_USER + [False] * 5
    assert bound.takes("tom", action())
