"""`make simulate`: plays histories, prints which faults they hit, and the story of the first that fails, minimized."""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation import histories, runs, shrinking

_FIRST = 1


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    """Return 1 when a history fails."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # A set of texts would be in another order in each run.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--histories", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=_FIRST, help="seed of the first history")
    parser.add_argument("--seed", type=int, help="print the story of this one history")
    parser.add_argument("--whole", action="store_true", help="with --seed: as it was, not minimized")
    parser.add_argument("--at-least", type=int, default=0, help="fail if a pair was hit less often")
    parser.add_argument("--enough", type=int, default=runs.ENOUGH, help="stop after this many failing histories")
    parser.add_argument("--brief", action="store_true", help="print only what fails, one line each")
    given = parser.parse_args()
    runs.quiet()
    if given.seed is not None:
        return _print_story(given.seed, whole=given.whole)
    result = runs.run(given.first, given.histories, enough=given.enough)
    if given.brief:
        for kind in result.failures:
            _print(f"WRONG within {result.histories} histories: {kind}")
        return 1 if result.failures else 0
    _print("how often each fault hit a call in each state:")
    _print(runs.table(result.tally))
    _print(f"\n{result.histories} histories in {result.seconds:.0f} s, {sum(result.tally.values())} faults hit calls")
    _print("; ".join(f"{way} {result.ways[way]} times" for way in sorted(result.ways)))
    for kind, seeds in result.failures.items():
        _print(
            f"\nWRONG in {len(seeds)} histories: {kind}\n  seeds {sorted(seeds)[:10]}: make simulate SEED={min(seeds)}"
        )
    if result.failures:
        _print_story(min(seed for seeds in result.failures.values() for seed in seeds), whole=False)
        return 1
    if too_few := runs.missing(result.tally, result.ways, given.at_least):
        _print(f"hit less than {given.at_least} times: " + "; ".join(too_few))
        return 1
    _print("no invariant was broken")
    return 0


def _print_story(seed: int, *, whole: bool) -> int:
    outcome = histories.play(seed, keeps_story=whole)
    if outcome.violations and not whole:
        outcome = shrinking.shrink(outcome)
    elif not whole:
        outcome = histories.play(seed, keeps_story=True)
    _print(f"\nthe history of seed {seed}" + (", minimized" if outcome.violations and not whole else ""))
    _print("\n".join(runs.story_lines(outcome)))
    if not outcome.violations:
        _print("no invariant was broken")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
