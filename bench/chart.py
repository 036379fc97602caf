"""Draws what bench.setup measured: `python -m bench.chart MEASURED.json CHART.png`.

Above, the distribution of the set-up times at each rate; below, the processor time of a call, by process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import matplotlib as mpl
from matplotlib import figure, ticker
from matplotlib.axes import Axes

from bench import bridgings

#: In the order in which they are stacked. What every variant needs alike (Asterisk, agent, callers) is not shown.
PROCESSES = ("client", "listener", "worker", "scheduler", "Postgres", "Redis")
_COLOURS = {
    "floor": "#888888",
    "single": "#dd8452",
    "pipeline": "#4c72b0",
    "pipeline-2": "#55a868",
    "pipeline-4": "#8172b3",
}
_STACKED = ("#888888", "#64b5cd", "#4c72b0", "#8172b3", "#55a868", "#c44e52")


class Cell(TypedDict):
    """One variant at one rate, over all rounds."""

    variant: str
    rate: float
    lost: int
    #: Until both legs are in the bridge, and until the media leg is created; of each call.
    whole_ms: list[int]
    until_media_ms: list[int]
    #: Of each round.
    busy_cores: list[float]
    #: Of each process, per call.
    cpu_ms: dict[str, float]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw the cells into a PNG file."""
    rates = sorted({cell["rate"] for cell in cells})
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = figure.Figure(figsize=(2.4 * len(rates) + 1.2, 5.2), layout="constrained")
        axes = drawn.subplots(2, len(rates), sharey="row", squeeze=False)
        for column, rate in enumerate(rates):
            at_rate = [cell for cell in cells if cell["rate"] == rate]
            _distributions(axes[0, column], at_rate)
            _processors(axes[1, column], at_rate)
            axes[0, column].set_title(f"{rate:g} calls/s")
        axes[0, 0].set_ylabel("part of the calls")
        axes[0, 0].legend(loc="upper left", frameon=False)
        axes[1, 0].set_ylabel("processor time of a call, ms")
        axes[1, -1].legend(loc="upper left", frameon=False)
        drawn.savefig(path, format="png", dpi=110)


def _distributions(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draw the part of the calls that was set up within a time, with p50, p95 and p99 marked."""
    for cell in cells:
        times, colour = sorted(cell["whole_ms"]), _COLOURS[cell["variant"]]
        calls = len(times) + cell["lost"]
        axes.step(times, [(number + 1) / calls for number in range(len(times))], color=colour, label=cell["variant"])
        for part in (0.5, 0.95, 0.99):
            axes.plot(bridgings.quantile(times, part), part, "o", color=colour, markersize=3)
    axes.set_xscale("log")
    axes.set_xlabel("set-up, ms")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylim(0, 1.02)


def _processors(axes: Axes, cells: Sequence[Cell]) -> None:
    """Stack the processor time of a call, process on process."""
    heights = [0.0] * len(cells)
    for process, colour in zip(PROCESSES, _STACKED, strict=True):
        parts = [cell["cpu_ms"].get(process, 0.0) for cell in cells]
        axes.bar([cell["variant"] for cell in cells], parts, bottom=heights, color=colour, label=process)
        heights = [height + part for height, part in zip(heights, parts, strict=True)]
    for variant, height in enumerate(heights):
        axes.annotate(f"{height:.1f}", (variant, height), ha="center", va="bottom")


def main() -> None:
    """Draw a saved measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.measured.read_text()), options.chart)


if __name__ == "__main__":
    main()
