"""Shares: who may take one more place, and what makes a group slow; no Redis, no clock."""

from __future__ import annotations

from shared.broker.fairness import REMEMBERED_SECONDS, SLOW_SECONDS, Shares

Told = tuple[int, int, dict[bytes, tuple[int, bool]]]


def told(shares: Shares, now: float) -> Told:
    """What the script is given: most of one group, room for slow ones, group → its places and whether it is slow."""
    most, room, number, *rest = shares.arguments(now)
    groups = {bytes(rest[at]): (int(rest[at + 1]), rest[at + 2] == 1) for at in range(0, len(rest), 3)}
    assert number == len(groups)
    return int(most), int(room), groups


def test_a_quarter_is_left_to_others_as_far_as_there_is_any() -> None:
    assert [Shares(places).most for places in (1, 2, 3, 4, 8, 10, 64)] == [1, 1, 2, 3, 6, 8, 48]


def test_a_group_is_told_of_while_it_holds_a_place() -> None:
    shares = Shares(8)
    assert told(shares, 0.0) == (6, 6, {})
    shares.taken(b"q/7/a", b"7", 0.0)
    shares.taken(b"q/7/b", b"7", 0.0)
    shares.taken(b"q/8/c", b"8", 0.0)
    assert told(shares, 0.1) == (4, 6, {b"7": (2, False), b"8": (1, False)})
    shares.settled(b"q/7/a", 0.1)
    shares.settled(b"q/8/c", 0.1)
    shares.settled(b"q/8/unknown", 0.1)
    assert told(shares, 0.1) == (4, 6, {b"7": (1, False)})


def test_in_company_a_group_has_an_even_share_and_never_less_than_a_quarter() -> None:
    for places, shares_of in {1: [1, 1, 1, 1], 4: [3, 2, 1, 1], 8: [6, 4, 2, 2], 16: [12, 8, 5, 4]}.items():
        shares, found = Shares(places), []
        for number in range(4):
            shares.taken(b"%d" % number, b"group %d" % number, 0.0)
            found.append(shares.share(0.0))
        assert found == shares_of
    assert shares.share(REMEMBERED_SECONDS + 1) == 4, "what is in hand is about, however long"
    for number in range(1, 4):
        shares.settled(b"%d" % number, REMEMBERED_SECONDS + 1)
    assert shares.share(REMEMBERED_SECONDS + 1) == 12


def test_company_is_remembered_for_a_while() -> None:
    shares = Shares(8)
    shares.taken(b"a", b"7", 0.0)
    shares.settled(b"a", 0.1)
    shares.taken(b"b", b"8", 0.1)
    assert shares.share(REMEMBERED_SECONDS - 0.1) == 4
    assert shares.share(REMEMBERED_SECONDS) == 6


def test_a_group_that_has_its_share_is_told() -> None:
    shares = Shares(8)
    assert not shares.is_full(0.0)
    for number in range(5):
        shares.taken(b"%d" % number, b"7", 0.0)
    assert not shares.is_full(0.0)
    shares.taken(b"5", b"7", 0.0)
    assert shares.is_full(0.0)
    shares.settled(b"5", 0.0)
    assert not shares.is_full(0.0)
    shares.taken(b"x", b"8", 0.0)
    assert shares.is_full(0.0)


def test_a_group_is_slow_while_one_of_its_messages_is_and_for_a_while_after() -> None:
    shares = Shares(8)
    shares.taken(b"q/7/a", b"7", 0.0)
    shares.taken(b"q/7/b", b"7", 0.9)
    shares.taken(b"q/8/c", b"8", 0.9)
    slow_at = SLOW_SECONDS + 0.1
    assert told(shares, slow_at) == (4, 4, {b"7": (2, True), b"8": (1, False)})
    shares.settled(b"q/7/a", slow_at)
    shares.settled(b"q/8/c", slow_at)
    # A quick one in between, such as an event that no longer applies, proves nothing.
    shares.settled(b"q/7/b", slow_at)
    assert told(shares, slow_at) == (4, 6, {b"7": (0, True)})
    assert told(shares, slow_at + REMEMBERED_SECONDS - 0.1) == (6, 6, {b"7": (0, True)})
    assert told(shares, slow_at + REMEMBERED_SECONDS) == (6, 6, {})


def test_slow_groups_share_what_one_alone_could_have() -> None:
    shares = Shares(4)
    for number in range(4):
        shares.taken(b"%d" % number, b"group %d" % number, 0.0)
    most, room, groups = told(shares, 5.0)
    assert (most, room) == (1, 0)
    assert all(slow for _, slow in groups.values())


def test_a_message_of_nobody_is_never_counted() -> None:
    shares = Shares(2)
    shares.taken(b"q//a", b"", 0.0)
    assert told(shares, 5.0) == (1, 1, {})
    shares.settled(b"q//a", 5.0)
    assert told(shares, 5.0) == (1, 1, {})
