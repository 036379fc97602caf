"""The token bucket of an event socket."""

from __future__ import annotations

from listener.rate_limit import BURST_SECONDS, TokenBucket


def test_a_burst_is_allowed_and_more_is_not() -> None:
    bucket = TokenBucket(100, now=0.0)
    assert bucket.take(100 * BURST_SECONDS, now=0.0)
    assert not bucket.take(1, now=0.0)


def test_it_fills_at_its_rate_and_no_further_than_a_burst() -> None:
    bucket = TokenBucket(100, now=0.0)
    bucket.take(100 * BURST_SECONDS, now=0.0)
    assert bucket.take(50, now=0.5)
    assert not bucket.take(51, now=1.0)
    assert not bucket.take(100 * BURST_SECONDS + 1, now=1000.0)


def test_the_rate_itself_is_kept_for_ever() -> None:
    bucket = TokenBucket(100, now=0.0)
    assert all(bucket.take(10, now=number / 10) for number in range(10_000))
