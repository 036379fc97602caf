"""Why a chaos run has failed although nothing broke a promise: it has shown nothing."""

from __future__ import annotations

from typing import Any

import pytest

from chaos import runs


def verdict(*, connected: int = 9, listened: int = 2, in_setup: int = 1, target: str = "worker.1") -> dict[str, Any]:
    return {
        "violations": [],
        "totals": {"connected": connected, "listened": listened},
        "faults": [{"name": "worker killed", "target": target, "in_setup": in_setup}],
    }


def test_a_run_that_has_struck_and_served_has_passed() -> None:
    assert list(runs.shortcomings(verdict())) == []


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"connected": 0}, "nothing to judge: no call was connected"),
        ({"listened": 0}, "nothing to judge: no call was listened to"),
        ({"in_setup": 0}, "not struck: worker killed met no call in set-up"),
        ({"target": ""}, "not struck: worker killed met no call in set-up"),
    ],
)
def test_a_run_that_shows_nothing_has_failed(shown: dict[str, Any], said: str) -> None:
    assert list(runs.shortcomings(verdict(**shown))) == [said]
