"""How long an inbound call takes to set up: `python -m bench.setup [--rounds 2] [--rates 1,10,20] [VARIANT ...]`.

On one real Asterisk, with one Postgres, Redis and voice agent, in turns: `floor` (`bench/floor.py`), a bare asyncio
client; `single` (`bench/single.py`), the one process that the pipeline replaces; `pipeline`, the processes of the
Procfile with their default settings. Whoever is not in turn does not run; each round turns the order. Callers come at
an even pace, stay for two seconds and hang up.

A call's time is from the creation of the caller's leg until the second leg is in the bridge, by Asterisk's own stamps,
as an observer with an event socket of its own gets them. Compare the columns with each other: callers, observer, agent
and Asterisk share the machine. `--simulated` takes the simulator instead, for machines that can have no Asterisk.

Prints tables in Markdown; ends with status 1 when a call was lost or something of one was left behind. docs/bench.md
has a run of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from bench import asterisk_client, bridgings
from bench.asterisk_client import Asterisk, Refused
from bench.bridgings import Bridgings, SetUp
from bench.usage import Usage
from devstack import asterisk, asterisk_config, asterisk_root, endpoint, folders, processes, servers
from devstack.pipeline import ROOT, Pipeline, procfile
from devstack.tenants import PASSWORD, closing_tenant
from shared.storage import migrations

APP = "voiceai"
MEDIA_CLIENT = "media"
#: Who dials and observes: an ARI user and app of its own.
OBSERVER, OBSERVER_PASSWORD = "observer", "observer"
MEDIA_SECRET = "bench-media-secret"  # noqa: S105 - nothing of it is secret
TALK_SECONDS = 2.0
#: A rate is held no longer than this, so few calls a second are few calls.
LONGEST_SECONDS = 15.0
#: The first calls of a process are no measure.
WARM_UP_CALLS, WARM_UP_RATE = 30, 10.0
IDLE_SECONDS = 4.0
#: What goes on after the last leg is gone is counted as well.
AFTER_SECONDS = 0.5
#: Longest wait for a cell's last leg to be gone.
DRAIN_SECONDS = 20.0
VARIANTS = ("floor", "single", "pipeline")


@dataclass(kw_only=True)
class Cell:
    """What was measured of one variant at one rate, over all rounds."""

    set_ups: list[SetUp] = field(default_factory=list)
    #: Callers who never were in a bridge with an agent.
    lost: int = 0
    #: Channels and bridges that were there long after everybody had hung up.
    left: int = 0
    #: The mean of each round, in ms.
    means: list[float] = field(default_factory=list)
    #: Process → processor seconds.
    used: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def calls(self) -> int:
        """How many called."""
        return len(self.set_ups) + self.lost

    @property
    def mean(self) -> float:
        """Of the whole set-up, in ms."""
        return bridgings.mean([set_up.whole for set_up in self.set_ups])


@dataclass(kw_only=True)
class Idle:
    """What a variant's processes and servers use while nobody calls."""

    seconds: float = 0.0
    used: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    rates: Sequence[float]
    calls: int

    def calls_at(self, rate: float) -> int:
        """How many calls at a rate."""
        return max(1, min(self.calls, round(rate * LONGEST_SECONDS)))


@dataclass(frozen=True, kw_only=True)
class Results:
    """By variant and rate, and by variant."""

    cells: dict[tuple[str, float], Cell] = field(default_factory=lambda: defaultdict(Cell))
    idle: dict[str, Idle] = field(default_factory=lambda: defaultdict(Idle))


# ── what stands ready for every variant ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Site:
    """The servers, which outlast the variants."""

    folder: Path
    usage: Usage
    #: Whether the Asterisk is the simulator.
    simulated: bool
    asterisk_url: str
    redis_url: str
    postgres_url: str
    #: A database with our tables, the platform's, and one tenant.
    template: str

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A database as it was on the first day, and an empty Redis."""
        name = f"turn_{uuid.uuid4().hex[:8]}"
        url = servers.create_database(self.postgres_url, name, template=self.template)
        with contextlib.closing(redis.Redis.from_url(self.redis_url)) as client:
            client.flushdb()
        try:
            yield url
        finally:
            servers.drop_database(self.postgres_url, name)

    def log(self) -> Path:
        """A new file for a process's output."""
        return self.folder / "logs" / f"{uuid.uuid4().hex[:8]}.log"


@contextlib.contextmanager
def kept(module: str, *words: str, log: Path, ready: str, **environment: str) -> Iterator[processes.GuardedProcess]:
    """A program of ours in a process of its own, from when it says that it is ready."""
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
def standing(folder: Path, *, simulated: bool) -> Iterator[Site]:
    """Postgres, Redis, agent and Asterisk."""
    usage, logs = Usage(), folders.make(folder / "logs", mode=0o700)
    with contextlib.ExitStack() as stack:
        with usage.named("Postgres"):
            postgres = stack.enter_context(servers.Postgres(folder / "postgres"))
        with usage.named("Redis"):
            cache = stack.enter_context(servers.Redis(folder / "redis"))
        agent_port = processes.free_port()
        with usage.named("agent"):
            # Without a database it takes every leg: a bare client has no runs.
            stack.enter_context(
                kept("devstack.agent", "--port", str(agent_port), log=logs / "agent.log", ready="listens")
            )
        media_url = f"ws://127.0.0.1:{agent_port}{endpoint.PATH}"
        with usage.named("Asterisk"):
            url = stack.enter_context(simulator(logs, media_url) if simulated else real(folder, media_url))
        template = servers.create_database(postgres.url, "template_bench")
        migrations.upgrade(template)
        with closing_tenant(template) as tenant:
            tenant.configure(url, app=APP, ws_client_name=MEDIA_CLIENT)
        yield Site(
            folder=folder,
            usage=usage,
            simulated=simulated,
            asterisk_url=url,
            redis_url=cache.url,
            postgres_url=postgres.url,
            template="template_bench",
        )


@contextlib.contextmanager
def real(folder: Path, media_url: str) -> Iterator[str]:
    """A real Asterisk; gives its URL."""
    configuration = asterisk_config.Configuration(
        contexts={"inbound": APP},
        users={APP: PASSWORD, OBSERVER: OBSERVER_PASSWORD},
        clients={MEDIA_CLIENT: asterisk_config.Client(uri=media_url)},
    )
    with asterisk.RealAsterisk(asterisk_root.find(), folder / "asterisk", configuration) as running:
        yield running.url


@contextlib.contextmanager
def simulator(logs: Path, media_url: str) -> Iterator[str]:
    """A simulated Asterisk; gives its URL."""
    port = processes.free_port()
    words = ["--port", str(port), "--user", APP, "--password", PASSWORD, "--user", OBSERVER, "--password",
             OBSERVER_PASSWORD, "--media-url", media_url, "--inbound-app", APP, "--no-audio"]  # fmt: skip
    with kept("simulator", *words, log=logs / "simulator.log", ready="ARI at"):
        yield f"http://127.0.0.1:{port}"


# ── the variants ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def floor(site: Site) -> Iterator[None]:
    """The bare client."""
    where = {"ARI_URL": site.asterisk_url, "ARI_APP": APP, "ARI_PASSWORD": PASSWORD, "MEDIA_CLIENT": MEDIA_CLIENT}
    with contextlib.ExitStack() as stack:
        with site.usage.named("client"):
            stack.enter_context(kept("bench.floor", log=site.log(), ready="ready", **where))
        yield
    site.usage.forget("client")


@contextlib.contextmanager
def single(site: Site) -> Iterator[None]:
    """The one process."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(site.database())
        with site.usage.named("client"):
            stack.enter_context(
                kept("bench.single", log=site.log(), ready="ready", DATABASE_URL=url, MEDIA_TOKEN_SECRET=MEDIA_SECRET)
            )
        yield
    site.usage.forget("client")


@contextlib.contextmanager
def pipeline(site: Site) -> Iterator[None]:
    """The processes of the Procfile."""
    logs = site.folder / "logs" / uuid.uuid4().hex[:8]
    logs.mkdir()
    names = tuple(procfile())
    with (
        site.database() as url,
        Pipeline(database_url=url, redis_url=site.redis_url, logs=logs) as running,
    ):
        for name in names:
            with site.usage.named(name):
                running.start(name)
        running.wait_connected(seconds=30)
        yield
    site.usage.forget(*names)


RUNNING: Mapping[str, Callable[[Site], contextlib.AbstractContextManager[None]]] = {
    "floor": floor,
    "single": single,
    "pipeline": pipeline,
}


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def turn(site: Site, plan: Plan, results: Results, variant: str) -> None:
    """One variant's turn: warm-up, idle, each rate."""
    async with (
        asterisk_client.connected(site.asterisk_url, OBSERVER, OBSERVER_PASSWORD) as ari,
        ari.events(OBSERVER, [bridgings.EVENT], of_all=site.simulated) as socket,
    ):
        if not site.simulated:
            # Of every bridge, which costs nothing to speak of; subscribeAll made Asterisk's part of a call half as much
            # again (measured, 22.10): it writes every event of every channel down before the filter drops it.
            await ari.ask("POST", f"/applications/{OBSERVER}/subscription", {"eventSource": "bridge:"})
        seen = Bridgings()

        async def observe() -> None:
            async for event in asterisk_client.read(socket):
                seen.note(event)
            raise ConnectionError("the observer's event socket is closed")

        watching = asyncio.create_task(observe())
        try:
            await callers(ari, rate=WARM_UP_RATE, count=WARM_UP_CALLS)
            before, began = site.usage.seconds(), time.monotonic()
            await asyncio.sleep(IDLE_SECONDS)
            add_used(results.idle[variant].used, before, site.usage.seconds())
            results.idle[variant].seconds += time.monotonic() - began
            for rate in plan.rates:
                before = site.usage.seconds()
                legs, left = await callers(ari, rate=rate, count=plan.calls_at(rate))
                after = site.usage.seconds()
                set_ups = [found for leg in legs if (found := seen.set_up(leg)) is not None]
                cell = results.cells[variant, rate]
                cell.set_ups += set_ups
                cell.lost += len(legs) - len(set_ups)
                cell.left += left
                cell.means.append(bridgings.mean([set_up.whole for set_up in set_ups]))
                add_used(cell.used, before, after)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()


async def callers(ari: Asterisk, *, rate: float, count: int) -> tuple[list[str], int]:
    """So many callers at an even pace, until they have hung up and nothing of them is left.

    Returns:
        Their legs' ids, and how many channels and bridges had to be removed from here.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    legs = [f"call-{uuid.uuid4().hex}" for _ in range(count)]
    calling = []
    for number, leg in enumerate(legs):
        await asyncio.sleep(began + number / rate - loop.time())
        calling.append(asyncio.create_task(call(ari, leg)))
    await asyncio.gather(*calling)
    ends_at = loop.time() + DRAIN_SECONDS
    while (left := await everything(ari)) and loop.time() < ends_at:
        await asyncio.sleep(0.1)
    for path in left:
        await ari.ask_gone("DELETE", path)
    await asyncio.sleep(AFTER_SECONDS)
    return legs, len(left)


async def everything(ari: Asterisk) -> list[str]:
    """The path of each channel and bridge of the Asterisk."""
    channels, bridges = await ari.ask("GET", "/channels"), await ari.ask("GET", "/bridges")
    return [f"/channels/{found['id']}" for found in channels] + [f"/bridges/{found['id']}" for found in bridges]


async def call(ari: Asterisk, leg: str) -> None:
    """Somebody calls, stays and hangs up: as `devstack.asterisk.Switch.dial`, without its cost."""
    far = asterisk.FAR_PREFIX + leg
    await ari.ask("POST", "/channels", {
        "endpoint": "Local/5551234@inbound", "context": "far", "extension": "wait", "priority": "1",
        "callerId": "4915550001", "formats": "ulaw", "channelId": far, "otherChannelId": leg,
    })  # fmt: skip
    await asyncio.sleep(TALK_SECONDS)
    with contextlib.suppress(Refused):
        await ari.ask_gone("DELETE", f"/channels/{far}")


def add_used(used: dict[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Adds what was used between two readings."""
    for name, seconds in after.items():
        used[name] += seconds - before[name]


# ── report ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(results: Results, plan: Plan, variants: Sequence[str]) -> None:
    """The tables."""
    head("calls/s", "variant", "calls", "lost", "left", "p50 ms", "p95 ms", "p99 ms", "mean ms",
         "until media leg, mean ms", "mean against floor (rounds)", "against single (rounds)")  # fmt: skip
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
                f"{until:.1f}",
                *against,
            )
    names = [name for name in ("client", "listener", "worker", "scheduler", "Postgres", "Redis", "Asterisk", "agent",
                               "callers") if any(name in cell.used for cell in results.cells.values())]  # fmt: skip
    say("\nProcessor time per call, in ms, hang-up and removal included; idle: in ms per second:\n")
    head("calls/s", "variant", *names, "all but agent and callers")
    for rate in plan.rates:
        for variant in variants:
            cell = results.cells[variant, rate]
            used(f"{rate:g}", variant, names, cell.used, cell.calls)
    for variant in variants:
        used("idle", variant, names, results.idle[variant].used, results.idle[variant].seconds)


def used(what: str, variant: str, names: Sequence[str], seconds: Mapping[str, float], by: float) -> None:
    """A row of processor times, in ms each."""
    each = {name: 1000 * seconds[name] / by for name in names if name in seconds}
    served = sum(value for name, value in each.items() if name not in ("agent", "callers"))
    row(what, variant, *(f"{each[name]:.1f}" if name in each else "" for name in names), f"{served:.1f}")


def ratio(cell: Cell, other: Cell | None) -> str:
    """Of the means, and that of the single rounds, from the least to the most."""
    if other is None or not other.set_ups:
        return ""
    rounds = [mine / theirs for mine, theirs in zip(cell.means, other.means, strict=True)]
    return f"{cell.mean / other.mean:.2f} ({min(rounds):.2f}-{max(rounds):.2f})"


def head(*cells: str) -> None:
    """The first rows of a table."""
    row(*cells)
    row(*("---" for _ in cells))


def row(*cells: object) -> None:
    """A row of a table."""
    say("| " + " | ".join(map(str, cells)) + " |")


def say(text: str) -> None:
    """A line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bench(site: Site, plan: Plan, variants: Sequence[str], rounds: int) -> Results:
    """All rounds; every other one in reverse, so that a machine that grows slower is nobody's fault."""
    results = Results()
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            with RUNNING[variant](site):
                asyncio.run(turn(site, plan, results, variant))
    return results


def main() -> int:
    """Measures."""
    parser = argparse.ArgumentParser(prog="python -m bench.setup", description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rates", default="1,10,20", metavar="CALLS/S,...")
    parser.add_argument("--calls", type=int, default=200, help="most calls at a rate in a round")
    parser.add_argument("--simulated", action="store_true", help="the simulator instead of a real Asterisk")
    options = parser.parse_args()
    variants = options.variants or list(VARIANTS)
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    plan = Plan(rates=[float(rate) for rate in options.rates.split(",")], calls=options.calls)
    with folders.temporary() as folder:
        try:
            with standing(folder, simulated=options.simulated) as site:
                results = bench(site, plan, variants, options.rounds)
        except asterisk_root.Unavailable as exc:
            sys.stderr.write(f"no real Asterisk can be had: {exc}\n--simulated takes the simulator\n")
            return 2
    report(results, plan, variants)
    return 1 if any(cell.lost or cell.left for cell in results.cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
