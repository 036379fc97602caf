"""How much of a session's capacity a group may use, and what makes a group slow; no Redis, no clock."""

from __future__ import annotations

from random import Random

from shared.broker.fairness import REMEMBERED_SECONDS, SLOW_SECONDS, Fairness

Arguments = tuple[int, int, dict[bytes, tuple[int, bool]]]


def arguments(fairness: Fairness, now: float) -> Arguments:
    """Return the script's arguments: group limit, free for slow groups, group → its messages and whether it is slow."""
    limit, slow_free, number, *rest = fairness.arguments(now)
    groups = {bytes(rest[at]): (int(rest[at + 1]), int(rest[at + 2]) > 0) for at in range(0, len(rest), 3)}
    assert number == len(groups)
    return int(limit), int(slow_free), groups


def test_a_quarter_of_the_capacity_is_reserved_if_there_is_more_than_one() -> None:
    assert [Fairness(capacity).ceiling for capacity in (1, 2, 3, 4, 8, 10, 64)] == [1, 1, 2, 3, 6, 8, 48]


def test_a_group_is_reported_while_it_has_a_message_in_flight() -> None:
    fairness = Fairness(8)
    assert arguments(fairness, 0.0) == (6, 6, {})
    fairness.delivered(b"q/7/a", b"7", 0.0)
    fairness.delivered(b"q/7/b", b"7", 0.0)
    fairness.delivered(b"q/8/c", b"8", 0.0)
    assert arguments(fairness, 0.1) == (4, 6, {b"7": (2, False), b"8": (1, False)})
    fairness.settled(b"q/7/a", 0.1)
    fairness.settled(b"q/8/c", 0.1)
    fairness.settled(b"q/8/unknown", 0.1)
    assert arguments(fairness, 0.1) == (4, 6, {b"7": (1, False)})


def test_among_active_groups_each_has_an_equal_share_and_at_least_a_quarter() -> None:
    for capacity, limits in {1: [1, 1, 1, 1], 4: [3, 2, 1, 1], 8: [6, 4, 2, 2], 16: [12, 8, 5, 4]}.items():
        fairness, found = Fairness(capacity), []
        for number in range(4):
            fairness.delivered(b"%d" % number, b"group %d" % number, 0.0)
            found.append(fairness.group_limit(0.0))
        assert found == limits
    assert fairness.group_limit(REMEMBERED_SECONDS + 1) == 4, "a group is active while it has a message in flight"
    for number in range(1, 4):
        fairness.settled(b"%d" % number, REMEMBERED_SECONDS + 1)
    assert fairness.group_limit(REMEMBERED_SECONDS + 1) == 12


def test_a_group_stays_active_for_a_while() -> None:
    fairness = Fairness(8)
    fairness.delivered(b"a", b"7", 0.0)
    fairness.settled(b"a", 0.1)
    fairness.delivered(b"b", b"8", 0.1)
    assert fairness.group_limit(REMEMBERED_SECONDS - 0.1) == 4
    assert fairness.group_limit(REMEMBERED_SECONDS) == 6


def test_the_credit_is_what_the_group_that_has_most_has_left() -> None:
    fairness = Fairness(8)
    assert fairness.credit(8, 0.0) == 6
    for number in range(5):
        fairness.delivered(b"%d" % number, b"7", 0.0)
    assert fairness.credit(3, 0.0) == 1
    fairness.settled(b"4", 0.0)
    fairness.delivered(b"x", b"8", 0.0)
    assert fairness.credit(3, 0.0) == 0
    assert Fairness(1).credit(1, 0.0) == 1


def test_the_credit_is_no_more_than_the_free_capacity() -> None:
    assert Fairness(8).credit(2, 0.0) == 2
    assert Fairness(8).credit(0, 0.0) == 0


def test_with_slow_groups_the_credit_is_what_they_have_left() -> None:
    fairness = Fairness(8)
    for number in range(6):
        fairness.delivered(b"%d" % number, b"%d" % (number % 3), 0.0)
    assert fairness.credit(2, SLOW_SECONDS) == 0
    fairness = Fairness(8)
    for number in range(3):
        fairness.delivered(b"%d" % number, b"%d" % number, 0.0)
    assert fairness.credit(5, SLOW_SECONDS) == 1
    for number in range(4, 7):
        fairness.delivered(b"%d" % number, b"%d" % number, 0.0)
    assert fairness.credit(2, SLOW_SECONDS + 0.1) == 0, "the slow ones have the capacity that they may have together"


def test_no_credit_takes_a_group_above_a_limit() -> None:
    """Whatever is in flight, and whichever groups the messages pushed belong to."""
    random = Random(1)
    for _ in range(500):
        fairness, now = Fairness(random.randint(1, 16)), 0.0
        for number in range(random.randint(0, 12)):
            now += random.choice((0.0, 0.1, 1.5))
            fairness.delivered(b"%d" % number, b"%d" % random.randint(0, 4), now)
        limit, slow_free, groups, *rest = fairness.arguments(now)
        in_flight = dict(zip(rest[::3], rest[1::3], strict=True))
        slow = any(rest[2::3])
        credit = fairness.credit(random.randint(0, 16), now)
        assert isinstance(credit, int)
        assert groups == len(in_flight)
        most = max((int(count) for count in in_flight.values()), default=0)
        assert credit == 0 or most + credit <= int(limit)
        assert not slow or credit <= int(slow_free)


def test_a_group_is_slow_while_one_of_its_messages_is_and_for_a_while_after() -> None:
    fairness = Fairness(8)
    fairness.delivered(b"q/7/a", b"7", 0.0)
    fairness.delivered(b"q/7/b", b"7", 0.9)
    fairness.delivered(b"q/8/c", b"8", 0.9)
    slow_at = SLOW_SECONDS + 0.1
    assert arguments(fairness, slow_at) == (4, 4, {b"7": (2, True), b"8": (1, False)})
    fairness.settled(b"q/7/a", slow_at)
    fairness.settled(b"q/8/c", slow_at)
    # A quick message in between, such as an event that no longer applies, proves nothing.
    fairness.settled(b"q/7/b", slow_at)
    assert arguments(fairness, slow_at) == (4, 6, {b"7": (0, True)})
    assert arguments(fairness, slow_at + REMEMBERED_SECONDS - 0.1) == (6, 6, {b"7": (0, True)})
    assert arguments(fairness, slow_at + REMEMBERED_SECONDS) == (6, 6, {})


def test_how_long_a_group_counts_as_slow_is_told() -> None:
    fairness = Fairness(8)
    fairness.delivered(b"a", b"7", 0.0)
    fairness.delivered(b"b", b"8", 0.0)
    fairness.settled(b"b", 2.0)
    assert list(fairness.arguments(5.0))[2:] == [2, b"7", 1, 10_000, b"8", 0, 7_000]


def test_what_is_told_does_not_grow_with_the_groups() -> None:
    fairness = Fairness(8)
    for number in range(1000):
        fairness.delivered(b"%d" % number, b"group %d" % number, 0.0)
        fairness.settled(b"%d" % number, 2.0)
    _, _, groups = arguments(fairness, 2.0)
    assert set(groups) == {b"group %d" % number for number in range(992, 1000)}, "the latest, of which all were told"


def test_a_group_that_was_slow_again_keeps_no_other_slow() -> None:
    fairness = Fairness(8)
    for group, began in ((b"7", 0.0), (b"8", 1.0), (b"7", 7.0)):
        fairness.delivered(b"a", group, began)
        fairness.settled(b"a", began + 2)
    assert arguments(fairness, 3 + REMEMBERED_SECONDS)[2] == {b"7": (0, True)}


def test_slow_groups_together_have_the_limit_of_one_alone() -> None:
    fairness = Fairness(4)
    for number in range(4):
        fairness.delivered(b"%d" % number, b"group %d" % number, 0.0)
    limit, slow_free, groups = arguments(fairness, 5.0)
    assert (limit, slow_free) == (1, 0)
    assert all(slow for _, slow in groups.values())


def test_a_message_without_a_group_is_never_counted() -> None:
    fairness = Fairness(2)
    fairness.delivered(b"q//a", b"", 0.0)
    assert arguments(fairness, 5.0) == (1, 1, {})
    fairness.settled(b"q//a", 5.0)
    assert arguments(fairness, 5.0) == (1, 1, {})
