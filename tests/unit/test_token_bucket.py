"""A token bucket: what it holds, and what a debt costs."""

from __future__ import annotations

from shared import token_bucket
from shared.token_bucket import TokenBucket, TokenBuckets


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


def test_each_key_has_its_bucket_which_tells_how_many_it_has_refused() -> None:
    buckets = TokenBuckets(per_second=1.0, burst=2.0)
    assert [buckets.take("a", 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert buckets.take("b", 0.0) == 0
    assert [buckets.take("a", 1.0), buckets.take("a", 1.0), buckets.take("a", 2.0)] == [3, None, 1]


def test_the_bucket_used_least_recently_is_forgotten() -> None:
    buckets = TokenBuckets(per_second=1.0, burst=1.0)
    buckets.take("first", 0.0)
    buckets.take("second", 0.0)
    for number in range(token_bucket._KEPT - 2):
        buckets.take(number, 0.0)
    assert buckets.take("first", 0.0) is None
    buckets.take("one more", 0.0)
    assert buckets.take("first", 0.0) is None
    assert buckets.take("second", 0.0) == 0
