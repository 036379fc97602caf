"""Fail-over, hand-over and scale of the listeners: `python -m bench.failover [--rounds 10] [PART ...]`.

Runs the processes of the Procfile with the times of production, on one simulated Asterisk with an app per tenant.
Parts: killed, together, moves, flushed, outage, thousand. Prints Markdown tables; docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from devstack import folders, servers
from devstack.fleet import Fleet, overlaps, running_fleet
from shared import queues
from shared.storage import migrations

CONNECTIONS = 60
RATE = 20.0
OUTAGE_SECONDS = 60
THOUSAND = 1000
IDLE_SECONDS = 30


@contextlib.contextmanager
def fleet_of(
    folder: Path, connections: int, *processes: str, **environment: str
) -> Iterator[tuple[Fleet, servers.Postgres]]:
    """Start a fleet of `connections` tenants with its own Postgres and Redis."""
    own = folder / uuid.uuid4().hex[:8]
    own.mkdir(mode=0o711)
    with servers.Postgres(own / "postgres") as postgres:
        migrations.upgrade(postgres.url)
        with running_fleet(
            folder=own,
            logs=own / "logs",
            database_url=postgres.url,
            connections=connections,
            processes=processes,
            **environment,
        ) as fleet:
            yield fleet, postgres


def say(*cells: object) -> None:
    """Print a row of a table."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def heading(*cells: str) -> None:
    """Print the heading of a table."""
    sys.stdout.write("\n")
    say(*cells)
    say(*("---" for _ in cells))


def poll(condition: Callable[[], object], *, seconds: float, every: float = 0.02) -> float:
    """Wait until a condition holds; return how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(every)
    return time.monotonic() - began


def gaps_after(fleet: Fleet, moment: float) -> list[float]:
    """Return for each app whose socket was lost at a moment the time until the next one was open."""
    gaps = []
    for lifetimes in fleet.lifetimes(since=moment - 0.5).values():
        later = [lifetime.opened_at - moment for lifetime in lifetimes if lifetime.opened_at > moment]
        if later:
            gaps.append(later[0])
    return gaps


def killed(folder: Path, rounds: int) -> None:
    """Kill a listener during calls, repeatedly."""
    heading("round", "sockets lost", "until the first is open again, s", "until the last is, s", "callers", "lost")
    with fleet_of(folder, CONNECTIONS, "listener.1", "listener.2", "worker", "scheduler") as (fleet, _):
        lasts: list[float] = []
        for number in range(1, rounds + 1):
            fleet.wait_settled("listener.1", "listener.2", seconds=30)
            with fleet.callers(rate=RATE, talk_seconds=10) as callers:
                poll(lambda: len(callers) >= 20 + number * 3, seconds=10)  # noqa: B023 - used at once
                moment = time.monotonic()
                fleet.pipeline.kill("listener.2")
                poll(fleet.is_heard, seconds=10)
                poll(lambda: len(callers) >= 150, seconds=20)
            gaps = gaps_after(fleet, moment)
            lasts.append(max(gaps))
            fleet.wait_states(callers, "ended", seconds=40)
            lost = fleet.lost(callers)
            say(number, len(gaps), f"{min(gaps):.2f}", f"{max(gaps):.2f}", len(callers), len(lost))
            sys.stderr.write("".join(f"{story}\n" for story in lost))
            fleet.pipeline.start("listener.2")
        say("median", "", "", f"{statistics.median(lasts):.2f}", "", "")
        say("worst", "", "", f"{max(lasts):.2f}", "", "")


def together(folder: Path, rounds: int) -> None:
    """Kill the leading scheduler and a listener at the same moment."""
    heading("round", "until every socket is open again, s")
    with fleet_of(folder, CONNECTIONS, "listener.1", "listener.2", "worker", "scheduler.1", "scheduler.2") as (
        fleet,
        _,
    ):
        for number in range(1, rounds + 1):
            fleet.wait_settled("listener.1", "listener.2", seconds=30)
            leader = fleet.pipeline.value("SELECT split_part(holder, '/', 1) FROM ari.leases WHERE name = 'scheduler'")
            fleet.pipeline.kill(leader)
            fleet.pipeline.kill("listener.2")
            say(number, f"{poll(fleet.is_heard, seconds=15):.2f}")
            fleet.pipeline.start(leader)
            fleet.pipeline.start("listener.2")


def moves(folder: Path, rounds: int) -> None:
    """Start a third listener and stop the first, during calls on the plain dialplan."""
    heading("round", "what", "share", "moved", "took, s", "overlaps, ms (median, worst)", "gaps", "callers", "lost")
    with fleet_of(folder, CONNECTIONS, "listener.1", "listener.2", "worker", "scheduler") as (fleet, _):
        connected = fleet.connect_all()
        old, new = ["listener.1", "listener.2"], 3
        for number in range(1, rounds + 1):
            joining = f"listener.{new}"
            for what, after in (("joins", [*old, joining]), ("stops", [*old[1:], joining])):
                before = fleet.assignments()
                moment = time.monotonic()
                with fleet.callers(rate=RATE, talk_seconds=3, dialplan="plain") as callers:
                    if what == "joins":
                        fleet.pipeline.start(joining)
                    else:
                        fleet.pipeline.stop(old[0])
                    poll(lambda: fleet.is_settled(*after), seconds=30)  # noqa: B023 - used at once
                    took = time.monotonic() - moment
                    poll(lambda: len(callers) >= 100, seconds=20)
                fleet.wait_states(callers, "ended", seconds=30)
                now = fleet.assignments()
                both = [each for lifetimes in fleet.lifetimes(since=moment).values() for each in overlaps(lifetimes)]
                say(
                    number,
                    what,
                    CONNECTIONS // 3,
                    sum(now[app] != before[app] for app in fleet.apps),
                    f"{took:.1f}",
                    f"{statistics.median(both) * 1000:.0f}, {max(both) * 1000:.0f}",
                    sum(each < 0 for each in both),
                    len(callers),
                    len(fleet.lost(callers)),
                )
            old, new = [old[1], joining], new + 1
        still = sum(call["state"] == "connected" for call in fleet.pipeline.calls(*connected))
        sys.stdout.write(f"\nOf {len(connected)} calls connected before, {still} still are.\n")
        fleet.end(connected)


def flushed(folder: Path, rounds: int) -> None:
    """Run FLUSHALL in the middle of 200 calls."""
    heading("round", "callers", "connected", "lost", "runs", "sockets reopened")
    with fleet_of(folder, CONNECTIONS, "listener.1", "listener.2", "worker", "scheduler") as (fleet, _):
        for number in range(1, rounds + 1):
            moment = time.monotonic()
            runs = fleet.pipeline.value("SELECT count(*) FROM workflow_runs")
            with fleet.callers(rate=RATE, talk_seconds=12) as callers:
                poll(lambda: len(callers) >= 100, seconds=20)
                with contextlib.closing(queues.client(fleet.redis.url)) as client:
                    client.flushall()
                poll(lambda: len(callers) >= 200, seconds=20)
            fleet.wait_states(callers, "ended", seconds=60)
            lost = len(fleet.lost(callers))
            opened = sum(len(lifetimes) - 1 for lifetimes in fleet.lifetimes(since=moment).values())
            runs = fleet.pipeline.value("SELECT count(*) FROM workflow_runs") - runs
            say(number, len(callers), len(callers) - lost, lost, runs, opened)


def outage(folder: Path, rounds: int) -> None:
    """Stop Postgres for a minute."""
    heading("round", "connected calls that stayed up", "callers that waited throughout", "of those hung up",
            "interrupted set-ups", "until none of them is overdue, s")  # fmt: skip
    with fleet_of(folder, CONNECTIONS, "listener.1", "listener.2", "worker", "scheduler") as (fleet, postgres):
        for number in range(1, rounds + 1):
            connected = fleet.connect_all()
            with fleet.control.hold("POST", "/channels/externalMedia", "after") as point:
                interrupted = [fleet.dial(app) for app in fleet.apps[:5]]
                point.wait_arrived(count=5)
                postgres.kill()
            waiting = [fleet.dial(app) for app in fleet.apps[5:15]]
            time.sleep(OUTAGE_SECONDS)
            postgres.start()
            fleet.pipeline.reconnect()
            query = "SELECT count(*) FROM ari.calls WHERE channel_id = ANY(%s) AND state NOT IN ('connected', 'ended')"
            known = "SELECT count(*) FROM ari.calls WHERE channel_id = ANY(%s)"
            legs = [*interrupted, *waiting]
            took = poll(
                lambda: not fleet.pipeline.value(query, legs) and fleet.pipeline.value(known, legs) == len(legs),  # noqa: B023 - used at once
                seconds=60,
            )
            still = sum(call["state"] == "connected" for call in fleet.pipeline.calls(*connected))
            gone = sum(call["state"] == "ended" for call in fleet.pipeline.calls(*waiting))
            up = sum(call["state"] == "connected" for call in fleet.pipeline.calls(*interrupted))
            say(number, f"{still} of {len(connected)}", len(waiting), gone,
                f"{len(interrupted)}, {up} connected later", f"{took:.1f}")  # fmt: skip
            fleet.end([leg for leg in [*connected, *legs] if fleet.pipeline.state(leg) == "connected"])


def thousand(folder: Path, rounds: int) -> None:
    """Measure a thousand connections on one listener: memory, CPU when idle, and reopening all sockets."""
    heading("round", "memory of the listener, MB", "per connection, kB", "CPU when idle: listener",
            "scheduler", "worker", "after a restart: first open, s", "half", "last")  # fmt: skip
    with fleet_of(folder, 1, "listener", "worker", "scheduler") as (fleet, _):
        bare = psutil.Process(fleet.pipeline.pid("listener")).memory_info().rss
    with fleet_of(folder, THOUSAND, "listener", "worker", "scheduler", RESYNC_SECONDS="15") as (fleet, _):
        processes = {name: psutil.Process(fleet.pipeline.pid(name)) for name in ("listener", "scheduler", "worker")}
        for number in range(1, rounds + 1):
            fleet.wait_settled("listener", seconds=120)
            before = {name: _cpu_seconds(process) for name, process in processes.items()}
            time.sleep(IDLE_SECONDS)
            rest = {
                name: f"{(_cpu_seconds(process) - before[name]) / IDLE_SECONDS:.1%}"
                for name, process in processes.items()
            }
            memory = processes["listener"].memory_info().rss
            fleet.control.restart(down_seconds=3)
            back = time.monotonic() + 3
            poll(fleet.is_heard, seconds=120, every=0.5)
            opened = sorted(
                max(0.0, lifetimes[-1].opened_at - back) for lifetimes in fleet.lifetimes(since=back).values()
            )
            say(number, f"{memory / 1e6:.0f}", f"{(memory - bare) / (THOUSAND - 1) / 1e3:.1f}", rest["listener"],
                rest["scheduler"], rest["worker"], f"{opened[0]:.1f}", f"{opened[len(opened) // 2]:.1f}",
                f"{opened[-1]:.1f}")  # fmt: skip


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


PARTS: dict[str, Callable[[Path, int], None]] = {
    "killed": killed,
    "together": together,
    "moves": moves,
    "flushed": flushed,
    "outage": outage,
    "thousand": thousand,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with folders.temporary() as folder:
        for part in options.parts or PARTS:
            PARTS[part](folder, options.rounds)


if __name__ == "__main__":
    main()
