"""Who may import what: walked with `ast`, so that the layers stay layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shared

ROOT = Path(__file__).parents[2]
#: The processes: none knows another.
PROCESSES = {"listener", "workers", "scheduler", "console", "arictl"}
#: What is installed and runs in production.
PRODUCT = PROCESSES | {"shared"}
#: For development: stand beside the product and may look into it, never the other way round.
DEVELOPMENT = {"simulator", "devstack", "tests", "bench"}

#: One home per outside library: a file, or a folder.
HOMES = {
    "websockets": ("listener/",),
    "requests": ("shared/platform/dograh/quota_service.py",),
    "urllib3": ("shared/platform/dograh/quota_service.py",),
    "psycopg": ("shared/storage/database.py",),
    "psycopg_pool": ("shared/storage/database.py",),
    "apscheduler": ("scheduler/",),
    "alembic": ("shared/storage/migrations/",),
    "sqlalchemy": ("shared/storage/migrations/",),
    "cryptography": ("shared/process/sealing.py",),
    "typer": ("arictl/",),
    "rich": ("arictl/",),
    "pydantic": ("shared/process/settings.py",),
    "pydantic_settings": ("shared/process/settings.py",),
}

#: What a pure core has no use for.
IMPURE = {
    "asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "psycopg", "random", "redis",
    "requests", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlalchemy", "sqlite3", "ssl",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib3", "websockets", "dramatiq", "pydantic",
}  # fmt: skip
#: Clocks and the like that hide in modules a core may import.
IMPURE_CALLS = {"now", "today", "utcnow", "uuid1", "uuid4", "urlopen", "open", "print", "input", "sleep", "monotonic"}


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module a file imports, wherever in it; `from shared import database` is `shared.storage.database`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = [(path, name) for path, tree in sources(*PRODUCT) for name in imports(tree)]


def test_the_walk_sees_the_product() -> None:
    assert ("workers/inbound.py", "shared.storage.call_store.Note") in IMPORTS
    assert {path.split("/")[0] for path, _ in IMPORTS} >= {"listener", "workers", "scheduler", "arictl", "shared"}


def test_no_process_knows_another() -> None:
    crossing = [
        (path, name)
        for path, name in IMPORTS
        if name.split(".")[0] in PROCESSES and path.split("/")[0] not in (name.split(".")[0],)
    ]
    assert crossing == []


def test_shared_knows_no_process() -> None:
    assert [
        (path, name) for path, name in IMPORTS if path.startswith("shared/") and name.split(".")[0] in PROCESSES
    ] == []


def test_the_product_knows_nothing_of_development() -> None:
    assert [(path, name) for path, name in IMPORTS if name.split(".")[0] in DEVELOPMENT] == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_an_outside_library_has_one_home(library: str) -> None:
    users = {path for path, name in IMPORTS if name.split(".")[0] == library}
    assert users, "no longer used: take it off the list"
    assert [path for path in users if not path.startswith(HOMES[library])] == []


def test_the_core_is_pure() -> None:
    for path, tree in sources("shared/core"):
        for name in imports(tree):
            top = name.split(".")[0]
            assert top not in IMPURE, (path, name)
            if top == "shared":
                assert name.startswith(("shared.core", "shared.errors")), (path, name)
            assert name not in ("urllib.request", "datetime.now"), (path, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in IMPURE_CALLS, (path, node.lineno, called)


def test_the_broker_knows_nothing_of_what_it_carries() -> None:
    ours = {name for path, name in IMPORTS if path.startswith("shared/broker/") and name.startswith("shared")}
    assert ours, "the walk sees it"
    assert all(name.startswith("shared.broker") for name in ours)


def test_the_core_does_not_reach_out_through_what_it_imports() -> None:
    errors_imports = [name for path, name in IMPORTS if path == "shared/errors.py"]
    assert all(name.startswith("__future__") for name in errors_imports)


def test_this_checkout_is_what_is_tested() -> None:
    assert shared.__file__ is not None
    assert Path(shared.__file__) == ROOT / "shared" / "__init__.py"


def test_only_processes_import_their_own_entry() -> None:
    assert [(path, name) for path, name in IMPORTS if name.split(".")[-1] == "main" and path.endswith("main.py")] == []
