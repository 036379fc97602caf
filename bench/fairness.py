"""Set-up time of one tenant while another is in trouble: `python -m bench.fairness [--rounds 2] [CASE ...]`.

Runs the processes of the Procfile with their default settings, and two tenants, each with a simulated Asterisk in its
own process. B's callers come at an even rate: alone, and while A's Asterisk is dead (it sends events, but answers no
request) or slow (each answer takes 3 s), or while 500 callers of A come at once. Prints a Markdown table; docs/bench.md
has a result.
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
#: A's trouble starts this long before B's first call, so that its effect is there.
AHEAD_SECONDS = 3.0


class Environment:
    """A tenant and its Asterisk."""

    def __init__(self, control: Control, tenant: Tenant, pipeline: Pipeline) -> None:
        self.control = control
        self.tenant = tenant
        self._pipeline = pipeline

    def dial(self) -> str:
        """Start a call, which hangs up after a while."""
        leg = f"caller-{uuid.uuid4().hex}"
        return self.control.dial("voiceai", channel_id=leg, hang_up_after=TALK_SECONDS + 10)

    def served(self) -> Counter[str]:
        """Return the number of calls of the tenant, and of those that were answered."""
        rows = self._pipeline.query(
            "SELECT count(*) AS calls, count(connected_at) AS answered FROM ari.calls WHERE organization_id = %s",
            self.tenant.organization_id,
        )
        return Counter(rows[0])

    def reset(self) -> None:
        """End all faults and all calls."""
        self.control.clear()
        for channel in self.control.channels():
            if channel["kind"] == "caller":
                with contextlib.suppress(Exception):
                    self.control.hang_up(channel["id"])
        wait_until(self._is_empty, seconds=120, every=0.2, what="the earlier calls have ended")

    def _is_empty(self) -> bool:
        unfinished = self._pipeline.value(
            "SELECT count(*) FROM ari.calls WHERE organization_id = %s AND state <> 'ended'",
            self.tenant.organization_id,
        )
        return unfinished == 0 and not self.control.channels() and not self.control.bridges()


def pace(env: Environment, stop: threading.Event) -> None:
    """Make calls at an even rate until stopped."""
    while not stop.wait(1 / PER_SECOND):
        env.dial()


def nothing(_a: Environment, _stop: threading.Event) -> None:
    """Leave A idle."""


def dead(a: Environment, stop: threading.Event) -> None:
    """Accept the requests to A's Asterisk and never answer them."""
    a.control.fault("*", "/*", "before", delay_seconds=3600)
    pace(a, stop)


def slow(a: Environment, stop: threading.Event) -> None:
    """Answer the requests to A's Asterisk late."""
    a.control.fault("*", "/*", "before", delay_seconds=SLOW_SECONDS)
    pace(a, stop)


def burst(a: Environment, stop: threading.Event) -> None:
    """Make BURST calls at once, in the middle of B's calls."""
    stop.wait(AHEAD_SECONDS + 1)
    for _ in range(BURST):
        a.dial()


CASES: dict[str, Callable[[Environment, threading.Event], None]] = {
    "alone": nothing, "dead": dead, "slow": slow, "burst": burst,
}  # fmt: skip


def measure(b: Environment, pipeline: Pipeline) -> list[float]:
    """Return the seconds from each call of B to its answer; infinity without one."""
    dialed: dict[str, float] = {}
    began = time.monotonic()
    for number in range(CALLS):
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        at = time.time()
        dialed[b.dial()] = at
    wait_until(
        lambda: finished(pipeline, dialed) == CALLS,
        seconds=60,
        every=0.2,
        what="each call of B is connected or has ended",
    )
    answered = {
        call["channel_id"]: call["connected_at"].timestamp()
        for call in pipeline.calls(*dialed)
        if call["connected_at"] is not None
    }
    return [answered.get(leg, float("inf")) - at for leg, at in dialed.items()]


def finished(pipeline: Pipeline, legs: dict[str, float]) -> int:
    """Return how many of these calls were connected or have ended."""
    return sum(call["connected_at"] is not None or call["state"] == "ended" for call in pipeline.calls(*legs))


@dataclass(kw_only=True)
class Result:
    """The result of one case, over all rounds."""

    #: B's set-up times in s.
    times: list[float] = field(default_factory=list)
    #: A's calls, and those that were answered.
    of_a: Counter[str] = field(default_factory=Counter)


def run(case: str, a: Environment, b: Environment, pipeline: Pipeline, seen: Result) -> None:
    """Run one case once."""
    stop, before = threading.Event(), a.served()
    trouble = threading.Thread(target=functools.partial(CASES[case], a, stop))
    trouble.start()
    try:
        time.sleep(AHEAD_SECONDS)
        seen.times += measure(b, pipeline)
    finally:
        stop.set()
        trouble.join()
        b.reset()
        a.reset()
    seen.of_a += a.served() - before


@contextlib.contextmanager
def process(*words: str, **environment: str) -> Iterator[None]:
    """Run a program of the development stack until the end of the block."""
    started = subprocess.Popen(  # noqa: S603 - programs of this project
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
def connected_tenant(pipeline: Pipeline, agent_url: str, name: str) -> Iterator[Environment]:
    """Start a simulated Asterisk in its own process, and connect a tenant with it."""
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
        yield Environment(control, tenant, pipeline)


def answers(control: Control) -> bool:
    """Return True if the simulator answers."""
    with contextlib.suppress(Exception):
        return control.is_running
    return False


def quantile(values: Sequence[float], part: float) -> float:
    """Return a quantile of seconds, in ms."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report(cases: dict[str, Result]) -> None:
    """Print the table; each case is compared with B alone."""
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
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bench(folder: Path, rounds: int, cases: Sequence[str]) -> dict[str, Result]:
    """Return case → result; the order of the cases rotates from round to round."""
    seen = {case: Result() for case in cases}
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
        a = stack.enter_context(connected_tenant(pipeline, agent_url, "a"))
        b = stack.enter_context(connected_tenant(pipeline, agent_url, "b"))
        # The first calls of a process are not measured: they warm it up.
        run("alone", a, b, pipeline, Result())
        for number in range(rounds):
            for case in (*cases[number % len(cases) :], *cases[: number % len(cases)]):
                run(case, a, b, pipeline, seen[case])
    return seen


def main() -> None:
    """Run the benchmark."""
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
