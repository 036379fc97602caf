"""A failing history made simple: choices are set to zero, the calm choice, where it fails in the same way without."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.simulation import histories

#: Lives lived for one shrinking.
_LIVES = 1500


def kind_of(outcome: histories.Outcome) -> str | None:
    """What is wrong, without the particulars; None when nothing is."""
    return re.sub(r"[0-9.]+", "N", outcome.violations[0]) if outcome.violations else None


def shrink(outcome: histories.Outcome) -> histories.Outcome:
    """A simpler history of the same seed that goes wrong in the same way, told."""
    wanted, best = kind_of(outcome), outcome
    lives = 0
    while lives < _LIVES:
        for choices in _simpler(best.choices):
            lives += 1
            tried = histories.live(outcome.seed, choices)
            if kind_of(tried) == wanted and _weight(tried.choices) < _weight(best.choices):
                best = tried
                break
            if lives >= _LIVES:
                break
        else:
            break
    return histories.live(outcome.seed, best.choices, telling=True)


def _weight(choices: tuple[float, ...]) -> tuple[int, int]:
    return sum(chance > 0.0 for chance in choices), len(choices)


def _simpler(choices: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """Runs of choices set to zero, long ones first."""
    set_at = [at for at, chance in enumerate(choices) if chance > 0.0]
    size = len(set_at)
    while size:
        for start in range(0, len(set_at), size):
            gone = frozenset(set_at[start : start + size])
            yield tuple(0.0 if at in gone else chance for at, chance in enumerate(choices))
        size //= 2
