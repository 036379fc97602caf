"""Compare our broker with Dramatiq's own: `python -m bench.broker [--rounds 3] [PART ...]`.

Both run on the same embedded Redis, one after the other in each round, in alternating order. Parts: dispatch, chain,
idle, throughput, flood, recovery, outages; `--lengths 1,5` limits the outages to these lengths. Prints tables in
Markdown; docs/bench.md shows a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dramatiq.errors
import psutil
import redis

from bench import broker_worker
from bench.broker_worker import message
from devstack import folders, servers, tcp_proxy
from listener import buffer, redis_store
from shared.broker.bounds import Bounds
from shared.call.ids import ConnectionVersion

KINDS = ("stock", "ours")
#: The idle gap before a message, in seconds; as many short ones as long ones.
GAPS_SECONDS = (0.05, 3.0)
DISPATCHED = 60
CHAINS = 30
LINKS = 5
IDLE_SECONDS = 15
THROUGHPUT = {1: 1500, 8: 6000, 16: 6000}
FLOOD = 60_000
RECOVERIES = 10
OUTAGES_SECONDS = (1, 5, 30)


def say(text: str = "") -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def row(*cells: object) -> None:
    """Print a row of a table."""
    say("| " + " | ".join(str(cell) for cell in cells) + " |")


def table(*headings: str) -> None:
    """Print the head of a table."""
    row(*headings)
    row(*("---" for _ in headings))


def quantiles(values: Sequence[float]) -> tuple[str, ...]:
    """Return p50, p95, p99 and the maximum, in ms."""
    ordered = sorted(values)
    picked = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95, 0.99)]
    return tuple(f"{value * 1000:.1f}" for value in (*picked, ordered[-1]))


class Bench:
    """A Redis, and workers on it."""

    def __init__(self, server: servers.Redis, folder: Path, lengths: Sequence[int]) -> None:
        self.server = server
        self.lengths = lengths
        self._folder = folder
        self._notes = folder / "notes"
        self._pid = 0

    def fresh(self) -> None:
        """Empty Redis and start a new file of notes."""
        with contextlib.closing(redis.Redis.from_url(self.server.url)) as client:
            client.flushall()
        self._notes = self._folder / f"notes-{uuid.uuid4().hex[:8]}"

    def stall(self) -> None:
        """Suspend Redis; its connections stay open."""
        with contextlib.closing(redis.Redis.from_url(self.server.url)) as client:
            self._pid = int(client.info("server")["process_id"])
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume Redis."""
        os.kill(self._pid, signal.SIGCONT)

    @contextlib.contextmanager
    def worker(
        self, kind: str, *, threads: int = 8, name: str = "w", url: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker; the block begins when it has started."""
        command = [sys.executable, "-m", "bench.broker_worker", kind, name, str(threads), str(self._notes)]
        environment = {**os.environ, "REDIS_URL": url or self.server.url}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 - our own command
        try:
            wait(lambda: name in self.noted("started"), 20, "worker has not started")
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def noted(self, event: str) -> dict[str, float]:
        """Return the messages of this event, each with the time of its last note."""
        return {what: at for happened, what, _, at in broker_worker.read(self._notes) if happened == event}

    def times(self, event: str) -> Counter[str]:
        """Return the messages of this event, each with its number of notes."""
        return Counter(what for happened, what, _, _ in broker_worker.read(self._notes) if happened == event)


def wait(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until it holds; exit with the text after so many seconds."""
    ends_at = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends_at:
            raise SystemExit(f"{what} after {seconds} s")
        time.sleep(0.02)


def alternating(rounds: int) -> Iterator[str]:
    """Yield stock and ours, in alternating order."""
    for number in range(rounds):
        yield from KINDS if number % 2 == 0 else reversed(KINDS)


# ── speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def dispatch(bench: Bench, rounds: int) -> None:
    """Measure how long an idle worker takes to begin."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    low, high = GAPS_SECONDS
    for kind in alternating(rounds):
        bench.fresh()
        made, sent = broker_worker.broker(kind, bench.server.url), {}
        with bench.worker(kind):
            for number in range(DISPATCHED):
                time.sleep(low * (high / low) ** random.random())  # noqa: S311 - no secret
                sent[str(number)] = time.monotonic()
                made.enqueue(message("quick", str(number)))
            wait(lambda: len(bench.noted("began")) == DISPATCHED, 10, "not all ran")
        took[kind] += [at - sent[what] for what, at in bench.noted("began").items()]
        made.close()
    number = rounds * DISPATCHED
    say(f"\n### Dispatch when idle: enqueue → actor begins, ms ({number} messages each, gaps 50 to 3,000 ms)\n")
    table("broker", "p50", "p95", "p99", "worst")
    for kind in KINDS:
        row(kind, *quantiles(took[kind]))


def chain(bench: Bench, rounds: int) -> None:
    """Measure a chain of five messages, each enqueued by the one before."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    for kind in alternating(rounds):
        bench.fresh()
        made, sent = broker_worker.broker(kind, bench.server.url), {}
        with bench.worker(kind):
            for number in range(CHAINS):
                time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - no secret
                sent[str(number)] = time.monotonic()
                made.enqueue(message("chain", str(number), LINKS - 1))
                wait(lambda n=number: str(n) in bench.noted("link-0"), 20, "a chain has not ended")  # type: ignore[misc]
        took[kind] += [at - sent[what] for what, at in bench.noted("link-0").items()]
        made.close()
    say(f"\n### Chain of {LINKS}: first enqueue → last actor begins, ms ({rounds * CHAINS} each)\n")
    table("broker", "p50", "p95", "p99", "worst")
    for kind in KINDS:
        row(kind, *quantiles(took[kind]))


def idle(bench: Bench, rounds: int) -> None:
    """Measure the CPU time of an idle worker."""
    used: defaultdict[str, list[float]] = defaultdict(list)
    for kind in alternating(rounds):
        bench.fresh()
        with bench.worker(kind) as process:
            time.sleep(2)
            began = psutil.Process(process.pid).cpu_times()
            time.sleep(IDLE_SECONDS)
            ended = psutil.Process(process.pid).cpu_times()
        seconds = ended.user + ended.system - began.user - began.system
        used[kind].append(100 * seconds / IDLE_SECONDS)
    say("\n### Idle worker with 8 threads: CPU, % of a core, each round\n")
    table("broker", "rounds")
    for kind in KINDS:
        row(kind, ", ".join(f"{value:.2f}" for value in used[kind]))


def throughput(bench: Bench, rounds: int) -> None:
    """Measure how fast one process runs empty messages that are all enqueued before."""
    rates: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for kind in alternating(rounds):
        for threads, number in THROUGHPUT.items():
            bench.fresh()
            made = broker_worker.broker(kind, bench.server.url)
            for each in range(number):
                made.enqueue(message("quick", str(each)))
            with bench.worker(kind, threads=threads):
                wait(lambda n=number: len(bench.noted("began")) == n, 60, "not all ran")  # type: ignore[misc]
            at = sorted(bench.noted("began").values())
            rates[kind, threads].append((number - 1) / (at[-1] - at[0]))
            made.close()
    say("\n### Throughput of one process, empty actors, messages/s, each round\n")
    table("broker", *(f"{threads} threads" for threads in THROUGHPUT))
    for kind in KINDS:
        row(kind, *(", ".join(f"{rate:,.0f}" for rate in rates[kind, threads]) for threads in THROUGHPUT))


def flood(bench: Bench, rounds: int) -> None:
    """Measure how fast a listener's store pushes encoded messages, in batches of 500, in one event loop."""
    bodies = [message("quick", "x" * 500, group=str(number % 50)) for number in range(FLOOD)]

    async def push() -> float:
        store = redis_store.RedisStore(
            redis_store.client(bench.server.url), "bench", capacity=1, timeout_seconds=2.0, bounds=Bounds()
        )
        began = time.monotonic()
        for at in range(0, FLOOD, 500):
            await store.push([buffer.encode_message(ConnectionVersion(1, 1), each) for each in bodies[at : at + 500]])
        took = time.monotonic() - began
        await store.close()
        return took

    say("\n### Enqueue by a listener: messages/s of 600 bytes, in batches of 500, each round\n")
    rates = []
    for _ in range(rounds):
        bench.fresh()
        rates.append(FLOOD / asyncio.run(push()))
    say(", ".join(f"{rate:,.0f}" for rate in rates))


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def recovery(bench: Bench, rounds: int) -> None:
    """Measure from kill -9 of a worker until another begins its message. Ours alone: stock takes minutes."""
    took = []
    for number in range(RECOVERIES):
        bench.fresh()
        made = broker_worker.broker("ours", bench.server.url)
        with bench.worker("ours", name="victim") as victim:
            made.enqueue(message("work", "it", 60, "victim", False, False))
            wait(lambda: bench.times("began")["it"] == 1, 5, "not begun")
            with bench.worker("ours", name="survivor"):
                # Somewhere within a heartbeat.
                time.sleep(1 + number / RECOVERIES)
                victim.kill()
                killed = time.monotonic()
                wait(lambda: bench.times("began")["it"] == 2, 30, "not redelivered")
                took.append(bench.noted("began")["it"] - killed)
        made.close()
    say(f"\n### Worker killed with -9: time until its message runs elsewhere, s ({RECOVERIES} runs)\n")
    say(", ".join(f"{seconds:.2f}" for seconds in took))
    ordered = sorted(took)
    say(f"\np50 {statistics.median(took):.2f}, p95 {ordered[int(0.95 * len(ordered))]:.2f}, worst {ordered[-1]:.2f}")


#: The messages on their way during a fault, by kind → seconds of work, whether it fails once, whether it enqueues
#: another message, delay in ms.
LOADS: dict[str, tuple[float, bool, bool, int | None]] = {
    "quick": (0.0, False, False, None),
    "running": (0.6, False, False, None),
    "retried": (0.2, True, False, None),
    "delayed": (0.0, False, False, 800),
    "enqueues the next": (0.2, False, True, None),
}


def outages(bench: Bench, rounds: int) -> None:
    """Count the messages lost and repeated by each fault: 40 a second of all kinds, before, during and after it."""
    say("\n### Outages\n")
    say("Sent: enqueued in Redis. Refused: the producer got an error after 2 s. Two workers with 8 threads each.\n")
    table("fault", "broker", "sent", "refused", "run", "run twice", "lost with Redis", "lost")
    for seconds in bench.lengths:
        for name, case in CASES.items():
            for kind in ("ours", "stock") if (name, seconds) in STOCK else ("ours",):
                _outage(bench, kind, f"{name}, {seconds} s", seconds, case)


def _outage(bench: Bench, kind: str, title: str, seconds: float, case: Case) -> None:
    bench.fresh()
    loads = list(LOADS.items())
    sent: dict[str, float] = {}
    refused = 0
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(tcp_proxy.TcpProxy(bench.server.url))
        workers = [stack.enter_context(bench.worker(kind, name=name, url=proxy.url)) for name in ("a", "b")]
        made = broker_worker.broker(kind, proxy.url)
        stack.callback(made.close)
        time.sleep(1)
        ends_at = time.monotonic() + 2 + seconds
        timers = [
            threading.Timer(2, case, (bench, proxy, workers, True)),
            threading.Timer(2 + seconds, case, (bench, proxy, workers, False)),
        ]
        for timer in timers:
            timer.start()
        number = 0
        while (now := time.monotonic()) < ends_at + 2:
            name, (work_seconds, fails, enqueues, delay_ms) = loads[number % len(loads)]
            what = f"{name}-{number}"
            number += 1
            try:
                made.enqueue(
                    message("work", what, work_seconds, "", fails, enqueues, group=str(number % 5)), delay=delay_ms
                )
                sent[what] = time.monotonic()
            except (redis.RedisError, dramatiq.errors.DramatiqError):
                refused += 1
            time.sleep(max(0.0, now + 0.025 - time.monotonic()))
        for timer in timers:
            timer.join()
        _wait_for_end(bench, sent)
        ended = bench.times("ended")
    begun = bench.noted("began")
    missing = [what for what in sent if not ended[what]]
    # Waiting, delayed or to be retried when Redis was killed: the message was in Redis and nowhere else.
    killed_at = ends_at - seconds
    with_redis = [
        what
        for what in missing
        if case in LOSES_REDIS
        and (sent[what] < ends_at if what not in begun else begun[what] + LOADS[what.split("-")[0]][0] < killed_at)
    ]
    twice = sum(1 for what in sent if ended[what] > 1)
    run = sum(1 for what in sent if ended[what])
    # A message that another one enqueued: the other has ended, so Redis had accepted it.
    nexts = [what for what in sent if what.startswith("enqueues") and ended[what] and not ended[f"{what}-next"]]
    lost = len(missing) - len(with_redis) + (0 if case in LOSES_REDIS else len(nexts))
    row(title, kind, len(sent), refused, run, twice, len(with_redis), lost)
    for what in set(missing) - set(with_redis):
        sys.stderr.write(f"lost: {what}, begun {begun.get(what, 0) - killed_at:+.3f} s\n")


def _wait_for_end(bench: Bench, sent: dict[str, float]) -> None:
    """Wait until all have ended, or none has for a while."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 12:
        number = sum(bench.times("ended").values())
        if number != last:
            last, since = number, time.monotonic()
        if all(bench.times("ended")[what] for what in sent):
            return
        time.sleep(0.3)


Case = Callable[[Bench, tcp_proxy.TcpProxy, list[Any], bool], None]


def _cut(bench: Bench, proxy: tcp_proxy.TcpProxy, workers: list[Any], begins: bool) -> None:
    if begins:
        proxy.cut()
    else:
        proxy.mend()


def _stalled_redis(bench: Bench, proxy: tcp_proxy.TcpProxy, workers: list[Any], begins: bool) -> None:
    if begins:
        bench.stall()
    else:
        bench.resume()


def _emptied(bench: Bench, proxy: tcp_proxy.TcpProxy, workers: list[Any], begins: bool) -> None:
    if begins:
        bench.server.kill()
    else:
        bench.server.start()


def _killed_worker(bench: Bench, proxy: tcp_proxy.TcpProxy, workers: list[Any], begins: bool) -> None:
    if begins:
        workers[0].kill()


def _stalled_worker(bench: Bench, proxy: tcp_proxy.TcpProxy, workers: list[Any], begins: bool) -> None:
    workers[0].send_signal(signal.SIGSTOP if begins else signal.SIGCONT)


CASES: dict[str, Case] = {
    "Redis cut off": _cut,
    "Redis stalled": _stalled_redis,
    "Redis restarted empty": _emptied,
    "worker killed": _killed_worker,
    "worker stalled": _stalled_worker,
}
LOSES_REDIS = (_emptied,)
#: The cases the stock broker runs as well.
STOCK = {("Redis cut off", 5), ("Redis restarted empty", 5)}

PARTS: dict[str, Callable[[Bench, int], None]] = {
    "dispatch": dispatch,
    "chain": chain,
    "idle": idle,
    "throughput": throughput,
    "flood": flood,
    "recovery": recovery,
    "outages": outages,
}


def main() -> None:
    """Run the parts and print the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.broker", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--lengths", default=",".join(map(str, OUTAGES_SECONDS)), help="lengths of the outages, in seconds"
    )
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    with folders.temporary() as folder, servers.Redis(folder / "redis") as server:
        bench = Bench(server, folder, lengths)
        for part in options.parts or PARTS:
            PARTS[part](bench, options.rounds)


if __name__ == "__main__":
    main()
