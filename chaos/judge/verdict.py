"""The verdict: what broke a promise, and the figures of the run, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from chaos.judge import checks, figures
from chaos.judge.checks import Violation
from chaos.judge.evidence import Evidence
from chaos.judge.history import Leg, call_id_of
from chaos.judge.spans import FOREVER


def judge(evidence: Evidence, *, timeline: Callable[[str], list[str]]) -> dict[str, Any]:
    """Return violations, calls, faults and totals, as `python -m chaos.judge` prints them.

    Args:
        timeline: Returns the timeline of a call as text, for the story of a violation.
    """
    calls = figures.calls(evidence)
    return {
        "violations": [
            asdict(violation) | {"story": story(evidence, violation, timeline)}
            for violation in checks.violations(evidence)
        ],
        "calls": [asdict(call) for call in calls],
        "faults": [asdict(figures.fault(fault, calls)) for fault in evidence.deeds.faults],
        "totals": figures.totals(evidence, calls),
    }


def story(evidence: Evidence, violation: Violation, timeline: Callable[[str], list[str]]) -> list[str]:
    """Return what Asterisk showed of a call, then the faults near it, then its timeline; a line each."""
    legs = [
        leg
        for leg in evidence.history.legs.values()
        if leg.id in (violation.leg, f"far-{violation.leg}")
        or (violation.call_id and call_id_of(leg.id) == violation.call_id)
    ]
    shown = [line for leg in legs for line in _of_leg(leg)]
    bridges = [
        f"bridge {bridge.id}: from {_clock(bridge.created_at)} to {_clock(bridge.gone_at)}"
        for bridge in evidence.history.bridges.values()
        if violation.call_id and call_id_of(bridge.id) == violation.call_id
    ]
    since = min((leg.created_at for leg in legs), default=evidence.now)
    until = min(max((leg.gone_at for leg in legs), default=evidence.now), evidence.now)
    faults = [
        f"fault {fault.number}: {fault.name} ({fault.target}), from {_clock(fault.at)} to {_clock(fault.until)}"
        for fault in evidence.faults(evidence.app_of(violation.leg), (since, until))
    ]
    return [*shown, *bridges, *faults, *(timeline(violation.call_id) if violation.call_id else [])]


def _of_leg(leg: Leg) -> list[str]:
    end = f"{_clock(leg.gone_at)}{', lost with its Asterisk' if leg.is_lost else ''}"
    lines = [f"{leg.kind} {leg.id}: from {_clock(leg.created_at)}, up {_clock(leg.up_at)}, gone {end}, {leg.causes}"]
    for what, stays in (("app", leg.apps), ("bridge", leg.bridges)):
        lines += [f"  in {what} {stay.where} from {_clock(stay.since)} to {_clock(stay.until)}" for stay in stays]
    return lines


def _clock(at: float) -> str:
    return "-" if at == FOREVER else datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
