"""The tests' own order: every test belongs to a layer that is run, and a file has one subject."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests import conftest
from tests.checks import checkout

MOST_LINES = 500


def test_every_test_is_run() -> None:
    """By `make test`, whose folders pyproject.toml names, or by `make check-docs`."""
    settings = tomllib.loads(checkout.text("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    folders = {*settings["testpaths"], "tests/checks"}
    assert folders == {f"tests/{layer}" for layer in conftest.LAYERS}
    tests = [path for path in checkout.tests_files() if Path(path).name.startswith("test_")]
    assert len(tests) > 100
    assert [path for path in tests if "/".join(path.split("/")[:2]) not in folders] == []


def test_the_files_that_start_first_exist() -> None:
    assert [name for name in conftest.LONG if not (conftest.TESTS / name).exists()] == []


def test_no_test_file_is_long() -> None:
    lengths = {path: len(checkout.text(path).splitlines()) for path in checkout.tests_files()}
    long = {path: lines for path, lines in lengths.items() if lines > MOST_LINES}
    assert long == {}, "\n".join(f"{path}: {lines} lines, {MOST_LINES} at most" for path, lines in long.items())


def test_no_test_folder_is_named_like_a_package() -> None:
    """Under `--import-mode=importlib` such a folder hides the package from the tests in it."""
    packages = {*checkout.PRODUCT, *checkout.DEVELOPMENT}
    folders = {path.name for path in (checkout.ROOT / "tests").rglob("*") if path.is_dir()}
    assert folders & packages == set()
