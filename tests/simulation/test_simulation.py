"""The simulation itself, and the histories of every run of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation import histories, runs, shrinking
from workers import teardown

ROOT = Path(__file__).parents[2]


#: `make simulate` in .ci/run plays two hundred times as many, where each pair has to be hit 50 times.
HISTORIES = 100


@pytest.mark.timeout(600)
def test_no_history_breaks_an_invariant(record_property: Callable[[str, object], None]) -> None:
    # At a lower priority: the tests beside it wait for clocks. At the lowest it would end after all of them.
    command = ["nice", "-n", "5", sys.executable, "-m", "tests.simulation", "--histories", str(HISTORIES)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False, timeout=550,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # Its table is printed with the results of the tests.
    record_property("said", done.stdout)
    assert done.returncode == 0, done.stdout


def test_a_seed_tells_the_same_story_twice() -> None:
    first, again = (histories.play(7, keeps_story=True) for _ in range(2))
    assert first == again
    assert len(first.story) > 20
    assert histories.play(8, keeps_story=True).story != first.story


def test_a_history_follows_from_its_choices_alone() -> None:
    played = histories.play(7, keeps_story=True)
    assert histories.play(7, played.choices, keeps_story=True).story == played.story


def test_a_failing_history_is_minimized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown.Teardown, "_remove_all", lambda _step, _claim: "")
    played = map(histories.play, range(1, 50))
    failing = next(outcome for outcome in played if (shrinking.kind_of(outcome) or "").startswith("left over"))
    simple = shrinking.shrink(failing)
    assert shrinking.kind_of(simple) == shrinking.kind_of(failing)
    assert sum(choice > 0 for choice in simple.choices) < 10
    assert any("VIOLATION" in line for line in runs.story_lines(simple))


def test_the_example_of_the_readme_is_a_test() -> None:
    here = Path(__file__).parent
    _, example, _ = re.split(r"^```(?:python)?\n", (here / "README.md").read_text(), flags=re.MULTILINE)
    assert example in (here / "test_situations.py").read_text()
