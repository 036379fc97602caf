"""What a run came to, in figures alone: an entry of docs/chaos.json, of which tables and charts are made."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from chaos.judge.figures import AFTERMATH_SECONDS
from devstack import processes
from devstack.pipeline import ROOT

#: The name of a run with all kinds of fault.
MIXED = "mixed"
#: Of the waits over time.
WINDOW_SECONDS = 5
#: Callers who hang up so early wait for no agent: their waits say nothing of the pipeline.
_IN_NO_WAIT = ("at once", "during set-up")
#: With it an entry tells the same of two calls that ended in the same way.
_ID = re.compile(r"(?:: )?\b(?:aip|call|far|outbound|platform)-[\w-]+")


class Waits(TypedDict):
    """Seconds from the offer until an agent was on the line, or until the call was over; None without a caller."""

    callers: int
    p50: float | None
    p95: float | None
    p99: float | None
    worst: float | None


class Strike(TypedDict):
    """One fault of a run."""

    name: str
    target: str
    #: From the first offer of the run.
    at_seconds: float
    #: Until it was mended.
    seconds: float
    #: Calls that were in set-up when it struck.
    in_setup: int
    #: From the strike until the first call that was offered later had an agent; None: none had.
    served_again_seconds: float | None


class Series(TypedDict):
    """A run over time."""

    #: Calls of each second, by the offer, and by the moment in which the agent was on the line.
    offered: list[int]
    connected: list[int]
    #: Of the callers who were offered in each window.
    waits: list[Waits]


class Entry(TypedDict):
    """A run. `name` is the kind of fault, or `mixed`."""

    name: str
    date: str
    #: As `git describe` names it.
    commit: str
    asterisk: str
    seeds: list[int]
    #: Calls per second.
    rate: float
    #: Kind → number.
    violations: dict[str, int]
    #: `offered`, and each outcome.
    calls: dict[str, int]
    #: Outcome → reason → number of calls, of those that were neither connected nor abandoned.
    reasons: dict[str, dict[str, int]]
    #: Of the callers whose wait overlapped a fault or the 30 s after it.
    waits: Waits
    strikes: list[Strike]
    #: Of a mixed run.
    series: Series | None


def entry(verdict: Mapping[str, Any], *, name: str, commit: str) -> Entry:
    """Make the entry of a run of its verdict."""
    calls, faults = verdict["calls"], verdict["faults"]
    began = min(call["offered_at"] for call in calls)
    return {
        "name": name,
        "date": datetime.fromtimestamp(began, UTC).date().isoformat(),
        "commit": commit,
        "asterisk": verdict["asterisk"],
        "seeds": verdict["seeds"],
        "rate": verdict["rate"],
        "violations": dict(Counter(violation["kind"] for violation in verdict["violations"])),
        "calls": {"offered": len(calls), **Counter(call["outcome"] for call in calls)},
        "reasons": _reasons(calls),
        "waits": waits(calls, faults),
        "strikes": [_strike(fault, began) for fault in faults],
        "series": _series(calls, began) if name == MIXED else None,
    }


def waits(calls: Iterable[Mapping[str, Any]], faults: Sequence[Mapping[str, Any]]) -> Waits:
    """Return the waits of the callers whose wait overlapped a fault that concerned them, or the 30 s after it."""
    return _waits(call for call in calls if any(_meets(call, fault) for fault in faults))


def describe_commit() -> str:
    """Return what git names the checkout, with `-dirty` if it was changed since."""
    return processes.run(["git", "-C", ROOT, "describe", "--always", "--dirty"]).strip()


def save(made: Entry, path: Path) -> None:
    """Put an entry in the place of the one of its name, or add it; an entry a line."""
    entries = {one["name"]: one for one in read(path)} | {made["name"]: made}
    lines = ",\n".join(json.dumps(one) for _, one in sorted(entries.items()))
    path.write_text(f"[\n{lines}\n]\n")


def read(path: Path) -> list[Entry]:
    """Return the entries of a file; none if there is no file."""
    entries: list[Entry] = json.loads(path.read_text()) if path.exists() else []
    return entries


def _meets(call: Mapping[str, Any], fault: Mapping[str, Any]) -> bool:
    over_at = call["offered_at"] + call["wait_seconds"]
    until = fault["until"] or math.inf
    is_concerned = fault["apps"] is None or call["app"] is None or call["app"] in fault["apps"]
    return is_concerned and call["offered_at"] < until + AFTERMATH_SECONDS and fault["at"] < over_at


def _waits(calls: Iterable[Mapping[str, Any]]) -> Waits:
    found = sorted(
        call["wait_seconds"] for call in calls if call["manner"] not in _IN_NO_WAIT and call["outcome"] != "lost"
    )
    return {
        "callers": len(found),
        "p50": _percentile(found, 0.50),
        "p95": _percentile(found, 0.95),
        "p99": _percentile(found, 0.99),
        "worst": _percentile(found, 1.0),
    }


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest rank, in hundredths."""
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2) if ordered else None


def _reasons(calls: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for call in calls:
        if call["outcome"] not in ("connected", "abandoned"):
            reason = re.sub(r"\d+\.\d+ s late", "late", _ID.sub("", call["reason"]))
            counted.setdefault(call["outcome"], Counter())[reason] += 1
    return {outcome: dict(reasons.most_common()) for outcome, reasons in counted.items()}


def _strike(fault: Mapping[str, Any], began: float) -> Strike:
    again = fault["served_again_seconds"]
    return {
        "name": fault["name"],
        "target": fault["target"],
        "at_seconds": round(fault["at"] - began, 2),
        "seconds": round((fault["until"] or fault["at"]) - fault["at"], 2),
        "in_setup": fault["in_setup"],
        "served_again_seconds": None if again is None else round(again, 2),
    }


def _series(calls: Sequence[Mapping[str, Any]], began: float) -> Series:
    offered = Counter(int(call["offered_at"] - began) for call in calls)
    connected = Counter(int(call["bridged_at"] - began) for call in calls if call["bridged_at"] is not None)
    seconds = range(max([*offered, *connected]) + 1)
    windows: dict[int, list[Mapping[str, Any]]] = {}
    for call in calls:
        windows.setdefault(int(call["offered_at"] - began) // WINDOW_SECONDS, []).append(call)
    return {
        "offered": [offered[second] for second in seconds],
        "connected": [connected[second] for second in seconds],
        "waits": [_waits(windows.get(window, [])) for window in range(max(windows) + 1)],
    }
