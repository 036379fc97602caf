"""Faults that are put back, each a patch of the product: what it is, which lesson it forgets, which tests see it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
_SIMULATED = "finds it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One patch, by what stands above its first hunk."""

    path: Path
    what: str
    lesson: int
    tests: tuple[str, ...]
    #: Whether the simulation finds it; and if it does not look for it, why.
    is_simulated: bool
    why_not: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.path.stem


def read(path: Path) -> Mutant:
    """One mutant. Raises ValueError when its file does not say what it should."""
    head, found, _ = path.read_text().partition("\ndiff --git ")
    what, *lines = head.splitlines() or [""]
    said = [line.partition(": ") for line in lines if line]
    values = {key: [value for other, _, value in said if other == key] for key, _, _ in said}
    if not found or set(values) != {"Lesson", "Test", "Simulation"}:
        raise ValueError(f"{path.name}: needs a line of what it is, Lesson, Test and Simulation, and a diff")
    (simulation,) = values["Simulation"]
    return Mutant(
        path=path,
        what=what,
        lesson=int(*values["Lesson"]),
        tests=tuple(values["Test"]),
        is_simulated=simulation == _SIMULATED,
        why_not=simulation.partition(", ")[2],
    )


def every() -> list[Mutant]:
    """All of them."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def apply(mutant: Mutant, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Puts the fault into a copy of the project; with `--check` only sees whether it could, with `-R` takes it out."""
    command = ["git", "apply", "-C1", *options, str(mutant.path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
