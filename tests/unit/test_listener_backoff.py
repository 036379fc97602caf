"""The listener's back-off: doubling, jittered, reset by stability only."""

import pytest

from listener import backoff


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (50, 300), (10_000, 300)]
)
def test_ceiling_doubles_up_to_the_slowest(failures: int, seconds: float) -> None:
    assert backoff.delay_seconds(failures, 1.0, slowest=300) == seconds


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.999])
def test_jitter_is_full(jitter: float) -> None:
    assert backoff.delay_seconds(4, jitter, slowest=300) == 8 * jitter


def test_failures_in_a_row_climb() -> None:
    ladder = backoff.Ladder()
    delays = [ladder.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0) for _ in range(10)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_a_handshake_alone_does_not_reset() -> None:
    ladder = backoff.Ladder()
    delays = [ladder.next_delay_seconds(open_seconds=29.9, lasting=False, jitter=1.0) for _ in range(3)]
    assert delays == [1, 2, 4]


def test_stability_resets() -> None:
    ladder = backoff.Ladder()
    for _ in range(6):
        ladder.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0)
    assert ladder.next_delay_seconds(open_seconds=30, lasting=False, jitter=1.0) == 1
    assert ladder.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0) == 2


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 150), (0.5, 225), (1.0, 300)])
def test_what_lasts_goes_to_the_slow_end_at_once(jitter: float, seconds: float) -> None:
    assert backoff.Ladder().next_delay_seconds(open_seconds=0, lasting=True, jitter=jitter) == seconds
