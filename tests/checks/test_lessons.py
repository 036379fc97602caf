"""docs/lessons.md names tests and mutants that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import mutants

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/lessons.md").read_text().splitlines()
    if re.match(r"\| \d", line)
]


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_lessons_are_numbered() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"lesson-{row[0]}")
def test_a_lesson_names_tests_and_mutants_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
    assert named
    assert [(path, name) for path, name in named if name not in functions(path)] == []
    put_back = [mutant for mutant in mutants.every() if mutant.lesson == int(row[0])]
    assert [number for number in row[5].split(", ") if number] == [mutant.name.partition("-")[0] for mutant in put_back]
