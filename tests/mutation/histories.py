"""The killer of last resort: fails when one of the simulation's histories, always the same, finds a violation."""

from __future__ import annotations

import gc
import sys

from tests.simulation import histories, runs

HISTORIES = 2000


def main(count: int = HISTORIES) -> int:
    """Return 1 at the first violation."""
    runs.quiet()
    gc.freeze()
    return 1 if any(histories.play(seed).violations for seed in range(1, count + 1)) else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
