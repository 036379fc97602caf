"""The report of runs: a verdict for the terminal, and the entries of docs/chaos.json as tables of docs/chaos.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos import record
from chaos.faults import FAULTS
from chaos.record import MIXED, Entry, Strike

#: Outcomes of calls that were neither connected nor abandoned by their callers.
_NOT_SERVED = ("lost", "unseen", "refused", "failed")
_OUTCOMES = ("connected", "abandoned", *_NOT_SERVED)
NOTHING = "No run has been recorded yet.\n"


def text(verdict: Mapping[str, Any]) -> str:
    """Return a verdict's table, of 92 columns at most: totals, then a line for each kind of fault."""
    totals = verdict["totals"]
    lines = [
        f"{totals['offered']} calls offered: " + ", ".join(f"{totals[name]} {name}" for name in _OUTCOMES),
        f"{totals['rows']} rows, {totals['runs']} runs, {totals['dead_letters']} dead letters;"
        f" listened to on both ends: {totals['listened']}",
        "",
        f"{'':40} {'':7} {'calls in':>8} {'s until':>8}  seconds that callers waited",
        f"{'fault':40} {'strikes':>7} {'set-up':>8} {'served':>8} {'p50':>8} {'p95':>8} {'worst':>8}",
    ]
    for name, faults in _by_name(verdict["faults"]).items():
        waits = record.waits(verdict["calls"], faults)
        again = max(_or_never(fault["served_again_seconds"]) for fault in faults)
        figures = (again, waits["p50"], waits["p95"], waits["worst"])
        in_setup = sum(fault["in_setup"] for fault in faults)
        lines.append(f"{name:40} {len(faults):7} {in_setup:8} " + " ".join(f"{_seconds(one):>8}" for one in figures))
    return "\n".join(lines)


# ── tables of docs/chaos.md ──────────────────────────────────────────────────────────────────────────────────────────


def faults_table(entries: Sequence[Entry]) -> str:
    """Return the runs that have one kind of fault each, a row for a kind."""
    heading = (
        "Fault", "Strikes, in a set-up", "Calls in set-up", "Offered", *(name.capitalize() for name in _OUTCOMES),
        "Served again, s: median, worst", "Wait, s: p50, p95, worst", "Violations",
    )  # fmt: skip
    return _played(single(entries)) + table(heading, [_fault_row(entry) for entry in single(entries)])


def reasons_table(entries: Sequence[Entry]) -> str:
    """Return why calls were not served, a row for each kind of fault that has such calls."""
    rows = [
        (entry["name"], *(_reasons(entry["reasons"].get(outcome, {})) for outcome in _NOT_SERVED))
        for entry in single(entries)
        if entry["reasons"]
    ]
    return table(("Fault", *(outcome.capitalize() for outcome in _NOT_SERVED)), rows)


def mixed_table(entries: Sequence[Entry]) -> str:
    """Return the mixed run: its totals, and why calls were not served."""
    found = [entry for entry in entries if entry["name"] == MIXED]
    rows = [row for entry in found for row in _mixed_rows(entry)]
    return _played(found) + table(("Of the mixed run", ""), rows)


def kinds_table() -> str:
    """Return every kind of fault: how long it lasts, whether deadlines are extended by it, and what it may cost."""
    rows = [
        (
            fault.name,
            fault.part,
            _lasts(*fault.seconds),
            "yes" if fault.is_outage else "",
            "yes" if fault.loses_calls else "",
        )
        for fault in FAULTS.values()
    ]
    return table(("Fault", "Breaks", "Lasts, s", "Outage", "May lose calls"), rows)


def single(entries: Iterable[Entry]) -> list[Entry]:
    """Return the runs that have one kind of fault each, in the order of the faults."""
    order = list(FAULTS)
    return sorted((entry for entry in entries if entry["name"] in order), key=lambda entry: order.index(entry["name"]))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown; a sentence if it has no row."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) if rows else NOTHING


def picture(path: Path, title: str) -> str:
    """Return the link to a chart beside the page; nothing if it was not drawn yet."""
    return f"\n![{title}]({path.name})\n" if path.exists() else ""


def _played(entries: Sequence[Entry]) -> str:
    """Say when and on what the runs were played, in one sentence for all that have this in common."""
    named: dict[str, list[str]] = {}
    for entry in entries:
        seeds = f"seed{'s' if len(entry['seeds']) > 1 else ''} {' and '.join(map(str, entry['seeds']))}"
        about = f"{entry['date']}, commit `{entry['commit']}`, Asterisk {entry['asterisk']}, {seeds}"
        named.setdefault(f"{about}, {entry['rate']:g} calls/s", []).append(entry["name"])
    only = len(named) == 1
    return "".join(f"{'Played' if only else ', '.join(names)}: {about}.\n\n" for about, names in named.items())


def _fault_row(entry: Entry) -> tuple[str, ...]:
    strikes, calls, waits = entry["strikes"], entry["calls"], entry["waits"]
    met = sum(strike["in_setup"] > 0 for strike in strikes)
    return (
        entry["name"],
        f"{len(strikes)}, {met}",
        str(sum(strike["in_setup"] for strike in strikes)),
        *(str(calls.get(name, 0)) for name in ("offered", *_OUTCOMES)),
        ", ".join(map(_seconds, _served_again(strikes))),
        ", ".join(_seconds(value) for value in (waits["p50"], waits["p95"], waits["worst"])),
        str(sum(entry["violations"].values())),
    )


def _mixed_rows(entry: Entry) -> list[tuple[str, str]]:
    strikes, calls, waits = entry["strikes"], entry["calls"], entry["waits"]
    kinds, met = ({strike["name"] for strike in found} for found in (strikes, [s for s in strikes if s["in_setup"]]))
    return [
        ("Faults", f"{len(strikes)} of {len(kinds)} kinds; {len(met)} kinds met a call in set-up"),
        ("Calls offered", str(calls["offered"])),
        *((name.capitalize(), _with_reasons(calls.get(name, 0), entry["reasons"].get(name, {}))) for name in _OUTCOMES),
        ("Wait, s: p50, p95, worst", ", ".join(_seconds(waits[part]) for part in ("p50", "p95", "worst"))),
        ("Violations", _with_reasons(sum(entry["violations"].values()), entry["violations"])),
    ]


def _with_reasons(number: int, reasons: Mapping[str, int]) -> str:
    return f"{number}: {_reasons(reasons)}" if reasons else str(number)


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({number})" for reason, number in reasons.items())


def _served_again(strikes: Iterable[Strike]) -> tuple[float, float]:
    """Return median and worst of the seconds until calls were served again; infinite if no later call was."""
    found = [_or_never(strike["served_again_seconds"]) for strike in strikes]
    return statistics.median_low(found), max(found)


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _lasts(least: float, most: float) -> str:
    if most == 0:
        return "at once"
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return "never" if value == math.inf else f"{value:.1f}"


def _by_name(faults: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for fault in faults:
        found.setdefault(fault["name"], []).append(fault)
    return found
