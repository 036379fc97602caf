"""Minimize a failing history: set to zero, the calm choice, every choice without which it fails in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.simulation import histories

#: Most histories played to minimize one.
_MOST = 1500


def kind_of(outcome: histories.Outcome) -> str | None:
    """Return the kind of the first violation, without its numbers; None when there is none."""
    return re.sub(r"[0-9.]+", "N", outcome.violations[0]) if outcome.violations else None


def shrink(outcome: histories.Outcome) -> histories.Outcome:
    """Return a simpler history of the same seed that fails in the same way, with its story."""
    wanted, best = kind_of(outcome), outcome
    plays = 0
    while plays < _MOST:
        for choices in _simpler(best.choices):
            plays += 1
            tried = histories.play(outcome.seed, choices)
            if kind_of(tried) == wanted and _weight(tried.choices) < _weight(best.choices):
                best = tried
                break
            if plays >= _MOST:
                break
        else:
            break
    return histories.play(outcome.seed, best.choices, keeps_story=True)


def _weight(choices: tuple[float, ...]) -> tuple[int, int]:
    return sum(chance > 0.0 for chance in choices), len(choices)


def _simpler(choices: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """Yield the choices with ranges of them set to zero, long ranges first."""
    set_at = [at for at, chance in enumerate(choices) if chance > 0.0]
    size = len(set_at)
    while size:
        for start in range(0, len(set_at), size):
            gone = frozenset(set_at[start : start + size])
            yield tuple(0.0 if at in gone else chance for at, chance in enumerate(choices))
        size //= 2
