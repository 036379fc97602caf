"""The wheel: setuptools leaves out what it was not told of without a word, so what is in it is looked at."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("arictl", "devstack", "listener", "scheduler", "shared", "simulator", "workers")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What is in the wheel; built from a copy, so that nothing is left in the checkout, and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_is_in_it(names: set[str]) -> None:
    ours = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(ours) > 50
    assert ours - names == set()


def test_what_is_no_module_is_in_it_too(names: set[str]) -> None:
    assert "shared/py.typed" in names
    versions = {name for name in names if name.startswith("shared/storage/migrations/versions/")}
    assert {"shared/storage/migrations/env.py"} < names
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "shared").rglob("*.lua")}
    assert len(scripts) > 5
    assert scripts < names
    assert len(versions) == len(list((ROOT / "shared/storage/migrations/versions").glob("*.py")))


def test_nothing_else_is_in_it(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_it_brings_its_licence_and_its_command(names: set[str]) -> None:
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)
