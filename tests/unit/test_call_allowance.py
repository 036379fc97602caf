"""How many calls of a connection are received in an hour."""

from workers.call_allowance import CallAllowance

HOUR = 3600.0


def test_an_hour_of_forged_calls_is_bounded_whatever_their_rate() -> None:
    now = 0.0
    allowance = CallAllowance(100, clock=lambda: now)
    taken = 0
    while now < HOUR:
        taken += allowance.take(1)
        now += 0.5
    assert 100 <= taken <= 110


def test_a_tenth_of_them_comes_at_once() -> None:
    allowance = CallAllowance(100, clock=lambda: 0.0)
    assert [allowance.take(1) for _ in range(12)] == [True] * 10 + [False] * 2


def test_no_connection_uses_up_another_s() -> None:
    allowance = CallAllowance(10, clock=lambda: 0.0)
    assert [allowance.take(1), allowance.take(1), allowance.take(2)] == [True, False, True]
