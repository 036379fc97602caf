"""What metrics cost: `python -m bench.metrics [--calls 200] [--rate 20]`.

Runs the processes of the Procfile on the simulator, makes calls, and reads from each process what a call adds to its
metrics. Then the same is added here, thousands of times, by the product's own code: so much processor time a call. Two
runs with and without metrics (`bench.setup pipeline-unmeasured pipeline-scraped`) tell less: on a shared machine they
differ by more than that.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import requests
from prometheus_client import exposition, parser

from bench import setup
from bench.setup import Testbed
from devstack import folders, processes
from devstack.pipeline import Pipeline
from shared import messages
from shared.asterisk import ari_requests
from shared.call.ids import ConnectionVersion
from shared.process import metric_kinds, metrics
from shared.process.metric_kinds import Process

PROCESSES = (Process.LISTENER, Process.WORKER, Process.SCHEDULER)
#: So often what a call adds is added again.
TIMES = 2_000
SCRAPES = 20
#: Metric, the values of its labels → how often something was added, and the sum that was added.
Added = Mapping[tuple[str, tuple[str, ...]], tuple[float, float]]
KEPT = {each.name: each for each in metrics.ALL if isinstance(each, metric_kinds.Counter | metric_kinds.Histogram)}


def added(port: int) -> Added:
    """Return what a process has added to its metrics so far."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    numbers: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_count").removesuffix("_sum")
            if name in KEPT and not sample.name.endswith("_bucket"):
                key = name, tuple(sample.labels[label] for label in KEPT[name].labels)
                (sums if sample.name.endswith("_sum") else numbers)[key] += sample.value
    return {key: (number, sums[key]) for key, number in numbers.items()}


def cpu_seconds(port: int) -> float:
    """Return the processor time that a process has used."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    (found,) = (line for line in text.splitlines() if line.startswith(metrics.PROCESS_CPU.name))
    return float(found.rpartition(" ")[2])


def again(before: Added, after: Added, calls: int) -> Iterator[tuple[float, Callable[[], object]]]:
    """Yield what a call adds: how often, and what adds it again."""
    for (name, values), (number, total) in after.items():
        number_before, total_before = before.get((name, values), (0.0, 0.0))
        if number == number_before:
            continue
        metric, times = KEPT[name], (number - number_before) / calls
        if isinstance(metric, metric_kinds.Counter):
            yield times, partial(metric.add, *values)
        elif isinstance(metric, metric_kinds.Histogram):
            mean = (total - total_before) / (number - number_before)
            yield times, partial(metric.observe, mean, *values)
        if metric is metrics.ARI_REQUEST:
            yield times, partial(getattr, ari_requests.answer("1700000000.1"), "route")
        if metric is metrics.QUEUE_WAIT:
            # Each message was told when it is due.
            message = messages.of_resync(connection=ConnectionVersion(1, 1), reason="", full=True)
            yield times, partial(message.copy, message_timestamp=1)


def microseconds(parts: Iterable[tuple[float, Callable[[], object]]]) -> float:
    """Return the processor time of these parts, each done so often, in µs."""
    whole = 0.0
    for times, part in parts:
        count = max(1, round(times * TIMES))
        began = time.thread_time()
        for _ in range(count):
            part()
        whole += (time.thread_time() - began) / count * times
    return whole * 1e6


def scrape_ms(process: Process) -> float:
    """Return the processor time of making the page of a process, with what was added here, in ms."""
    encode, _ = exposition.choose_encoder("")
    exported = metric_kinds.Exported(metrics.ALL, process)
    began = time.thread_time()
    for _ in range(SCRAPES):
        encode(exported)
    return (time.thread_time() - began) / SCRAPES * 1000


async def measure(testbed: Testbed, ports: Mapping[Process, int], *, rate: float, calls: int) -> None:
    """Make calls, and print what they cost."""
    async with setup.observing(testbed) as (ari, _):
        await setup.callers(ari, rate=setup.WARM_UP_RATE, count=setup.WARM_UP_CALLS)
        before = {process: (added(port), cpu_seconds(port)) for process, port in ports.items()}
        await setup.callers(ari, rate=rate, count=calls)
    setup.head("process", "CPU ms per call", "additions per call", "their µs", "% of its CPU", "a scrape, ms")
    for process, port in ports.items():
        added_before, cpu_before = before[process]
        # Asked first: the pages are no part of the calls.
        cpu_ms = (cpu_seconds(port) - cpu_before) / calls * 1000
        parts = list(again(added_before, added(port), calls))
        cost = microseconds(parts)
        setup.row(process, f"{cpu_ms:.1f}", f"{sum(times for times, _ in parts):.0f}", f"{cost:.0f}",
                  f"{cost / cpu_ms / 10:.1f}", f"{scrape_ms(process):.1f}")  # fmt: skip


def run(folder: Path, *, rate: float, calls: int) -> None:
    """Start everything, and measure."""
    ports = {process: processes.free_port() for process in PROCESSES}
    with setup.running_testbed(folder, simulated=True) as testbed, testbed.database() as url:
        logs = testbed.folder / "logs" / uuid.uuid4().hex[:8]
        logs.mkdir()
        with Pipeline(database_url=url, redis_url=testbed.redis_url, logs=logs) as running:
            for process, port in ports.items():
                running.start(process, METRICS_PORT=str(port))
            running.wait_connected(seconds=30)
            asyncio.run(measure(testbed, ports, rate=rate, calls=calls))


def main() -> None:
    """Run the benchmark."""
    parsed = argparse.ArgumentParser(prog="python -m bench.metrics", description=__doc__)
    parsed.add_argument("--rate", type=float, default=20.0, metavar="CALLS/S")
    parsed.add_argument("--calls", type=int, default=200)
    options = parsed.parse_args()
    with folders.temporary() as folder:
        run(folder, rate=options.rate, calls=options.calls)


if __name__ == "__main__":
    main()
