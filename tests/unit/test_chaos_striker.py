"""What a seed decides in a chaos run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos import faults
from chaos.faults import FAULTS, Fault, Striker, Struck


class VirtualTime:
    """Time that passes while it is slept."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strike waits for up to half a second, and lasts as long as was drawn: nobody waits for it here."""
    monkeypatch.setattr(faults, "time", VirtualTime())


def drawn(seed: int, order: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Strike faults in an order; return how long each was to last, and what its strike drew."""
    lengths: dict[str, float] = {}
    draws: dict[str, float] = {}

    def fault(name: str) -> Fault:
        @contextlib.contextmanager
        def strike(_stage: Any, chance: random.Random) -> Iterator[Struck]:
            draws[name] = chance.random()
            yield name, None

        return Fault(name=name, strike=strike, seconds=(0.0, 0.001), part=name)

    def told(name: str, _target: str, *, seconds: float, **_more: object) -> int:
        lengths[name] = seconds
        return 1

    deeds = SimpleNamespace(fault=told, mended=lambda _number: None)
    stage = SimpleNamespace(judge=SimpleNamespace(in_setup=lambda: ["call-1"]), deeds=deeds)
    striker = Striker(cast(Any, stage), random.Random(seed))
    for name in order:
        assert striker.play(fault(name))
    return {name: (lengths[name], draws[name]) for name in draws}


@pytest.mark.parametrize("order", [["one", "two"], ["two", "one"]])
def test_what_is_drawn_for_a_fault_follows_from_the_seed_whatever_strikes_first(order: Sequence[str]) -> None:
    assert drawn(7, order) == drawn(7, ["one", "two"])


def test_another_seed_draws_otherwise_and_so_does_another_fault() -> None:
    assert drawn(7, ["one"]) != drawn(8, ["one"])
    assert len(set(drawn(7, ["one", "two"]).values())) == 2


@pytest.mark.parametrize(("running", "met"), [(["worker.1", "worker.2"], True), (["worker.1"], False), ([], False)])
def test_a_signal_to_a_process_that_is_just_not_there_does_not_count_as_a_strike(
    running: Sequence[str], met: bool
) -> None:
    stage = SimpleNamespace(
        judge=SimpleNamespace(in_setup=lambda: ["call-1"]),
        deeds=SimpleNamespace(fault=lambda *_target, **_more: 1, mended=lambda _number: None),
        supervised=SimpleNamespace(signal=lambda _number, *names: [name for name in names if name in running]),
    )
    striker = Striker(cast(Any, stage), random.Random(1))
    assert striker.play(FAULTS["both workers killed"]) is met
