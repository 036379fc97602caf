"""Draws the samples of a long run: `python -m chaos.growth_chart SAMPLES.jsonl DEEDS.jsonl CHART.png`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import figure
from matplotlib.axes import Axes

from chaos import growth, soak
from chaos.soak import Sample

_MEBIBYTE = 1024 * 1024
#: Tables of which the most dead tuples, or bytes, were seen.
_MOST_TABLES = 5
_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#64b5cd", "#888888", "#937860")


def draw(samples: Sequence[Sample], faults: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw the samples into a PNG file.

    Args:
        faults: with `name` and `at` (Unix seconds), each a vertical line.
    """
    began = samples[0]["at"]
    struck = [(fault["at"] - began) / 60 for fault in faults]
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = figure.Figure(figsize=(11, 8), layout="constrained")
        axes = drawn.subplots(4, 2, sharex=True)
        for panel, (title, lines) in zip(axes.flat, _panels(samples).items(), strict=True):
            _panel(panel, title, lines, began, struck)
        for panel in axes[-1]:
            panel.set_xlabel("minutes")
        drawn.savefig(path, format="png", dpi=110)


#: Name → (Unix seconds, value); the value is None where a sample has none.
Lines = dict[str, list[tuple[float, float | None]]]


def _panels(samples: Sequence[Sample]) -> dict[str, Lines]:
    """Return title → lines, in the order of the panels."""
    return {
        "resident memory, MiB": _of_processes(samples, "resident_bytes", _MEBIBYTE),
        "open files": _of_processes(samples, "files"),
        "threads": _of_processes(samples, "threads"),
        "Redis memory, MiB": {"used": _series(samples, partial(_redis, "memory_bytes", _MEBIBYTE))},
        "Redis keys and clients": {name: _series(samples, partial(_redis, name, 1)) for name in ("keys", "clients")},
        "Postgres connections": {"clients": _series(samples, _connections)},
        "dead tuples": _of_tables(samples, lambda table: table["dead"]),
        "tables with their indexes, MiB": _of_tables(
            samples, lambda table: (table["table_bytes"] + table["index_bytes"]) / _MEBIBYTE
        ),
    }


def _panel(axes: Axes, title: str, lines: Lines, began: float, struck: Sequence[float]) -> None:
    for at in struck:
        axes.axvline(at, color="#bbbbbb", linewidth=0.5, zorder=0)
    axes.axvspan(0, growth.WARM_UP_SECONDS / 60, color="#eeeeee", zorder=-1)
    for number, (name, points) in enumerate(lines.items()):
        minutes = [(at - began) / 60 for at, _ in points]
        values = [float("nan") if value is None else value for _, value in points]
        axes.plot(minutes, values, color=_COLOURS[number % len(_COLOURS)], linewidth=1, label=name)
    axes.set_title(title)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.legend(loc="lower right", frameon=False, ncols=3, fontsize=7)


def _series(samples: Iterable[Sample], value: Callable[[Sample], float | None]) -> list[tuple[float, float | None]]:
    return [(sample["at"], value(sample)) for sample in samples]


def _of_processes(samples: Sequence[Sample], quantity: str, unit: float = 1) -> Lines:
    names = sorted({name for sample in samples for name in sample["processes"]})
    return {name: _series(samples, partial(_process, name, quantity, unit)) for name in names}


def _process(name: str, quantity: str, unit: float, sample: Sample) -> float | None:
    process: Mapping[str, Any] | None = sample["processes"].get(name)
    return process[quantity] / unit if process else None


def _redis(quantity: str, unit: float, sample: Sample) -> float | None:
    found: Mapping[str, Any] | None = sample["redis"]
    return found[quantity] / unit if found else None


def _connections(sample: Sample) -> float | None:
    return sample["postgres"]["connections"] if sample["postgres"] else None


def _of_tables(samples: Sequence[Sample], value: Callable[[soak.Table], float]) -> Lines:
    """Return a line for each of the tables with the highest values."""
    names = {name for sample in samples if sample["postgres"] for name in sample["postgres"]["tables"]}
    lines = {name: _series(samples, partial(_table, name, value)) for name in names}
    highest = sorted(lines, key=lambda name: (-max(found or 0 for _, found in lines[name]), name))
    return {name: lines[name] for name in highest[:_MOST_TABLES]}


def _table(name: str, value: Callable[[soak.Table], float], sample: Sample) -> float | None:
    table = sample["postgres"]["tables"].get(name) if sample["postgres"] else None
    return value(table) if table else None


def main() -> None:
    """Draw saved samples, and the faults among the deeds."""
    parser = argparse.ArgumentParser(prog="python -m chaos.growth_chart", description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("deeds", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    deeds = [json.loads(line) for line in options.deeds.read_text().splitlines()]
    draw(soak.read(options.samples), [deed for deed in deeds if deed["deed"] == "fault"], options.chart)


if __name__ == "__main__":
    main()
