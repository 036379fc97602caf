"""How many calls a second a worker sustains: `python -m bench.sustained [--workers 1,2,4]`.

On the testbed of `bench/setup.py`, with its callers. The rate rises step by step until p99 of the set-up time exceeds
500 ms or a caller is not served: the step before it is what is sustained. With two and four worker processes as well.
Callers, observer, agent and Asterisk share the machine: the last column says how full its cores were, so whether the
workers or the machine gave first.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import psutil

from bench import bridgings, setup
from bench.setup import Cell, Testbed
from devstack import debian, folders

RATES = (20.0, 40.0, 50.0, 60.0, 70.0, 80.0, 100.0, 120.0, 150.0)
SECONDS = 8.0
#: Most calls of one step.
CALLS = 1000
LIMIT_MS = 500.0
SHOWN = ("worker", "listener", "Postgres", "Redis", "Asterisk")


async def steps(testbed: Testbed, rates: Sequence[float], workers: int) -> float:
    """Raise the rate until it is not sustained, and print each step. Returns the last rate that was."""
    sustained = 0.0
    async with setup.observing(testbed) as (ari, seen):
        await setup.callers(ari, rate=setup.WARM_UP_RATE, count=setup.WARM_UP_CALLS)
        for rate in rates:
            cell = Cell()
            count = min(CALLS, round(rate * SECONDS))
            await setup.measure_rate(testbed.usage, ari, seen, cell, rate=rate, count=count)
            show(cell, rate, workers)
            if cell.lost or cell.left or _quantile(cell, 0.99) > LIMIT_MS:
                break
            sustained = rate
    return sustained


def show(cell: Cell, rate: float, workers: int) -> None:
    """Print a step."""
    quantiles = [f"{_quantile(cell, part):.0f}" for part in (0.5, 0.95, 0.99)]
    used = [f"{1000 * cell.used[name] / cell.calls:.1f}" for name in SHOWN]
    busy = f"{bridgings.mean(cell.busy_cores):.1f} of {psutil.cpu_count()}"
    setup.row(workers, f"{rate:g}", cell.calls, cell.lost, *quantiles, *used, busy)


def _quantile(cell: Cell, part: float) -> float:
    return bridgings.quantile([set_up.whole for set_up in cell.set_ups], part)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.sustained", description=__doc__)
    parser.add_argument("--workers", default="1,2,4", metavar="PROCESSES,...")
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES), metavar="CALLS/S,...")
    parser.add_argument("--simulated", action="store_true", help="run on the simulator instead of a real Asterisk")
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    sustained: dict[int, float] = {}
    each = [f"{name}, CPU ms per call" for name in SHOWN]
    setup.head("workers", "calls/s", "calls", "lost", "p50 ms", "p95 ms", "p99 ms", *each, "cores busy")
    with folders.temporary() as folder:
        try:
            with setup.running_testbed(folder, simulated=options.simulated) as testbed:
                for workers in map(int, options.workers.split(",")):
                    with setup.pipeline(testbed, workers=workers):
                        sustained[workers] = asyncio.run(steps(testbed, rates, workers))
        except debian.Unavailable as exc:
            sys.stderr.write(f"no real Asterisk available: {exc}\n--simulated runs on the simulator\n")
            return 2
    for workers, rate in sustained.items():
        setup.say(f"\nSustained with {workers} worker processes: {rate:g} calls/s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
