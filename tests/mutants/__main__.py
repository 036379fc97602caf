"""`make mutants`: applies each mutant to a copy of the project, and shows which tests and histories find it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import mutants
from tests.mutants.mutants import Mutant

_HISTORIES = 6000
_TESTS_SECONDS = 240
_SIMULATION_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one mutant."""

    #: The named tests that did not fail.
    passed: tuple[str, ...]
    #: The violation that the simulation found; empty if it found none, or was not run.
    simulation: str
    seconds: float


def main() -> int:
    """Return 1 if a mutant survives a test or a simulation that has to find it."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("names", nargs="*", help="prefixes of names; default: all mutants")
    names = tuple(parser.parse_args().names)
    chosen = [mutant for mutant in mutants.every() if mutant.name.startswith(names or ("",))]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        mutants.copy_to(copy)
        _say("unchanged project: ", end="")
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        failed = _failed(copy, tests)
        if failed or _simulated(copy, 500):
            _say(f"FAILS: {', '.join(sorted(failed)) or 'the simulation'}")
            return 1
        _say("every named test passes")
        survived = [mutant.name for mutant in chosen if not _is_killed(mutant, copy)]
    _say(f"\n{len(chosen)} mutants, " + (f"SURVIVED: {', '.join(survived)}" if survived else "all killed"))
    return 1 if survived else 0


def _is_killed(mutant: Mutant, copy: Path) -> bool:
    applied = mutants.apply(mutant, copy)
    if applied.returncode:
        _say(f"{mutant.name}: does not apply: {applied.stderr.strip()}")
        return False
    try:
        result = _look(mutant, copy)
    finally:
        mutants.apply(mutant, copy, "-R")
    tests = f"{len(mutant.tests) - len(result.passed)}/{len(mutant.tests)} tests"
    simulation = result.simulation or ("NOTHING" if mutant.is_simulated else f"not run: {mutant.reason_not_simulated}")
    _say(f"{mutant.name:<34} {tests:<10} {result.seconds:4.0f} s  simulation: {simulation}")
    for test in result.passed:
        _say(f"    SURVIVED {test}")
    return not result.passed and bool(result.simulation or not mutant.is_simulated)


def _look(mutant: Mutant, copy: Path) -> Result:
    started = time.monotonic()
    failed = _failed(copy, mutant.tests)
    simulation = _simulated(copy, _HISTORIES) if mutant.is_simulated else ""
    return Result(
        passed=tuple(test for test in mutant.tests if test not in failed),
        simulation=simulation,
        seconds=time.monotonic() - started,
    )


def _failed(copy: Path, tests: tuple[str, ...] | list[str]) -> set[str]:
    """Return the tests that fail; all parameters of a test count as one."""
    done = _run(copy, ["pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-rfE", *tests], _TESTS_SECONDS)
    return {match[1] for match in re.finditer(r"^(?:FAILED|ERROR) ([^\s\[]+)", done, re.MULTILINE)}


def _simulated(copy: Path, histories: int) -> str:
    """Return what the simulation found, and after how many histories."""
    options = ["--histories", str(histories), "--enough", "1", "--brief"]
    done = _run(copy, ["tests.simulation", *options], _SIMULATION_SECONDS)
    found = re.search(r"^WRONG (.*)$", done, re.MULTILINE)
    return found[1] if found else ""


def _run(copy: Path, module: list[str], seconds: float) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module], cwd=copy, env=environment, capture_output=True, text=True,
            check=False, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
