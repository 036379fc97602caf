"""The mutants of `make mutants` apply to the product as it is, and name tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants import mutants
from tests.mutants.mutants import FOLDER, ROOT, Mutant

MUTANTS = mutants.every()


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 12
    assert sum(mutant.is_simulated for mutant in MUTANTS) >= 12


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_names_tests_that_exist(mutant: Mutant) -> None:
    applied = mutants.apply(mutant, ROOT, "--check")
    assert applied.returncode == 0, f"{mutant.name} does not apply to the product any more: {applied.stderr}"
    assert mutant.is_simulated or mutant.reason_not_simulated
    for test in mutant.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(
    "text",
    [
        "It is wrong.\n\nLesson: 1\nTest: a\nSimulation: finds it\n",
        "It is wrong.\n\nLesson: 1\nSimulation: finds it\n\ndiff --git a/x b/x\n",
        "\ndiff --git a/x b/x\n",
    ],
)
def test_a_patch_without_its_header_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.patch"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.patch"):
        mutants.read(path)


def test_every_file_is_a_mutant() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "")} == {
        mutant.path.name for mutant in MUTANTS
    }
