"""Which module may import which, found with `ast`: the layers stay layers, and imports form no circle.

Imports inside functions and for type checking count, too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import shared
from tests.support.statements import statements

ROOT = Path(__file__).parents[2]
#: The processes: none imports another.
PROCESSES = {"listener", "workers", "scheduler", "console", "arictl"}
#: What is installed and runs in production.
PRODUCT = PROCESSES | {"shared"}
#: For development: these may import the product, never the other way round.
DEVELOPMENT = {"simulator", "devstack", "tests", "bench", "chaos"}

#: One home per outside library: a file, or a folder.
HOMES = {
    "websockets": ("listener/",),
    "requests": ("shared/platform/dograh/quota_client.py",),
    "urllib3": ("shared/platform/dograh/quota_client.py",),
    "psycopg": ("shared/storage/database.py", "shared/storage/postgres_connection.py"),
    "psycopg_pool": ("shared/storage/database.py",),
    "apscheduler": ("scheduler/",),
    "alembic": ("shared/storage/migrations/",),
    "sqlalchemy": ("shared/storage/migrations/",),
    "cryptography": ("shared/process/sealing.py",),
    "typer": ("arictl/",),
    "rich": ("arictl/",),
    "opentelemetry": ("shared/process/traces.py",),
    "starlette": ("console/",),
    "uvicorn": ("console/main.py", "console/http_protocol.py"),
    "anyio": ("console/app.py",),
    "jinja2": ("console/",),
    "markupsafe": ("console/",),
    "argon2": ("shared/operator/passwords.py",),
    "prometheus_client": ("shared/process/metric_kinds.py", "shared/process/metrics_server.py"),
    "pydantic": ("shared/process/settings.py",),
    "pydantic_settings": ("shared/process/settings.py",),
}

#: What a pure file does not import.
IMPURE = {
    "asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "psycopg", "random", "redis",
    "requests", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlalchemy", "sqlite3", "ssl",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib3", "websockets", "dramatiq", "pydantic",
}  # fmt: skip
#: Clocks and the like, in modules that a pure file may import.
IMPURE_CALLS = {"now", "today", "utcnow", "uuid1", "uuid4", "urlopen", "open", "print", "input", "sleep", "monotonic"}


def files(*packages: str) -> Iterator[str]:
    for package in packages:
        yield from (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / package).rglob("*.py")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is asked of a file. Its tree is not kept: the garbage collector would look through a million nodes."""

    #: Every module that it imports, wherever in it; `from shared import database` is `shared.storage.database`.
    imports: tuple[str, ...]
    #: Where it calls something, and the last part of its name.
    calls: tuple[tuple[int, str], ...]
    #: Its constants that are texts.
    texts: frozenset[str]


@functools.cache
def read(path: str) -> Source:
    tree = ast.parse((ROOT / path).read_text())
    calls, texts = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            calls.append((node.lineno, called))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return Source(imports=tuple(imported_by(tree)), calls=tuple(calls), texts=frozenset(texts))


def imported_by(tree: ast.Module) -> Iterator[str]:
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Read when a test first asks: every xdist worker imports this file.
@functools.cache
def imports_made() -> list[tuple[str, str]]:
    """Return every import of the product: file, and what it names."""
    return [(path, name) for path in files(*PRODUCT) for name in read(path).imports]


def module_of(path: str) -> str:
    """Return the dotted name of a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path) for path in files(*PRODUCT)}


def imported_module(name: str) -> str | None:
    """Return the module of the product that an import names, itself or something in it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@functools.cache
def edges() -> set[tuple[str, str]]:
    """Return (module, module of the product that it imports)."""
    return {
        (module_of(path), target)
        for path, name in imports_made()
        if (target := imported_module(name)) is not None and target != module_of(path)
    }


def users(package: str) -> set[tuple[str, str]]:
    """Return what the modules of a package import of the product outside the package."""
    return {
        (module, target) for module, target in edges() if is_within(module, package) and not is_within(target, package)
    }


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_walk_sees_the_product() -> None:
    assert ("workers.inbound", "workers.flow") in edges()
    assert ("workers/inbound.py", "workers.flow.Flow") in imports_made()
    assert {path.split("/")[0] for path, _ in imports_made()} >= {
        "listener",
        "workers",
        "scheduler",
        "arictl",
        "shared",
    }


def test_no_process_imports_another() -> None:
    crossing = [
        (path, name)
        for path, name in imports_made()
        if name.split(".")[0] in PROCESSES and path.split("/")[0] not in (name.split(".")[0],)
    ]
    assert crossing == []


def test_shared_imports_no_process() -> None:
    assert [
        (path, name) for path, name in imports_made() if path.startswith("shared/") and name.split(".")[0] in PROCESSES
    ] == []


def test_the_product_imports_nothing_of_development() -> None:
    assert [(path, name) for path, name in imports_made() if name.split(".")[0] in DEVELOPMENT] == []


def test_the_judge_of_the_chaos_runs_imports_nothing_of_this_project() -> None:
    """What judges the product from outside must not repeat its mistakes."""
    found = {name for path in files("chaos/judge") for name in read(path).imports}
    assert {"psycopg", "requests"} <= {name.split(".")[0] for name in found}, "the walk sees it"
    ours = {name for name in found if name.split(".")[0] in PRODUCT | DEVELOPMENT}
    assert {name for name in ours if not is_within(name, "chaos.judge")} == set()


@pytest.mark.parametrize("library", sorted(HOMES))
def test_an_outside_library_has_one_home(library: str) -> None:
    users = {path for path, name in imports_made() if name.split(".")[0] == library}
    assert users, "no longer used: take it off the list"
    assert [path for path in users if not path.startswith(HOMES[library])] == []


#: Pure files outside `shared/call/`: decisions and formats, for which a test needs no server and no clock.
PURE = {
    "listener/backoff.py",
    "scheduler/actions.py",
    "scheduler/move_plan.py",
    "scheduler/rebalancing.py",
    "shared/assignments.py",
    "shared/asterisk/address_guard.py",
    "shared/asterisk/config_files.py",
    "shared/asterisk/endpoint.py",
    "shared/asterisk/events.py",
    "shared/broker/fairness.py",
    "shared/errors.py",
    "shared/keys.py",
    "shared/platform/dograh/json_values.py",
    "shared/platform/dograh/media_url.py",
    "shared/platform/dograh/telephony_configuration.py",
    "shared/storage/call_sql.py",
    "shared/storage/timeline.py",
    "shared/token_bucket.py",
}


@pytest.mark.parametrize("path", sorted({*PURE, *files("shared/call")}))
def test_a_pure_file_has_no_clock_and_no_outside(path: str) -> None:
    for name in read(path).imports:
        assert name.split(".")[0] not in IMPURE, (path, name)
        assert name != "urllib.request", (path, name)
    for line, called in read(path).calls:
        assert called not in IMPURE_CALLS, (path, line, called)


#: Package of `shared/` → what else of `shared/` it may import. Modules on top of the packages may import any of them.
MAY_IMPORT = {
    # The life of a call: no storage, no platform, no network, no process.
    "shared.call": ("shared.errors",),
    # It carries bytes, and does not know which.
    "shared.broker": (),
    "shared.asterisk": ("shared.errors", "shared.ongoing", "shared.token_bucket"),
    "shared.storage": (
        "shared.errors",
        "shared.call",
        "shared.current_message",
        "shared.ongoing",
        "shared.spans",
        "shared.token_bucket",
    ),
    # Behind its ports stands an adapter that reads the platform's tables, and asks its HTTP service and its Redis.
    "shared.platform": (
        "shared.errors",
        "shared.call",
        "shared.storage.database",
        "shared.asterisk",
        "shared.broker.redis_clients",
    ),
    # For arictl and the console.
    "shared.operator": (
        "shared.errors",
        "shared.call",
        "shared.storage",
        "shared.process",
        "shared.broker",
        "shared.asterisk",
        "shared.platform",
        "shared.keys",
        "shared.messages",
        "shared.queues",
        "shared.redaction",
    ),
    "shared.process": (
        "shared.errors",
        "shared.call",
        "shared.ongoing",
        "shared.redaction",
        "shared.spans",
        "shared.keys",
        "shared.asterisk.address_guard",
        "shared.broker.redis_clients",
    ),
}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_of_shared_imports_only_those_below_it(package: str) -> None:
    assert any(is_within(module, package) for module, _ in edges()), "the walk sees it"
    assert {edge for edge in users(package) if not is_within(edge[1], *MAY_IMPORT[package])} == set()


def test_every_package_of_shared_has_its_rule() -> None:
    packages = {f"shared.{path.parent.name}" for path in (ROOT / "shared").glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)


#: Keys and tables of the platform that the product reads: only its adapter spells them.
PLATFORM_WORDS = {"ws_client_name", "ari_endpoint", "TELEPHONY_CONFIGURATION", "CONCURRENT_CALL_LIMIT"}


def test_only_the_platform_s_adapter_parses_the_platform_s_json() -> None:
    adapter = "shared.platform.dograh"
    readers = {edge for edge in edges() if edge[1] == f"{adapter}.json_values" and not is_within(edge[0], adapter)}
    assert readers == set()
    spelled = {
        (path, text)
        for path in files(*PRODUCT)
        for text in read(path).texts & PLATFORM_WORDS
        if not is_within(module_of(path), adapter, "shared.storage.migrations")
    }
    assert spelled == set()


#: A test of a connection asks the platform's tables as they are.
CHOOSING = (
    "workers.main",
    "scheduler.main",
    "console.main",
    "arictl",
    "shared.operator.checks",
    "shared.operator.connection_tests",
)


def test_the_platform_s_adapter_is_chosen_where_a_process_is_put_together() -> None:
    """Everything else knows the ports alone, so a second platform is a second folder beside `dograh/`."""
    adapter = "shared.platform.dograh"
    choosing = {user for user, target in edges() if is_within(target, adapter) and not is_within(user, adapter)}
    assert {user for user in choosing if not is_within(user, *CHOOSING)} == set()


#: What carries out a step of a call. The flow alone knows which step follows which.
STEP_FILES = {"workers.admission", "workers.media", "workers.bridge", "workers.outbound", "workers.teardown"}


def test_no_step_imports_another_and_all_stand_on_one_floor() -> None:
    assert {edge for edge in edges() if edge[0] in STEP_FILES and edge[1] in STEP_FILES} == set()
    assert {floor(module) for module in STEP_FILES} == {2}
    assert {edge for edge in edges() if edge[0] in STEP_FILES and edge[1] == "workers.flow"} == set()


def test_workers_has_at_most_seven_floors() -> None:
    assert max(floor(module) for module in MODULES if is_within(module, "workers")) == floor("workers.main") <= 7


@functools.cache
def floor(module: str) -> int:
    """Return how many modules of its package stand in the longest chain of imports that begins with this one."""
    package = module.split(".", maxsplit=1)[0]
    below = {target for user, target in edges() if user == module and is_within(target, package)}
    return 1 + max((floor(target) for target in below), default=0)


def test_errors_import_nothing() -> None:
    errors_imports = [name for path, name in imports_made() if path == "shared/errors.py"]
    assert all(name.startswith("__future__") for name in errors_imports)


def test_this_checkout_is_what_is_tested() -> None:
    assert shared.__file__ is not None
    assert Path(shared.__file__) == ROOT / "shared" / "__init__.py"


def test_only_processes_import_their_own_entry() -> None:
    assert [
        (path, name) for path, name in imports_made() if name.split(".")[-1] == "main" and path.endswith("main.py")
    ] == []


#: Whose modules are not imported by what they import themselves, directly or not.
WITHOUT_CIRCLES = PRODUCT | {"bench", "devstack", "simulator"}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one circle, in order; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def test_imports_form_no_circle() -> None:
    known = {module_of(path) for path in files(*WITHOUT_CIRCLES)}
    graph: dict[str, set[str]] = {}
    for path in files(*WITHOUT_CIRCLES):
        imported = {name if name in known else name.rpartition(".")[0] for name in read(path).imports}
        graph[module_of(path)] = known.intersection(imported) - {module_of(path)}
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
