"""`make simulate`: lives through histories, prints what they hit, and tells the first that goes wrong, made simple."""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation import histories, runs, shrinking

_FIRST = 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    """Returns 1 when a history goes wrong."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of texts would be another in each run.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--histories", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=_FIRST, help="seed of the first history")
    parser.add_argument("--seed", type=int, help="tell this one history")
    parser.add_argument("--whole", action="store_true", help="with --seed: as it was, not made simple")
    parser.add_argument("--at-least", type=int, default=0, help="fail when a pair was hit less often")
    parser.add_argument("--enough", type=int, default=runs.ENOUGH, help="stop after so many that go wrong")
    parser.add_argument("--brief", action="store_true", help="say only what goes wrong, in a line")
    given = parser.parse_args()
    runs.quiet()
    if given.seed is not None:
        return _tell(given.seed, whole=given.whole)
    result = runs.run(given.first, given.histories, enough=given.enough)
    if given.brief:
        for kind in result.failures:
            _say(f"WRONG within {result.histories} histories: {kind}")
        return 1 if result.failures else 0
    _say(runs.table(result.tally))
    _say(f"\n{result.histories} histories in {result.seconds:.0f} s, {sum(result.tally.values())} faults struck calls")
    for kind, seeds in result.failures.items():
        _say(
            f"\nWRONG in {len(seeds)} histories: {kind}\n  seeds {sorted(seeds)[:10]}: make simulate SEED={min(seeds)}"
        )
    if result.failures:
        _tell(min(seed for seeds in result.failures.values() for seed in seeds), whole=False)
        return 1
    if too_few := runs.missing(result.tally, given.at_least):
        _say(f"hit less than {given.at_least} times: " + "; ".join(too_few))
        return 1
    _say("no invariant was broken")
    return 0


def _tell(seed: int, *, whole: bool) -> int:
    outcome = histories.live(seed, telling=whole)
    if outcome.violations and not whole:
        outcome = shrinking.shrink(outcome)
    elif not whole:
        outcome = histories.live(seed, telling=True)
    _say(f"\nthe history of seed {seed}" + (", made simple" if outcome.violations and not whole else ""))
    _say("\n".join(runs.told(outcome)))
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
