"""What each wait of a call is made of, and how the pause of a teardown grows."""

from __future__ import annotations

from datetime import timedelta

from shared.call.limits import Limits

SLOW = Limits(connect_seconds=30, read_seconds=60, queue_seconds=60, quota_seconds=20, database_seconds=5)


def test_each_wait_is_made_of_its_parts() -> None:
    limits = Limits()
    assert limits.queue_wait() == timedelta(seconds=3)
    assert limits.media_wait() == timedelta(seconds=3)
    # A claim, and how long a message may wait.
    assert limits.attempt_wait() == timedelta(seconds=8 + 3)
    # A claim, and one request that its worker has begun.
    assert limits.originate_wait() == timedelta(seconds=13 + 6)
    assert limits.ring_wait(None) == timedelta(seconds=60 + 5)
    assert limits.ring_wait(25.0) == timedelta(seconds=25 + 5)


def test_the_pause_of_a_teardown_doubles_up_to_its_bound() -> None:
    pauses = [
        Limits(teardown_pause_seconds=1e9).teardown_pause(tries).total_seconds() for tries in (0, 1, 2, 16, 17, 999)
    ]
    assert pauses == [1, 2, 4, 65536, 65536, 65536]
    assert Limits().teardown_pause(6) == timedelta(seconds=60)
