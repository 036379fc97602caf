"""The report of runs: as text, as a table of the docs, as charts."""

from __future__ import annotations

from typing import Any


def text(verdict: dict[str, Any]) -> str:
    """Return a verdict's table for a terminal."""
    lines = [", ".join(f"{name} {count}" for name, count in verdict["totals"].items())]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for fault in verdict["faults"]:
        by_name.setdefault(fault["name"], []).append(fault)
    for name, strikes in by_name.items():
        worst = max((strike["worst_wait_seconds"] or 0.0 for strike in strikes), default=0.0)
        again = max((strike["served_again_seconds"] or 0.0 for strike in strikes), default=0.0)
        met = sum(strike["in_setup"] for strike in strikes)
        lines.append(
            f"  {name:32} struck {len(strikes)}, in set-up {met}, served again {again:.1f} s, worst {worst:.1f} s"
        )
    return "\n".join(lines)
