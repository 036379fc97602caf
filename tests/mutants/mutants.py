"""Mutants: known faults as patches of the product, each with its lesson and the tests that find it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
_SIMULATED = "finds it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mutant, read from the lines above the first hunk of its patch."""

    path: Path
    what: str
    lesson: int
    tests: tuple[str, ...]
    #: True if the simulation has to find it; if not, the reason.
    is_simulated: bool
    reason_not_simulated: str

    @property
    def name(self) -> str:
        """The name of its file, without suffix."""
        return self.path.stem


def read(path: Path) -> Mutant:
    """Read a mutant. Raises ValueError if its header is not complete."""
    head, found, _ = path.read_text().partition("\ndiff --git ")
    what, *lines = head.splitlines() or [""]
    said = [line.partition(": ") for line in lines if line]
    values = {key: [value for other, _, value in said if other == key] for key, _, _ in said}
    if not found or set(values) != {"Lesson", "Test", "Simulation"}:
        raise ValueError(f"{path.name}: needs a line of description, then Lesson, Test and Simulation, and a diff")
    (simulation,) = values["Simulation"]
    return Mutant(
        path=path,
        what=what,
        lesson=int(*values["Lesson"]),
        tests=tuple(values["Test"]),
        is_simulated=simulation == _SIMULATED,
        reason_not_simulated=simulation.partition(", ")[2],
    )


def every() -> list[Mutant]:
    """Return all mutants."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def apply(mutant: Mutant, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Apply a mutant to a copy of the project; with `--check` only test whether it applies, with `-R` revert it."""
    command = ["git", "apply", "-C1", *options, str(mutant.path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def copy_to(copy: Path) -> None:
    """Copy the project: all files except those that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
