"""The set-up benchmark computes set-up times from an Asterisk's events."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench import bridgings
from bench.bridgings import Bridgings, SetUp


def entered(leg: str, bridge: str, *, at: str, created: str) -> dict[str, Any]:
    day = "2026-11-23T11:59:"
    return {
        "type": "ChannelEnteredBridge",
        "timestamp": f"{day}{at}+0000",
        "bridge": {"id": bridge},
        "channel": {"id": leg, "creationtime": f"{day}{created}+0000"},
    }


CALLER = entered("caller", "b", at="58.130", created="58.100")
MEDIA = entered("media", "b", at="58.125", created="58.112")


@pytest.mark.parametrize("order", [(CALLER, MEDIA), (MEDIA, CALLER)])
def test_a_call_is_set_up_when_the_second_leg_is_in_the_bridge(order: tuple[dict[str, Any], ...]) -> None:
    seen = Bridgings()
    for event in order:
        seen.add(event)
    assert seen.set_up("caller") == SetUp(whole=30, until_media=12)


def test_a_media_leg_that_comes_last_counts_as_well() -> None:
    seen = Bridgings()
    seen.add(CALLER)
    seen.add(entered("media", "b", at="58.145", created="58.112"))
    assert seen.set_up("caller") == SetUp(whole=45, until_media=12)


def test_a_caller_alone_in_a_bridge_is_not_set_up() -> None:
    seen = Bridgings()
    seen.add(CALLER)
    seen.add(entered("other", "elsewhere", at="58.140", created="58.101"))
    seen.add(MEDIA | {"type": "ChannelLeftBridge"})
    assert seen.set_up("caller") is None
    assert seen.set_up("unknown") is None


def test_a_leg_that_leaves_and_comes_back_counts_once() -> None:
    seen = Bridgings()
    for event in (CALLER, MEDIA, entered("caller", "b", at="59.500", created="58.100")):
        seen.add(event)
    assert seen.set_up("caller") == SetUp(whole=30, until_media=12)


@pytest.mark.parametrize(("part", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_the_value_that_so_many_do_not_exceed(part: float, expected: float) -> None:
    assert bridgings.quantile([float(value) for value in range(100, 0, -1)], part) == expected


def test_of_nothing_there_is_no_quantile_and_no_mean() -> None:
    assert math.isnan(bridgings.quantile([], 0.5))
    assert math.isnan(bridgings.mean([]))
