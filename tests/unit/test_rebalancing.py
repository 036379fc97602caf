"""Rebalancing: even, within capacity, with the fewest moves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import rebalancing


def keys(number: int) -> list[str]:
    return [f"{key}:1" for key in range(number)]


def spread(number: int, *listeners: str, capacity: int = 1000) -> dict[str, str | None]:
    return rebalancing.rebalance(dict.fromkeys(keys(number)), dict.fromkeys(listeners, capacity))


def moved(before: dict[str, str | None], after: dict[str, str | None]) -> list[str]:
    return [key for key, listener in before.items() if after[key] != listener]


def counts(balanced: dict[str, str | None]) -> list[int]:
    return sorted(Counter(listener for listener in balanced.values() if listener is not None).values())


@pytest.mark.parametrize(("number", "listeners"), [(60, 3), (61, 3), (7, 10), (1000, 7), (1, 1)])
def test_keys_are_spread_evenly(number: int, listeners: int) -> None:
    balanced = spread(number, *(f"l{each}" for each in range(listeners)))
    share = number / listeners
    assert sum(counts(balanced)) == number
    assert all(abs(count - share) < 1 for count in counts(balanced))


@pytest.mark.parametrize(("number", "listeners"), [(60, 2), (60, 3), (61, 3), (1000, 7), (5, 5)])
def test_a_new_listener_gets_its_share_and_no_other_gets_a_key(number: int, listeners: int) -> None:
    names = [f"l{each}" for each in range(listeners)]
    before = spread(number, *names)
    after = rebalancing.rebalance(before, dict.fromkeys([*names, "new"], 1000))
    assert {after[key] for key in moved(before, after)} <= {"new"}
    assert abs(len(moved(before, after)) - number / (listeners + 1)) < 1


@pytest.mark.parametrize(("number", "listeners"), [(60, 2), (60, 4), (61, 3), (1000, 7)])
def test_a_listener_that_leaves_moves_only_its_own_keys(number: int, listeners: int) -> None:
    names = [f"l{each}" for each in range(listeners)]
    before = spread(number, *names)
    after = rebalancing.rebalance(before, dict.fromkeys(names[1:], 1000))
    assert moved(before, after) == [key for key, listener in before.items() if listener == "l0"]
    assert counts(after)[-1] - counts(after)[0] <= 1


def test_shares_are_in_proportion_to_capacity() -> None:
    balanced = rebalancing.rebalance(dict.fromkeys(keys(90)), {"small": 100, "large": 200})
    assert Counter(balanced.values()) == {"small": 30, "large": 60}


def test_keys_without_room_are_unassigned() -> None:
    balanced = rebalancing.rebalance(dict.fromkeys(keys(10)), {"a": 3, "b": 4})
    assert Counter(balanced.values()) == {"a": 3, "b": 4, None: 3}
    assert rebalancing.rebalance({"1:1": "gone"}, {}) == {"1:1": None}
    assert rebalancing.rebalance({"1:1": None}, {"a": 0}) == {"1:1": None}
    assert rebalancing.rebalance({}, {"a": 3}) == {}


def test_the_order_of_the_keys_does_not_matter() -> None:
    forward = spread(50, "a", "b", "c")
    backward = rebalancing.rebalance(dict.fromkeys(reversed(keys(50))), {"c": 1000, "b": 1000, "a": 1000})
    assert forward == backward


def test_a_lost_share_is_spread_over_all() -> None:
    before = spread(300, "a", "b", "c", "d")
    after = rebalancing.rebalance(before, dict.fromkeys("bcd", 1000))
    assert all(abs(count - 25) <= 1 for count in Counter(after[key] for key in moved(before, after)).values())


listener_names = st.sampled_from([f"l{number}" for number in range(8)])


@given(
    assigned=st.dictionaries(st.sampled_from(keys(80)), st.none() | listener_names, max_size=80),
    capacities=st.dictionaries(listener_names, st.integers(0, 60), max_size=8),
)
def test_any_assignment_becomes_balanced_and_stable_with_the_fewest_moves(
    assigned: dict[str, str | None], capacities: dict[str, int]
) -> None:
    balanced = rebalancing.rebalance(assigned, capacities)
    assert balanced.keys() == assigned.keys()
    sizes = Counter(listener for listener in balanced.values() if listener is not None)
    assert all(sizes[listener] <= capacity for listener, capacity in capacities.items())
    total = sum(capacities.values())
    number = min(len(assigned), total)
    assert sum(sizes.values()) == number
    shares = {listener: number * capacity / total for listener, capacity in capacities.items() if total}
    assert all(abs(sizes[listener] - share) < 1 for listener, share in shares.items())
    assert rebalancing.rebalance(balanced, capacities) == balanced
    # A key leaves a live listener only when the listener has more than its share.
    for listener in capacities:
        had = [key for key, owner in assigned.items() if owner == listener]
        lost = [key for key in had if balanced[key] != listener]
        assert not lost or len(had) - len(lost) == sizes[listener]
