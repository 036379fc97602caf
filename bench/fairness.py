"""One tenant's calls beside another's trouble: `python -m bench.fairness [--rounds 2] [CASE ...]`.

The processes of the Procfile with their default settings, and two tenants, each with a simulated Asterisk in a process
of its own. B's callers come at an even pace, alone, and while A's Asterisk is dead (its events come, no request is
answered), slow (each answer takes 3 s), or A's callers come 500 at once. Prints a table in Markdown; docs/bench.md has
a run of it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devstack import folders, processes, servers
from devstack.endpoint import PATH
from devstack.pipeline import SECRET_KEY, Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from shared.storage import migrations
from simulator.control import Control

CALLS = 80
PER_SECOND = 4.0
TALK_SECONDS = 3.0
BURST = 500
SLOW_SECONDS = 3.0
#: How long A's trouble is on before B's first call: long enough for whatever it holds up to be held up.
AHEAD_SECONDS = 3.0


class Site:
    """A tenant and its Asterisk."""

    def __init__(self, control: Control, tenant: Tenant, pipeline: Pipeline) -> None:
        self.control = control
        self.tenant = tenant
        self._pipeline = pipeline

    def dial(self) -> str:
        """A caller, who talks for a while."""
        leg = f"caller-{uuid.uuid4().hex}"
        return self.control.dial("voiceai", channel_id=leg, hang_up_after=TALK_SECONDS + 10)

    def served(self) -> Counter[str]:
        """How many calls the tenant had, and how many of them were answered."""
        rows = self._pipeline.query(
            "SELECT count(*) AS calls, count(connected_at) AS answered FROM ari.calls WHERE organization_id = %s",
            self.tenant.organization_id,
        )
        return Counter(rows[0])

    def settle(self) -> None:
        """Ends all trouble and all calls."""
        self.control.clear()
        for channel in self.control.channels():
            if channel["kind"] == "caller":
                with contextlib.suppress(Exception):
                    self.control.hang_up(channel["id"])
        wait_until(self._is_empty, seconds=120, every=0.2, what="the calls before are over")

    def _is_empty(self) -> bool:
        unfinished = self._pipeline.value(
            "SELECT count(*) FROM ari.calls WHERE organization_id = %s AND state <> 'ended'",
            self.tenant.organization_id,
        )
        return unfinished == 0 and not self.control.channels() and not self.control.bridges()


def pace(site: Site, stop: threading.Event) -> None:
    """Callers at an even pace until it is enough."""
    while not stop.wait(1 / PER_SECOND):
        site.dial()


def nothing(_a: Site, _stop: threading.Event) -> None:
    """A is idle."""


def dead(a: Site, stop: threading.Event) -> None:
    """A's requests are taken and never answered."""
    a.control.fault("*", "/*", "before", delay_seconds=3600)
    pace(a, stop)


def slow(a: Site, stop: threading.Event) -> None:
    """A's requests are answered late."""
    a.control.fault("*", "/*", "before", delay_seconds=SLOW_SECONDS)
    pace(a, stop)


def burst(a: Site, stop: threading.Event) -> None:
    """So many callers at once, in the middle of B's."""
    stop.wait(AHEAD_SECONDS + 1)
    for _ in range(BURST):
        a.dial()


CASES: dict[str, Callable[[Site, threading.Event], None]] = {
    "alone": nothing, "dead": dead, "slow": slow, "burst": burst,
}  # fmt: skip


def measure(b: Site, pipeline: Pipeline) -> list[float]:
    """Seconds from each caller of B to the answer; infinite where there was none."""
    dialed: dict[str, float] = {}
    began = time.monotonic()
    for number in range(CALLS):
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        at = time.time()
        dialed[b.dial()] = at
    wait_until(lambda: settled(pipeline, dialed) == CALLS, seconds=60, every=0.2, what="each call of B is decided")
    answered = {
        call["channel_id"]: call["connected_at"].timestamp()
        for call in pipeline.calls(*dialed)
        if call["connected_at"] is not None
    }
    return [answered.get(leg, float("inf")) - at for leg, at in dialed.items()]


def settled(pipeline: Pipeline, legs: dict[str, float]) -> int:
    """How many of these calls were connected, or are over."""
    return sum(call["connected_at"] is not None or call["state"] == "ended" for call in pipeline.calls(*legs))


@dataclass(kw_only=True)
class Seen:
    """What was seen in one case, over all rounds."""

    #: B's set-up times in s.
    times: list[float] = field(default_factory=list)
    #: A's calls, and those that were answered.
    of_a: Counter[str] = field(default_factory=Counter)


def run(case: str, a: Site, b: Site, pipeline: Pipeline, seen: Seen) -> None:
    """One case, once."""
    stop, before = threading.Event(), a.served()
    trouble = threading.Thread(target=functools.partial(CASES[case], a, stop))
    trouble.start()
    try:
        time.sleep(AHEAD_SECONDS)
        seen.times += measure(b, pipeline)
    finally:
        stop.set()
        trouble.join()
        b.settle()
        a.settle()
    seen.of_a += a.served() - before


@contextlib.contextmanager
def process(*words: str, **environment: str) -> Iterator[None]:
    """A program of the development stack, ended with the block."""
    started = subprocess.Popen(  # noqa: S603 - our own programs
        [sys.executable, "-m", *words],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        started.terminate()
        started.wait(10)


@contextlib.contextmanager
def site(pipeline: Pipeline, agent_url: str, name: str) -> Iterator[Site]:
    """A tenant with a simulated Asterisk in a process of its own, connected."""
    port = processes.free_port()
    simulated = process(
        "simulator", "--port", str(port), "--user", "voiceai", "--password", PASSWORD, "--media-url", agent_url,
        "--no-audio",
    )  # fmt: skip
    with simulated, closing_tenant(pipeline.database_url, name) as tenant:
        control = Control(f"http://127.0.0.1:{port}")
        wait_until(lambda: answers(control), seconds=20, what="the simulator")
        tenant.configure(f"http://127.0.0.1:{port}")
        wait_until(lambda: pipeline.connected(f"http://127.0.0.1:{port}"), seconds=20, what=pipeline.log_tail)
        yield Site(control, tenant, pipeline)


def answers(control: Control) -> bool:
    """Whether the simulator does."""
    with contextlib.suppress(Exception):
        return control.is_running
    return False


def quantile(values: Sequence[float], part: float) -> float:
    """In ms."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report(cases: dict[str, Seen]) -> None:
    """The table; each case against B alone."""
    say("| A | A's calls | answered | B's calls | answered | p50 ms | p95 ms | p50 against alone | p95 against alone |")
    say("|---|---|---|---|---|---|---|---|---|")
    for case, seen in cases.items():
        values, of_a = seen.times, f"{seen.of_a['calls']} | {seen.of_a['answered']}"
        p50, p95 = quantile(values, 0.5), quantile(values, 0.95)
        alone = cases.get("alone", seen).times
        ratios = p50 / quantile(alone, 0.5), p95 / quantile(alone, 0.95)
        answered = sum(value != float("inf") for value in values)
        of_b = f"{len(values)} | {answered} | {p50:.1f} | {p95:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f}"
        say(f"| {case} | {of_a} | {of_b} |")


def say(text: str) -> None:
    """A line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bench(folder: Path, rounds: int, cases: Sequence[str]) -> dict[str, Seen]:
    """Case → what was seen; the order turns from round to round."""
    seen = {case: Seen() for case in cases}
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(servers.Postgres(folder / "postgres"))
        redis = stack.enter_context(servers.Redis(folder / "redis"))
        database_url = servers.create_database(postgres.url, "fairness")
        migrations.upgrade(database_url)
        (folder / "logs").mkdir()
        pipeline = Pipeline(database_url=database_url, redis_url=redis.url, logs=folder / "logs", LOG_LEVEL="error")
        stack.enter_context(pipeline)
        port = processes.free_port()
        stack.enter_context(
            process("devstack.agent", "--port", str(port), DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY)
        )
        pipeline.start()
        agent_url = f"ws://127.0.0.1:{port}{PATH}"
        a = stack.enter_context(site(pipeline, agent_url, "a"))
        b = stack.enter_context(site(pipeline, agent_url, "b"))
        # The first calls of a process are no measure.
        run("alone", a, b, pipeline, Seen())
        for number in range(rounds):
            for case in (*cases[number % len(cases) :], *cases[: number % len(cases)]):
                run(case, a, b, pipeline, seen[case])
    return seen


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    options = parser.parse_args()
    cases = options.cases or list(CASES)
    if unknown := set(cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    with folders.temporary() as folder:
        report(bench(folder, options.rounds, cases))


if __name__ == "__main__":
    main()
