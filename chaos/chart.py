"""Draws the entries of a file: `python -m chaos.chart docs/chaos.json FOLDER`.

`chaos-mixed.png` is the mixed run over time, `chaos-faults.png` the runs with one kind of fault each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import figure, ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from chaos import record, report
from chaos.record import MIXED, WINDOW_SECONDS, Entry, Strike, Waits

MIXED_CHART, FAULTS_CHART = "chaos-mixed.png", "chaos-faults.png"
_BLUE, _ORANGE, _GREEN, _RED = "#4c72b0", "#dd8452", "#55a868", "#c44e52"
_ROW_INCHES = 0.17
#: A wait below it is drawn as this one, on the logarithmic axis.
_LEAST_SECONDS = 0.1


def draw(entries: Sequence[Entry], folder: Path) -> None:
    """Draw both charts, each if there is a run for it."""
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        for entry in entries:
            if entry["name"] == MIXED:
                _mixed(entry).savefig(folder / MIXED_CHART, format="png", dpi=110)
        if single := report.single(entries):
            _faults(single).savefig(folder / FAULTS_CHART, format="png", dpi=110)


# ── the mixed run, over time ─────────────────────────────────────────────────────────────────────────────────────────


def _mixed(entry: Entry) -> figure.Figure:
    """Draw calls, waits, and below them a row for each kind of fault, on one axis of time."""
    strikes, series = entry["strikes"], entry["series"]
    assert series is not None
    kinds = list(dict.fromkeys(strike["name"] for strike in strikes))
    rows = _ROW_INCHES * (len(kinds) + 2)
    drawn = figure.Figure(figsize=(11, 4.4 + rows), layout="constrained")
    calls, waits, faults = drawn.subplots(3, 1, sharex=True, height_ratios=[2.2, 2.2, rows])
    for axes in (calls, waits):
        for strike in strikes:
            axes.axvline(strike["at_seconds"], color="#cccccc", linewidth=0.6, zorder=0)
    _calls(calls, series["offered"], series["connected"])
    _waits_over_time(waits, series["waits"])
    _strikes(faults, kinds, strikes)
    calls.set_xlim(0, len(series["offered"]))
    faults.set_xlabel("seconds")
    return drawn


def _calls(axes: Axes, offered: Sequence[int], connected: Sequence[int]) -> None:
    for name, counts, colour in (("offered", offered, "#888888"), ("connected", connected, _BLUE)):
        windows = [counts[start : start + WINDOW_SECONDS] for start in range(0, len(counts), WINDOW_SECONDS)]
        rates = [sum(window) / len(window) for window in windows]
        axes.stairs(rates, _edges(len(rates)), color=colour, linewidth=1.4, label=name)
    axes.set_ylim(0)
    axes.set_ylabel("calls/s")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)


def _waits_over_time(axes: Axes, windows: Sequence[Waits]) -> None:
    """Draw p50 and p99 of the callers who were offered in each window; a window without one is a gap."""
    p50, p99 = ([_or_gap(window["p50"]) for window in windows], [_or_gap(window["p99"]) for window in windows])
    axes.stairs(p99, _edges(len(p99)), baseline=None, color=_RED, linewidth=1.4, label="p99")
    axes.stairs(p50, _edges(len(p50)), baseline=None, color=_GREEN, linewidth=1.4, label="p50")
    _in_seconds(axes, "y")
    axes.set_ylabel("wait for an agent\nor an end, s")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)


def _strikes(axes: Axes, kinds: Sequence[str], strikes: Iterable[Strike]) -> None:
    """Draw each fault as a bar as long as it lasted, in the row of its kind; hollow if it met no call in set-up."""
    for strike in strikes:
        row = kinds.index(strike["name"])
        axes.plot([0, strike["at_seconds"]], [row, row], color="#e4e4e4", linewidth=0.6, zorder=0)
        axes.plot([strike["at_seconds"]] * 2, [-1, row], color="#cccccc", linewidth=0.6, zorder=0)
        axes.barh(row, strike["seconds"], left=strike["at_seconds"], height=0.5, color=_ORANGE)
        face = _ORANGE if strike["in_setup"] else "white"
        axes.plot(strike["at_seconds"], row, "o", color=_ORANGE, markerfacecolor=face, markersize=4)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.4, -0.8)
    axes.tick_params(axis="y", length=0)


def _edges(windows: int) -> list[int]:
    return [number * WINDOW_SECONDS for number in range(windows + 1)]


# ── the runs with one kind of fault ──────────────────────────────────────────────────────────────────────────────────


def _faults(entries: Sequence[Entry]) -> figure.Figure:
    """Draw a row for each kind of fault: when calls were served again, and how long callers waited."""
    drawn = figure.Figure(figsize=(11, 1.3 + _ROW_INCHES * len(entries)), layout="constrained")
    again, waits = drawn.subplots(1, 2, sharey=True)
    for row, entry in enumerate(entries):
        _again(again, row, entry["strikes"])
        _waits(waits, row, entry["waits"])
    again.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    again.set_ylim(len(entries) - 0.4, -0.6)
    again.set_title("from each strike until calls were served again, s")
    waits.set_title("wait of callers for an agent or an end, s")
    for axes in (again, waits):
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        _in_seconds(axes, "x")
    drawn.legend(*_first_of_each(waits), loc="outside lower right", ncols=3, frameon=False)
    return drawn


def _again(axes: Axes, row: int, strikes: Iterable[Strike]) -> None:
    """Draw a point for each strike; a cross at the end of the row if no later call was served."""
    for strike in strikes:
        seconds = strike["served_again_seconds"]
        if seconds is None:
            axes.plot(1, row, "x", color=_RED, markersize=5, transform=axes.get_yaxis_transform(), clip_on=False)
        else:
            axes.plot(max(seconds, _LEAST_SECONDS), row, "o", color=_BLUE, markersize=4, alpha=0.6)


def _waits(axes: Axes, row: int, waits: Waits) -> None:
    if waits["p50"] is None or waits["p95"] is None or waits["worst"] is None:
        return
    axes.plot([max(waits["p50"], _LEAST_SECONDS), waits["worst"]], [row, row], color="#bbbbbb", linewidth=1.2)
    figures = {"p50": (waits["p50"], _GREEN), "p95": (waits["p95"], _ORANGE), "worst": (waits["worst"], _RED)}
    for name, (seconds, colour) in figures.items():
        axes.plot(max(seconds, _LEAST_SECONDS), row, "o", color=colour, markersize=4, label=name)


def _first_of_each(axes: Axes) -> tuple[list[Artist], list[str]]:
    """Return marks and names of a legend that names each once."""
    found = {name: mark for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _in_seconds(axes: Axes, which: str) -> None:
    """Make an axis a logarithmic one with plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _or_gap(seconds: float | None) -> float:
    return float("nan") if seconds is None else max(seconds, _LEAST_SECONDS)


def main() -> None:
    """Draw a file of entries."""
    parser = argparse.ArgumentParser(prog="python -m chaos.chart", description=__doc__)
    parser.add_argument("entries", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    draw(record.read(options.entries), options.folder)


if __name__ == "__main__":
    main()
