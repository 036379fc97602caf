"""A token bucket: what it holds, and what a debt costs."""

from __future__ import annotations

from shared.token_bucket import TokenBucket


def test_it_holds_its_burst_at_first_and_at_most() -> None:
    bucket = TokenBucket(per_second=2.0, burst=10.0)
    assert bucket.is_full(1000.0)
    assert bucket.wait_seconds(1000.0, 10.0) == 0.0
    bucket.take(10.0, 1000.0)
    assert not bucket.is_full(1000.0)
    assert bucket.wait_seconds(1000.0, 1.0) == 0.5
    assert bucket.wait_seconds(1000.5, 1.0) == 0.0
    assert bucket.wait_seconds(9999.0, 10.0) == 0.0
    assert bucket.wait_seconds(9999.0, 11.0) == 0.5
    assert bucket.is_full(9999.0)


def test_a_debt_is_paid_by_waiting() -> None:
    bucket = TokenBucket(per_second=0.5, burst=0.25)
    bucket.take(2.25, 0.0)
    assert bucket.wait_seconds(0.0) == 4.0
    assert bucket.wait_seconds(3.0) == 1.0
    bucket.take(0.5, 3.0)
    assert bucket.wait_seconds(3.0) == 2.0
    assert bucket.wait_seconds(5.0) == 0.0


def test_the_rate_itself_is_kept_for_ever() -> None:
    bucket = TokenBucket(per_second=100.0, burst=1000.0)
    for number in range(10_000):
        bucket.take(10.0, number / 10)
        assert bucket.wait_seconds(number / 10) == 0.0
