"""The simulation itself, and the histories of every run of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation import histories, runs, shrinking
from workers import teardown

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
def test_no_history_breaks_an_invariant(record_property: Callable[[str, object], None]) -> None:
    # It takes what the processors have to spare: beside it tests wait for clocks, and their processes go first.
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.simulation", "--histories", "20000", "--at-least", "50"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False, timeout=1100,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # Its table is part of what a run of the tests says.
    record_property("said", done.stdout)
    assert done.returncode == 0, done.stdout


def test_a_seed_tells_the_same_story_twice() -> None:
    first, again = (histories.live(7, telling=True) for _ in range(2))
    assert first == again
    assert len(first.story) > 20
    assert histories.live(8, telling=True).story != first.story


def test_the_chances_of_a_history_are_all_there_is_to_it() -> None:
    lived = histories.live(7, telling=True)
    assert histories.live(7, lived.choices, telling=True).story == lived.story


def test_a_failing_history_is_made_simple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown.Teardown, "_remove_all", lambda _step, _asterisk, _claim: "")
    failing = next(outcome for outcome in map(histories.live, range(1, 50)) if outcome.violations)
    simple = shrinking.shrink(failing)
    assert shrinking.kind_of(simple) == shrinking.kind_of(failing)
    assert sum(chance > 0 for chance in simple.choices) < 10
    assert any("VIOLATION" in line for line in runs.told(simple))
