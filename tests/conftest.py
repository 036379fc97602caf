"""Real servers for the tests: Postgres, Redis and Asterisk, embedded unless the environment names others.

Servers are imported and started when a test first asks for one, so the unit tests start at once. `TEST_DATABASE_URL`
and `TEST_REDIS_URL` (its database is flushed!) replace the embedded servers, `ASTERISK_URL` … the real one. Without a
real Asterisk its tests are skipped and the last lines of the run say so; with `REQUIRE_ASTERISK=1` the run fails. The
same holds for the tests in a real browser, and `REQUIRE_BROWSER=1`; on a real Prometheus, and `REQUIRE_PROMETHEUS=1`.
"""

# ruff: noqa: PLC0415  # unit tests must not wait for the imports of servers they never use

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import os
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from devstack import platform_tables, prometheus, servers
    from devstack.asterisk import RealAsterisk, Switch
    from devstack.asterisk_config import Configuration
    from devstack.asterisk_root import Root


# Shared tests and their helpers: a failed assertion shows its values there as well.
pytest.register_assert_rewrite("tests.support")

#: Files whose tests keep a processor busy and have times to keep, in two groups: one xdist worker runs a group, so that
#: no more than two of these files run at once.
BUSY = (
    (
        "acceptance/test_failover.py",
        "acceptance/test_real_calls.py",
        "acceptance/test_moved_servers.py",
        "acceptance/test_mixed_versions.py",
    ),
    (
        "acceptance/test_faults.py",
        "acceptance/test_resync.py",
        "acceptance/test_outbound.py",
        "acceptance/test_deaths.py",
    ),
)
#: The slowest files, the slowest first: started before the others of their kind, heavy or not, none of them is left for
#: one xdist worker at the end.
LONG = (
    BUSY[0][0],
    "browser/test_frame.py",
    BUSY[1][0],
    "acceptance/test_platform_legs.py",
    "simulation/test_simulation.py",
    "acceptance/test_platform_transfers.py",
    "integration/test_plans.py",
    "acceptance/test_platform_slots.py",
    "acceptance/test_newest_layout.py",
    "integration/test_broker_outages.py",
    "acceptance/test_real_resync.py",
    "acceptance/test_real_verdicts.py",
    "acceptance/test_chaos_judge.py",
)
#: Layers whose tests start processes or keep a processor busy.
HEAVY = ("simulation", "acceptance", "browser")
#: Seconds that a file takes, roughly: one of LONG, and one of a layer. They decide about the order alone. Those of
#: tests/browser all run with the first of them.
LONG_SECONDS = 60.0
FILE_SECONDS = {"unit": 0.6, "contract": 14.0, "integration": 11.0, "simulation": 6.0, "acceptance": 25.0}
#: How many new objects make Python's garbage collector look for those that are not reached; 700 by default.
GARBAGE = 20_000
TESTS = Path(__file__).parent
#: Folders of tests/, in the order of the summary.
LAYERS = ("unit", "contract", "integration", "simulation", "acceptance", "browser", "checks")
#: Further xdist workers save nothing: the slowest file alone takes as long.
MOST_XDIST_WORKERS = 8


class Outside:
    """A server that the environment names: the tests do not start or stop it."""

    def __init__(self, url: str) -> None:
        self.url = url


class Part:
    """Something real that not every machine has: the tests that ran on it, and the reason why the others did not.

    Args:
        name: In the last lines of the run.
        marker: Of the tests that need it.
        variable: With `1`, the run fails where no test had it.
    """

    def __init__(self, *, name: str, marker: str, variable: str) -> None:
        self.name = name
        self.marker = marker
        self.variable = variable
        self.ran: set[str] = set()
        self.reason: str | None = None
        self.archive_unreachable = False

    @property
    def required(self) -> bool:
        return os.environ.get(self.variable, "") not in ("", "0")

    @property
    def missing(self) -> bool:
        """True if the run has to fail because no test had it."""
        return self.required and not self.ran and not self.archive_unreachable

    def unavailable(self, reason: str, *, archive_unreachable: bool) -> NoReturn:
        """Skip the test that asked for it, or fail it."""
        self.reason, self.archive_unreachable = reason, archive_unreachable
        if self.missing:
            pytest.fail(f"{self.name.lower()} is required ({self.variable}) and cannot be had: {reason}", pytrace=False)
        pytest.skip(f"no {self.name.lower()}: {reason}")


class LayerTally:
    """Tests and seconds of each layer, so that a run shows which layers it covered."""

    def __init__(self) -> None:
        self._tests: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, report: pytest.TestReport) -> None:
        """Count one phase of a test."""
        layer = report.nodeid.split("/")[1] if report.nodeid.startswith("tests/") else ""
        self._tests[layer] += report.when == "call" and not report.skipped
        self._seconds[layer] += report.duration

    def __str__(self) -> str:
        return ", ".join(
            f"{layer} {self._tests[layer]} in {self._seconds[layer]:.0f} s" for layer in LAYERS if self._tests[layer]
        )


ASTERISK = Part(name="REAL ASTERISK", marker="asterisk", variable="REQUIRE_ASTERISK")
BROWSER = Part(name="BROWSER", marker="browser", variable="REQUIRE_BROWSER")
PROMETHEUS = Part(name="PROMETHEUS", marker="prometheus", variable="REQUIRE_PROMETHEUS")
PARTS = (ASTERISK, BROWSER, PROMETHEUS)
LAYER_TALLY = LayerTally()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of xdist workers for this machine: three for each processor, as most tests wait for clocks.

    One if the environment names a Redis or an Asterisk: every xdist worker would treat it as its own.
    """
    if os.environ.get("TEST_REDIS_URL") or os.environ.get("ASTERISK_URL"):
        return 1
    return min((os.cpu_count() or 1) * 3, MOST_XDIST_WORKERS)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector from looking through what is imported and collected, which lives as long as the run.

    During a run of the unit tests it would do so a dozen times, each time for a third of a second. What the tests leave
    it looks for when there is more of it: pytest keeps the reports of all tests meanwhile.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of the heavy layers over the whole run; of these and of the others, the slowest come first.

    Otherwise every xdist worker has a heavy one at the same time, and their tests have times to keep.
    """
    rank = {TESTS / name: number for number, name in enumerate(LONG)}
    for group in BUSY:
        rank |= {TESTS / name: rank[TESTS / group[0]] for name in group}
    files = sorted(dict.fromkeys(item.path for item in items), key=lambda path: rank.get(path, len(rank)))
    place: dict[Path, float] = {}
    for heavy in (True, False):
        part = [path for path in files if (_layer(path) in HEAVY) is heavy]
        seconds = [LONG_SECONDS if path in rank else FILE_SECONDS.get(_layer(path), 0.0) for path in part]
        begins = itertools.accumulate(seconds, initial=0.0)
        place |= {path: begin / (sum(seconds) or 1.0) for path, begin in zip(part, begins, strict=False)}
    items.sort(key=lambda item: place[item.path])


def _layer(path: Path) -> str:
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    LAYER_TALLY.add(report)
    for part in PARTS:
        if report.when == "call" and not report.skipped and part.marker in report.keywords:
            part.ran.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        # This is an xdist worker: the controller gets its reports, and decides.
        output["parts"] = [(part.reason, part.archive_unreachable) for part in PARTS]
    elif session.config.option.collectonly or session.exitstatus != pytest.ExitCode.OK:
        return
    elif any(part.missing for part in PARTS):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give one xdist worker all files of tests/browser, which share one pipeline, and one those of a group of BUSY."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/browser/"):
                return "tests/browser"
            file = str(super()._split_scope(nodeid))
            return next((f"busy with {group[0]}" for group in BUSY if file.removeprefix("tests/") in group), file)

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what an xdist worker found out about the real parts."""
    found = getattr(node, "workeroutput", {}).get("parts", [])
    for part, (reason, archive_unreachable) in zip(PARTS, found, strict=False):
        part.reason = part.reason or reason
        part.archive_unreachable = part.archive_unreachable or archive_unreachable


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a passed test has recorded as `said`."""
    for report in terminalreporter.getreports("passed"):
        for name, said in report.user_properties:
            if name == "said":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(said)


class Logged(logging.Handler):
    """Shows warnings beside a failed test, and raises what is wrong with a call of a logger, where others print it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname} {record.name}: {self.format(record)}\n")


def pytest_configure() -> None:
    logging.getLogger().addHandler(Logged(logging.WARNING))


def pytest_unconfigure(config: pytest.Config) -> None:
    # Not in the terminal summary: these lines have to be the last ones, below the list of skipped tests.
    terminalreporter = config.pluginmanager.get_plugin("terminalreporter")
    if terminalreporter is None or config.option.collectonly:
        return
    if str(LAYER_TALLY):
        terminalreporter.write_line(f"LAYERS: {LAYER_TALLY} (seconds of test time, all xdist workers together)")
    for part in PARTS:
        if part.ran:
            terminalreporter.write_line(f"{part.name}: ran {len(part.ran)} tests", green=True)
        elif part.reason or part.required:
            reason = part.reason or "no test of this run asks for one"
            terminalreporter.write_line(f"{part.name}: NOT RUN because {reason}", red=True, bold=True)


@pytest.fixture(scope="session")
def stack_folder() -> Iterator[Path]:
    """A folder for this test run, removed afterwards; in memory if there is room."""
    from devstack import folders

    with folders.temporary(in_memory=True) as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[servers.Postgres | Outside]:
    """A Postgres for the whole run."""
    from devstack import servers
    from tests import databases

    if given := os.environ.get("TEST_DATABASE_URL"):
        yield Outside(given)
        databases.drop_all(given)
        return
    folder: Path = request.getfixturevalue("stack_folder")
    with servers.Postgres(folder / "postgres", durable=False) as server:
        yield server
        databases.forget_all()


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[servers.Redis | Outside]:
    """A Redis for the whole run."""
    from devstack import servers

    if given := os.environ.get("TEST_REDIS_URL"):
        yield Outside(given)
        return
    folder: Path = request.getfixturevalue("stack_folder")
    with servers.Redis(folder / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def database_templates(postgres_server: servers.Postgres | Outside) -> Callable[[platform_tables.Layout], str]:
    """A function that returns the name of a migrated database with such tables of the platform: a template."""
    from devstack import platform_tables
    from shared.storage import migrations
    from tests import databases

    @functools.cache
    def template(layout: platform_tables.Layout) -> str:
        url = databases.create(postgres_server.url)
        platform_tables.create(url, layout)
        migrations.upgrade(url)
        return urlsplit(url).path.removeprefix("/")

    return template


@pytest.fixture(scope="session")
def database_template(database_templates: Callable[[platform_tables.Layout], str]) -> str:
    """The name of a migrated database, the template of each test's own."""
    return database_templates("stand-alone")


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> platform_tables.Layout:
    """The platform's tables in the database of the test: stand-alone unless it is parametrized (platform_tables)."""
    return cast("platform_tables.Layout", getattr(request, "param", "stand-alone"))


@pytest.fixture
def empty_database_url(postgres_server: servers.Postgres | Outside) -> str:
    """An empty database for one test."""
    from tests import databases

    return databases.create(postgres_server.url)


@pytest.fixture
def database_url(
    postgres_server: servers.Postgres | Outside,
    database_templates: Callable[[platform_tables.Layout], str],
    layout: platform_tables.Layout,
) -> Iterator[str]:
    """A migrated database for one test, with the platform's tables of the fixture `layout`."""
    from tests import databases

    with databases.borrowed(postgres_server.url, database_templates(layout)) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: servers.Redis | Outside) -> str:
    """An empty Redis database."""
    import redis

    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture(scope="session")
def prometheus_programs() -> prometheus.Programs:
    """A real Prometheus, and promtool."""
    from devstack import debian, prometheus

    try:
        return prometheus.find()
    except debian.Unavailable as exc:
        PROMETHEUS.unavailable(str(exc), archive_unreachable=exc.archive_unreachable)


@pytest.fixture(scope="session")
def asterisk_root() -> Root:
    """An installed real Asterisk; installed on first use, cached outside the checkout."""
    from devstack import asterisk_root, debian

    try:
        return asterisk_root.find()
    except debian.Unavailable as exc:
        ASTERISK.unavailable(str(exc), archive_unreachable=exc.archive_unreachable)


@pytest.fixture
def make_asterisk(asterisk_root: Root, stack_folder: Path) -> Iterator[Callable[[Configuration], RealAsterisk]]:
    """A function that starts a real Asterisk with a configuration of the test's; all are stopped after the test."""
    from devstack import asterisk

    numbers = itertools.count()
    with contextlib.ExitStack() as running:

        def make(configuration: Configuration) -> RealAsterisk:
            folder = stack_folder / f"asterisk-{uuid.uuid4().hex[:8]}-{next(numbers)}"
            return running.enter_context(asterisk.RealAsterisk(asterisk_root, folder, configuration))

        yield make


@pytest.fixture
def media_port() -> int:
    """The port to which the Asterisk of the fixtures `asterisk` and `switch` connects its media legs."""
    from devstack import processes

    given = urlsplit(os.environ.get("ASTERISK_MEDIA_URL", "")).port
    return given or processes.free_port()


@pytest.fixture
def asterisk(make_asterisk: Callable[[Configuration], RealAsterisk], media_port: int) -> RealAsterisk:
    """A real Asterisk: user and app `voiceai`, a password that breaks URLs, client `media` to `media_port`."""
    from devstack import asterisk_config, endpoint

    client = asterisk_config.Client(uri=f"ws://127.0.0.1:{media_port}{endpoint.PATH}")
    return make_asterisk(
        asterisk_config.Configuration(
            contexts={"inbound": "voiceai"},
            users={"voiceai": "pass word & # % + : ; ="},
            clients={"media": client},
        )
    )


@pytest.fixture
def switch(request: pytest.FixtureRequest) -> Iterator[Switch]:
    """An Asterisk to call through: the one that the environment names, or else the fixture `asterisk`."""
    from devstack import asterisk

    if given := asterisk.existing():
        yield given
        given.close()
    else:
        yield request.getfixturevalue("asterisk")
