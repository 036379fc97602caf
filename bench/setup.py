"""The set-up time of an inbound call: `python -m bench.setup [--rounds 3] [--rates 1,10,20,50] [VARIANT]`.

Measures three variants in turn, on one real Asterisk, Postgres, Redis and voice agent: `floor` (`bench/floor.py`), a
bare asyncio client; `single` (`bench/single.py`), the single process that the pipeline replaces; `pipeline`, the
processes of the Procfile with their default settings. If named, also `pipeline-2` and `pipeline-4`, with so many
workers, `pipeline-newest`: beside the platform's newest layout, with a slot in its Redis for each call,
`pipeline-unmeasured` and `pipeline-scraped`: with METRICS=off, and with every process scraped every 5 s, and
`pipeline-talking`: with TALK_DETECTION=on. One variant runs at a time; each round reverses the order. Callers come at
an even rate, stay for two seconds on average and hang up.

The set-up time is from the creation of the caller's leg until the second leg is in the bridge, by Asterisk's time
stamps, as an observer with its own event socket gets them. Compare the variants with each other only: callers,
observer, agent and Asterisk share the machine. `--simulated` takes the simulator, for machines without a real Asterisk.

Prints Markdown tables; ends with status 1 if a call was lost, or if channels or bridges were left behind. `--save`
writes what was measured as JSON, `--chart` draws it (`bench/chart.py`). docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
import requests

from bench import asterisk_client, bridgings, chart
from bench.asterisk_client import Asterisk, Refused
from bench.bridgings import Bridgings, SetUp
from bench.usage import Usage
from devstack import (
    asterisk,
    asterisk_config,
    asterisk_root,
    debian,
    endpoint,
    folders,
    platform_tables,
    processes,
    servers,
)
from devstack.pipeline import CONSOLE, ROOT, Pipeline, procfile
from devstack.tenants import PASSWORD, closing_tenant
from shared.storage import migrations

APP = "voiceai"
MEDIA_CLIENT = "media"
#: The ARI user and app of the callers and the observer.
OBSERVER, OBSERVER_PASSWORD = "observer", "observer"
MEDIA_SECRET = "bench-media-secret"  # noqa: S105 - protects nothing
#: Of one length, each call would end in the very moment in which another one begins, at every rate.
TALK_SECONDS = (1.5, 2.5)
#: A rate is kept up no longer than this, so that a low rate means few calls.
LONGEST_SECONDS = 15.0
#: The first calls of a process are not measured: they warm it up.
WARM_UP_CALLS, WARM_UP_RATE = 30, 10.0
IDLE_SECONDS = 4.0
#: Work that follows the end of the last leg is included.
AFTER_SECONDS = 0.5
#: Longest wait for the end of a cell's last leg.
DRAIN_SECONDS = 20.0
VARIANTS = ("floor", "single", "pipeline")
#: Databases with the tables of the pipeline and of the platform, and one tenant.
TEMPLATE, NEWEST_TEMPLATE = "template_bench", "template_newest"


@dataclass(kw_only=True)
class Cell:
    """The measurements of one variant at one rate, over all rounds."""

    set_ups: list[SetUp] = field(default_factory=list)
    #: Callers that were never in a bridge with an agent.
    lost: int = 0
    #: Channels and bridges that were left long after the last hang-up.
    left: int = 0
    #: The mean of each round, in ms.
    means: list[float] = field(default_factory=list)
    #: How many cores of the machine were busy while callers came, in each round; other work on it included.
    busy_cores: list[float] = field(default_factory=list)
    #: Process → processor seconds.
    used: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def calls(self) -> int:
        """The number of calls."""
        return len(self.set_ups) + self.lost

    @property
    def mean(self) -> float:
        """The mean set-up time, in ms."""
        return bridgings.mean([set_up.whole for set_up in self.set_ups])


@dataclass(kw_only=True)
class Idle:
    """Processor time of a variant's processes and servers without calls."""

    seconds: float = 0.0
    used: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rates, and the number of calls."""

    rates: Sequence[float]
    calls: int

    def calls_at(self, rate: float) -> int:
        """Return the number of calls at a rate."""
        return max(1, min(self.calls, round(rate * LONGEST_SECONDS)))


@dataclass(frozen=True, kw_only=True)
class Results:
    """The measurements by variant and rate, and the idle ones by variant."""

    cells: dict[tuple[str, float], Cell] = field(default_factory=lambda: defaultdict(Cell))
    idle: dict[str, Idle] = field(default_factory=lambda: defaultdict(Idle))


# ── the testbed ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """The servers, which all variants share."""

    folder: Path
    usage: Usage
    #: True if the Asterisk is simulated.
    simulated: bool
    asterisk_url: str
    redis_url: str
    postgres_url: str
    #: The platform's own Redis: another database of the same server.
    platform_redis_url: str

    @contextlib.contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """Create a database from a template and empty Redis."""
        name = f"turn_{uuid.uuid4().hex[:8]}"
        url = servers.create_database(self.postgres_url, name, template=template)
        with contextlib.closing(redis.Redis.from_url(self.redis_url)) as client:
            client.flushall()
        try:
            yield url
        finally:
            servers.drop_database(self.postgres_url, name)

    def log(self) -> Path:
        """Return a new log file for a process."""
        return self.folder / "logs" / f"{uuid.uuid4().hex[:8]}.log"


@contextlib.contextmanager
def guarded(module: str, *words: str, log: Path, ready: str, **environment: str) -> Iterator[processes.GuardedProcess]:
    """Run a module in its own process; enter when it has printed that it is ready."""
    process = processes.GuardedProcess(
        [sys.executable, "-m", module, *words],
        log=log,
        environment={"PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1", **environment},
        cwd=ROOT,
    )
    try:
        process.wait_until(lambda: ready in log.read_text(), timeout_seconds=20)
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def running_testbed(folder: Path, *, simulated: bool) -> Iterator[Testbed]:
    """Start Postgres, Redis, agent and Asterisk."""
    usage, logs = Usage(), folders.make(folder / "logs", mode=0o700)
    with contextlib.ExitStack() as stack:
        with usage.named("Postgres"):
            postgres = stack.enter_context(servers.Postgres(folder / "postgres"))
        with usage.named("Redis"):
            cache = stack.enter_context(servers.Redis(folder / "redis"))
        agent_port = processes.free_port()
        with usage.named("agent"):
            # Without a database it accepts every leg: the bare client has no runs.
            stack.enter_context(
                guarded("devstack.agent", "--port", str(agent_port), log=logs / "agent.log", ready="listens")
            )
        media_url = f"ws://127.0.0.1:{agent_port}{endpoint.PATH}"
        with usage.named("Asterisk"):
            url = stack.enter_context(simulator(logs, media_url) if simulated else real(folder, media_url))
        for name in (TEMPLATE, NEWEST_TEMPLATE):
            template = servers.create_database(postgres.url, name)
            if name == NEWEST_TEMPLATE:
                platform_tables.create(template, "newest")
            migrations.upgrade(template)
            with closing_tenant(template) as tenant:
                tenant.configure(url, app=APP, ws_client_name=MEDIA_CLIENT)
                if name == NEWEST_TEMPLATE:
                    # There ten is the default.
                    tenant.limit_calls(1000)
        yield Testbed(
            folder=folder,
            usage=usage,
            simulated=simulated,
            asterisk_url=url,
            redis_url=cache.url,
            postgres_url=postgres.url,
            platform_redis_url=cache.url.removesuffix("/0") + "/1",
        )


@contextlib.contextmanager
def real(folder: Path, media_url: str) -> Iterator[str]:
    """Start a real Asterisk; yields its URL."""
    configuration = asterisk_config.Configuration(
        contexts={"inbound": APP},
        users={APP: PASSWORD, OBSERVER: OBSERVER_PASSWORD},
        clients={MEDIA_CLIENT: asterisk_config.Client(uri=media_url)},
    )
    with asterisk.RealAsterisk(asterisk_root.find(), folder / "asterisk", configuration) as running:
        yield running.url


@contextlib.contextmanager
def simulator(logs: Path, media_url: str) -> Iterator[str]:
    """Start a simulated Asterisk; yields its URL."""
    port = processes.free_port()
    words = ["--port", str(port), "--user", APP, "--password", PASSWORD, "--user", OBSERVER, "--password",
             OBSERVER_PASSWORD, "--media-url", media_url, "--inbound-app", APP, "--no-audio"]  # fmt: skip
    with guarded("simulator", *words, log=logs / "simulator.log", ready="ARI at"):
        yield f"http://127.0.0.1:{port}"


# ── the variants ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def floor(testbed: Testbed) -> Iterator[None]:
    """Run the bare client."""
    where = {"ARI_URL": testbed.asterisk_url, "ARI_APP": APP, "ARI_PASSWORD": PASSWORD, "MEDIA_CLIENT": MEDIA_CLIENT}
    with contextlib.ExitStack() as stack:
        with testbed.usage.named("client"):
            stack.enter_context(guarded("bench.floor", log=testbed.log(), ready="ready", **where))
        yield
    testbed.usage.forget("client")


@contextlib.contextmanager
def single(testbed: Testbed) -> Iterator[None]:
    """Run the single process."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(testbed.database())
        with testbed.usage.named("client"):
            stack.enter_context(
                guarded(
                    "bench.single", log=testbed.log(), ready="ready", DATABASE_URL=url, MEDIA_TOKEN_SECRET=MEDIA_SECRET
                )
            )
        yield
    testbed.usage.forget("client")


@contextlib.contextmanager
def pipeline(
    testbed: Testbed, *, workers: int = 1, newest: bool = False, metrics: str = "on", scrape_seconds: float = 0.0,
    talk_detection: str = "off",
) -> Iterator[None]:  # fmt: skip
    """Run the processes of the Procfile, with one worker or several, alone or beside the platform's newest layout."""
    logs = testbed.folder / "logs" / uuid.uuid4().hex[:8]
    logs.mkdir()
    names = tuple(name for name in procfile() if name != CONSOLE)
    with (
        testbed.database(NEWEST_TEMPLATE if newest else TEMPLATE) as url,
        Pipeline(
            database_url=url,
            redis_url=testbed.redis_url,
            logs=logs,
            METRICS=metrics,
            TALK_DETECTION=talk_detection,
            **({"PLATFORM_REDIS_URL": testbed.platform_redis_url} if newest else {}),
        ) as running,
    ):
        ports = []
        for name in names:
            with testbed.usage.named(name):
                for number in range(workers if name == "worker" else 1):
                    # Two free ports in a row may be the same one, before a process listens there.
                    port = next(port for port in iter(processes.free_port, None) if port not in ports)
                    ports.append(port)
                    running.start(f"{name}.{number}", METRICS_PORT=str(port))
        running.wait_connected(seconds=30)
        with scraped(ports, scrape_seconds) if scrape_seconds else contextlib.nullcontext():
            yield
    testbed.usage.forget(*names)


@contextlib.contextmanager
def scraped(ports: Sequence[int], seconds: float) -> Iterator[None]:
    """Ask for the metrics at these ports, every so many seconds."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(seconds):
            for port in ports:
                requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).raise_for_status()

    scraping = threading.Thread(target=scrape, name="scrape", daemon=True)
    scraping.start()
    try:
        yield
    finally:
        over.set()
        scraping.join()


RUNNING: Mapping[str, Callable[[Testbed], contextlib.AbstractContextManager[None]]] = {
    "floor": floor,
    "single": single,
    "pipeline": pipeline,
    "pipeline-2": functools.partial(pipeline, workers=2),
    "pipeline-4": functools.partial(pipeline, workers=4),
    "pipeline-newest": functools.partial(pipeline, newest=True),
    "pipeline-unmeasured": functools.partial(pipeline, metrics="off"),
    "pipeline-talking": functools.partial(pipeline, talk_detection="on"),
    "pipeline-scraped": functools.partial(pipeline, scrape_seconds=5.0),
}


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def observing(testbed: Testbed) -> AsyncIterator[tuple[Asterisk, Bridgings]]:
    """Observe the bridges of the Asterisk."""
    async with (
        asterisk_client.connected(testbed.asterisk_url, OBSERVER, OBSERVER_PASSWORD) as ari,
        ari.events(OBSERVER, [bridgings.EVENT], of_all=testbed.simulated) as socket,
    ):
        if not testbed.simulated:
            # Subscribing to every bridge costs next to nothing. With subscribeAll, Asterisk's part of a call was half
            # as much again (measured, 22.10): it writes every event of every channel before the filter drops it.
            await ari.ask("POST", f"/applications/{OBSERVER}/subscription", {"eventSource": "bridge:"})
        seen = Bridgings()

        async def observe() -> None:
            async for event in asterisk_client.read(socket):
                seen.add(event)
            raise ConnectionError("the observer's event socket was closed")

        watching = asyncio.create_task(observe())
        try:
            yield ari, seen
            if watching.done():
                watching.result()
        finally:
            watching.cancel()


async def measure_variant(testbed: Testbed, plan: Plan, results: Results, variant: str) -> None:
    """Measure a running variant: warm-up, idle, each rate."""
    async with observing(testbed) as (ari, seen):
        await callers(ari, rate=WARM_UP_RATE, count=WARM_UP_CALLS)
        before, began = testbed.usage.seconds(), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        add_used(results.idle[variant].used, before, testbed.usage.seconds())
        results.idle[variant].seconds += time.monotonic() - began
        for rate in plan.rates:
            cell = results.cells[variant, rate]
            await measure_rate(testbed.usage, ari, seen, cell, rate=rate, count=plan.calls_at(rate))


async def measure_rate(usage: Usage, ari: Asterisk, seen: Bridgings, cell: Cell, *, rate: float, count: int) -> None:
    """Make calls at a rate, and add what they took to a cell."""
    before = usage.seconds()
    legs, left, busy_cores = await callers(ari, rate=rate, count=count)
    add_used(cell.used, before, usage.seconds())
    set_ups = [found for leg in legs if (found := seen.set_up(leg)) is not None]
    cell.set_ups += set_ups
    cell.lost += len(legs) - len(set_ups)
    cell.left += left
    cell.means.append(bridgings.mean([set_up.whole for set_up in set_ups]))
    cell.busy_cores.append(busy_cores)


async def callers(ari: Asterisk, *, rate: float, count: int) -> tuple[list[str], int, float]:
    """Make `count` calls at an even rate, and wait until all have ended and nothing of them is left.

    Returns:
        The ids of their legs; the number of channels and bridges that were left and had to be removed here; how many
        cores of the machine were busy while callers came.
    """
    loop = asyncio.get_running_loop()
    began, busy = loop.time(), busy_seconds()
    legs = [f"call-{uuid.uuid4().hex}" for _ in range(count)]
    # The same lengths for each variant.
    chance = random.Random(count)  # noqa: S311 - no secret
    calling = []
    for number, leg in enumerate(legs):
        await asyncio.sleep(began + number / rate - loop.time())
        calling.append(asyncio.create_task(call(ari, leg, talk_seconds=chance.uniform(*TALK_SECONDS))))
    busy_cores = (busy_seconds() - busy) / max(loop.time() - began, 0.001)
    await asyncio.gather(*calling)
    ends_at = loop.time() + DRAIN_SECONDS
    while (left := await everything(ari)) and loop.time() < ends_at:
        await asyncio.sleep(0.1)
    for path in left:
        await ari.ask_gone("DELETE", path)
    await asyncio.sleep(AFTER_SECONDS)
    return legs, len(left), busy_cores


def busy_seconds() -> float:
    """Return how long the cores of this machine have worked, all together."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


async def everything(ari: Asterisk) -> list[str]:
    """Return the path of each channel and bridge of the Asterisk."""
    channels, bridges = await ari.ask("GET", "/channels"), await ari.ask("GET", "/bridges")
    return [f"/channels/{found['id']}" for found in channels] + [f"/bridges/{found['id']}" for found in bridges]


async def call(ari: Asterisk, leg: str, *, talk_seconds: float) -> None:
    """Make a call and hang it up: like `devstack.asterisk.Switch.dial`, at a lower cost."""
    far = asterisk.FAR_PREFIX + leg
    await ari.ask("POST", "/channels", {
        "endpoint": "Local/5551234@inbound", "context": "far", "extension": "wait", "priority": "1",
        "callerId": "4915550001", "formats": "ulaw", "channelId": far, "otherChannelId": leg,
    })  # fmt: skip
    await asyncio.sleep(talk_seconds)
    with contextlib.suppress(Refused):
        await ari.ask_gone("DELETE", f"/channels/{far}")


def add_used(used: dict[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Add the difference of two readings."""
    for name, seconds in after.items():
        used[name] += seconds - before[name]


# ── report ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(results: Results, plan: Plan, variants: Sequence[str]) -> None:
    """Print the tables."""
    head("calls/s", "variant", "calls", "lost", "left", "p50 ms", "p95 ms", "p99 ms", "mean ms",
         "above floor, ms", "until media leg, mean ms", "mean against floor (rounds)",
         "against single (rounds)")  # fmt: skip
    for rate in plan.rates:
        for variant in variants:
            cell = results.cells[variant, rate]
            whole = [set_up.whole for set_up in cell.set_ups]
            quantiles = [f"{bridgings.quantile(whole, part):.0f}" for part in (0.5, 0.95, 0.99)]
            until = bridgings.mean([set_up.until_media for set_up in cell.set_ups])
            against = [
                ratio(cell, results.cells.get((other, rate))) if other != variant else ""
                for other in ("floor", "single")
            ]
            row(
                f"{rate:g}",
                variant,
                cell.calls,
                cell.lost,
                cell.left,
                *quantiles,
                f"{cell.mean:.1f}",
                above(cell, results.cells.get(("floor", rate))) if variant != "floor" else "",
                f"{until:.1f}",
                *against,
            )
    names = [name for name in ("client", "listener", "worker", "scheduler", "Postgres", "Redis", "Asterisk", "agent",
                               "callers") if any(name in cell.used for cell in results.cells.values())]  # fmt: skip
    say("\nProcessor time per call in ms, hang-up and removal included; idle: in ms per second:\n")
    head("calls/s", "variant", *names, "without Asterisk, agent and callers", "cores busy")
    for rate in plan.rates:
        for variant in variants:
            cell = results.cells[variant, rate]
            busy = f"{bridgings.mean(cell.busy_cores):.1f} of {psutil.cpu_count()}"
            used(f"{rate:g}", variant, names, cell.used, by=cell.calls, busy=busy)
    for variant in variants:
        used("idle", variant, names, results.idle[variant].used, by=results.idle[variant].seconds)


def used(
    what: str, variant: str, names: Sequence[str], seconds: Mapping[str, float], *, by: float, busy: str = ""
) -> None:
    """Print a row of processor times, in ms."""
    each = {name: 1000 * seconds[name] / by for name in names if name in seconds}
    ours = sum(value for name, value in each.items() if name not in ("Asterisk", "agent", "callers"))
    row(what, variant, *(f"{each[name]:.1f}" if name in each else "" for name in names), f"{ours:.1f}", busy)


def above(cell: Cell, floor: Cell | None) -> str:
    """Return by how many ms the mean is above the floor's."""
    return f"{cell.mean - floor.mean:.1f}" if floor is not None and floor.set_ups else ""


def ratio(cell: Cell, other: Cell | None) -> str:
    """Return the ratio of the means, and its range over the rounds."""
    if other is None or not other.set_ups:
        return ""
    rounds = [mine / theirs for mine, theirs in zip(cell.means, other.means, strict=True)]
    return f"{cell.mean / other.mean:.2f} ({min(rounds):.2f}-{max(rounds):.2f})"


def head(*cells: str) -> None:
    """Print the heading of a table."""
    row(*cells)
    row(*("---" for _ in cells))


def row(*cells: object) -> None:
    """Print a row of a table."""
    say("| " + " | ".join(map(str, cells)) + " |")


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def saved(results: Results) -> list[chart.Cell]:
    """Return what a chart shows, and what the tables are computed from, ready for JSON."""
    return [
        {
            "variant": variant,
            "rate": rate,
            "lost": cell.lost,
            "whole_ms": [set_up.whole for set_up in cell.set_ups],
            "until_media_ms": [set_up.until_media for set_up in cell.set_ups],
            "busy_cores": [round(cores, 2) for cores in cell.busy_cores],
            "cpu_ms": {name: round(1000 * seconds / cell.calls, 2) for name, seconds in cell.used.items()},
        }
        for (variant, rate), cell in results.cells.items()
    ]


def bench(testbed: Testbed, plan: Plan, variants: Sequence[str], rounds: int) -> Results:
    """Run all rounds; every other one in reverse order, so that a machine that slows down favours no variant."""
    results = Results()
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            with RUNNING[variant](testbed):
                asyncio.run(measure_variant(testbed, plan, results, variant))
    return results


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.setup", description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(RUNNING))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", default="1,10,20,50", metavar="CALLS/S,...")
    parser.add_argument("--calls", type=int, default=200, help="largest number of calls per rate and round")
    parser.add_argument("--simulated", action="store_true", help="run on the simulator instead of a real Asterisk")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what was measured as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw it: a PNG file")
    options = parser.parse_args()
    variants = options.variants or list(VARIANTS)
    if unknown := set(variants) - set(RUNNING):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    plan = Plan(rates=[float(rate) for rate in options.rates.split(",")], calls=options.calls)
    with folders.temporary() as folder:
        try:
            with running_testbed(folder, simulated=options.simulated) as testbed:
                results = bench(testbed, plan, variants, options.rounds)
        except debian.Unavailable as exc:
            sys.stderr.write(f"no real Asterisk available: {exc}\n--simulated runs on the simulator\n")
            return 2
    report(results, plan, variants)
    cells = saved(results)
    if options.save:
        options.save.write_text(json.dumps(cells, separators=(",", ":")) + "\n")
    if options.chart:
        chart.draw(cells, options.chart)
    return 1 if any(cell.lost or cell.left for cell in results.cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
