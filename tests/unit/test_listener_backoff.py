"""The back-off of event sockets: doubling, jittered, reset by stability only."""

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


def test_delays_grow_with_failures_in_a_row() -> None:
    schedule = backoff.Backoff()
    delays = [schedule.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0) for _ in range(10)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_a_handshake_alone_does_not_reset() -> None:
    schedule = backoff.Backoff()
    delays = [schedule.next_delay_seconds(open_seconds=29.9, lasting=False, jitter=1.0) for _ in range(3)]
    assert delays == [1, 2, 4]


def test_a_stable_socket_resets_the_delay() -> None:
    schedule = backoff.Backoff()
    for _ in range(6):
        schedule.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0)
    assert schedule.next_delay_seconds(open_seconds=30, lasting=False, jitter=1.0) == 1
    assert schedule.next_delay_seconds(open_seconds=0, lasting=False, jitter=1.0) == 2


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 150), (0.5, 225), (1.0, 300)])
def test_a_lasting_cause_goes_to_the_slow_end_at_once(jitter: float, seconds: float) -> None:
    assert backoff.Backoff().next_delay_seconds(open_seconds=0, lasting=True, jitter=jitter) == seconds
