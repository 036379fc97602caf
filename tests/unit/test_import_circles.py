"""No module is imported by a module that it imports itself, directly or not.

Walked with `ast`: imports inside functions and for type checking count, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("arictl", "bench", "console", "devstack", "listener", "scheduler", "shared", "simulator", "workers")


def modules() -> dict[str, Path]:
    """Return every module of ours by its name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Yield the modules of ours that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from known.intersection(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from known.intersection([name if name in known else node.module])


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one circle, in order; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def test_imports_form_no_circle() -> None:
    known = modules()
    graph = {name: set(imported(ast.parse(path.read_text()), set(known))) - {name} for name, path in known.items()}
    assert graph["workers.main"], "the walk sees imports"
    found = circle(graph)
    assert found == [], " <- ".join(found)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, set()),
        ({"a": {"b"}, "b": {"a"}}, {"a", "b"}),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, {"a", "b", "c"}),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], expected: set[str]) -> None:
    assert set(circle(graph)) == expected
