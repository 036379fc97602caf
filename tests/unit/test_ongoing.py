"""What a process does, and when a wait counts as lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shared import ongoing
from shared.process import health


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: made[0])
    return made


def test_the_oldest_is_shown(now: list[float]) -> None:
    assert ongoing.oldest() is None
    with ongoing.task("admission"):
        now[0] += 2
        with ongoing.task("Postgres", bound_seconds=3):
            now[0] += 1
            assert ongoing.oldest() == ongoing.Oldest(what="admission", seconds=3)
    assert ongoing.oldest() is None


def test_a_wait_is_lost_after_three_times_its_bound(now: list[float]) -> None:
    with ongoing.task("resync"), ongoing.task("Postgres", bound_seconds=3):
        now[0] += 9
        assert ongoing.lost() is None
        now[0] += 0.1
        lost = ongoing.lost()
        assert lost is not None
        assert lost.what == "Postgres"
    now[0] += 1e6
    assert ongoing.lost() is None


def test_what_raises_is_held_no_more() -> None:
    with pytest.raises(KeyError), ongoing.task("it"):
        raise KeyError
    assert ongoing.oldest() is None


def test_a_process_that_has_lost_a_wait_is_not_alive(tmp_path: Path) -> None:
    """And one that only waits is."""
    path = tmp_path / "alive"
    liveness = health.Liveness(str(path))
    with ongoing.task("Postgres", bound_seconds=60):
        liveness.touch()
        assert path.read_text().endswith("s: Postgres\n")
        assert health.silence(path, time.monotonic()) < 5
        path.unlink()
    with ongoing.task("Postgres", bound_seconds=-1):
        liveness.touch()
        assert not path.exists()
    liveness.touch()
    assert path.read_text().endswith("nothing under way\n")
