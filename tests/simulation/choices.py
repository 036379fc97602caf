"""Random choices as a list of numbers: drawn from a seed and kept, or given, to play a history again.

Zero is the calm choice everywhere: nothing fails, nothing is late. So a list with more zeros, or a shorter one, is a
simpler history, and shrinking does not have to know what the numbers mean.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Choices:
    """Numbers in [0, 1), one after the other.

    Args:
        seed: The seed of the generator.
        given: Instead of the generator's: these, then zeros.
    """

    def __init__(self, seed: int, given: Sequence[float] | None = None) -> None:
        self._random = random.Random(seed).random
        self._given = None if given is None else iter(given)
        self.drawn: list[float] = []

    def draw(self) -> float:
        """Return the next number."""
        value = self._random() if self._given is None else next(self._given, 0.0)
        self.drawn.append(value)
        return value

    def between(self, low: float, high: float) -> float:
        """Return a number between two; the lower one is the calm choice."""
        return low + (high - low) * self.draw()

    def spread(self, low: float, high: float) -> float:
        """Return a number between two, uniform by order of magnitude."""
        return float(low * (high / low) ** self.draw())

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.draw() > 1.0 - probability

    def one_of(self, options: Sequence[_T]) -> _T:
        """Return one of the options; the first is the calm choice."""
        return options[int(self.draw() * len(options))]
