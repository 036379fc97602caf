"""`make mutants`: puts each fault back into a copy of the project, and shows which tests and histories see it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import mutants
from tests.mutants.mutants import ROOT, Mutant

_HISTORIES = 6000
_TESTS_SECONDS = 240
_SIMULATION_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of one mutant."""

    #: The tests named that did not see it.
    blind: tuple[str, ...]
    #: How the simulation put it; empty when it found nothing, or was not asked.
    simulation: str
    seconds: float


def main() -> int:
    """Returns 1 when a fault is not seen by all that should."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("names", nargs="*", help="beginnings of names; all of them unless given")
    names = tuple(parser.parse_args().names)
    chosen = [mutant for mutant in mutants.every() if mutant.name.startswith(names or ("",))]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        _copy_to(copy)
        _say("the project as it is: ", end="")
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        failed = _failed(copy, tests)
        if failed or _simulated(copy, 500):
            _say(f"fails by itself: {', '.join(sorted(failed)) or 'the simulation'}")
            return 1
        _say("every test named passes")
        missed = [mutant.name for mutant in chosen if not _is_seen(mutant, copy)]
    _say(f"\n{len(chosen)} faults put back, " + (f"NOT SEEN: {', '.join(missed)}" if missed else "each was seen"))
    return 1 if missed else 0


def _is_seen(mutant: Mutant, copy: Path) -> bool:
    applied = mutants.apply(mutant, copy)
    if applied.returncode:
        _say(f"{mutant.name}: does not apply: {applied.stderr.strip()}")
        return False
    try:
        finding = _look(mutant, copy)
    finally:
        mutants.apply(mutant, copy, "-R")
    tests = f"{len(mutant.tests) - len(finding.blind)}/{len(mutant.tests)} tests"
    simulation = finding.simulation or ("NOTHING" if mutant.is_simulated else f"not asked: {mutant.why_not}")
    _say(f"{mutant.name:<34} {tests:<10} {finding.seconds:4.0f} s  simulation: {simulation}")
    for test in finding.blind:
        _say(f"    NOT SEEN by {test}")
    return not finding.blind and bool(finding.simulation or not mutant.is_simulated)


def _look(mutant: Mutant, copy: Path) -> Finding:
    started = time.monotonic()
    failed = _failed(copy, mutant.tests)
    simulation = _simulated(copy, _HISTORIES) if mutant.is_simulated else ""
    return Finding(
        blind=tuple(test for test in mutant.tests if test not in failed),
        simulation=simulation,
        seconds=time.monotonic() - started,
    )


def _failed(copy: Path, tests: tuple[str, ...] | list[str]) -> set[str]:
    """Those of the tests that fail; all parameters of one count as one."""
    done = _run(copy, ["pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-rfE", *tests], _TESTS_SECONDS)
    return {match[1] for match in re.finditer(r"^(?:FAILED|ERROR) ([^\s\[]+)", done, re.MULTILINE)}


def _simulated(copy: Path, histories: int) -> str:
    """What the simulation found, and after how many histories."""
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


def _copy_to(copy: Path) -> None:
    """Everything but what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
