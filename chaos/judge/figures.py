"""What a run came to, in figures: a record for each call and each fault, and totals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from chaos.judge import spans
from chaos.judge.checks import is_unseen
from chaos.judge.deeds import Fault
from chaos.judge.evidence import Evidence
from chaos.judge.history import Leg
from chaos.judge.spans import FOREVER
from chaos.judge.tables import CallRow

#: A caller whose set-up began so long after a fault was mended may still wait because of it.
AFTERMATH_SECONDS = 30


class Outcome(StrEnum):
    """How a call came out, as its caller noticed."""

    #: It was in a bridge with an agent.
    CONNECTED = "connected"
    #: Its Asterisk died, or was dead when the call came.
    LOST = "lost"
    #: It came and left while events could not be delivered.
    UNSEEN = "unseen"
    REFUSED = "refused"
    #: Its caller hung up before an agent was on the line.
    ABANDONED = "abandoned"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFigures:
    """A call. Times are unix seconds by Asterisk's clock, `offered_at` by the harness's; None if it did not happen."""

    leg: str
    app: str | None
    direction: str
    manner: str | None
    offered_at: float
    entered_at: float | None
    answered_at: float | None
    #: Two channels were in its bridge.
    bridged_at: float | None
    #: Its set-up was over: it was bridged, or had left the app.
    set_up_until: float | None
    ended_at: float | None
    outcome: Outcome
    reason: str
    #: From the offer until it was bridged, or over.
    wait_seconds: float
    #: Numbers of the faults that lasted during its set-up.
    faults: list[int]

    def was_in_setup(self, at: float) -> bool:
        """Whether its caller was in an app without an agent at a moment."""
        return (
            self.entered_at is not None and self.set_up_until is not None and self.entered_at <= at < self.set_up_until
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultFigures:
    """A fault, and the callers whose set-up overlapped it or the 30 s after it."""

    number: int
    name: str
    target: str
    #: Whose callers it concerned; None for all.
    apps: list[str] | None
    at: float
    until: float | None
    #: Calls that were in an app without an agent when it struck.
    in_setup: int
    #: From the strike until the first call that was offered later was bridged; None if there was none.
    served_again_seconds: float | None
    callers: int
    outcomes: dict[str, int]
    p50_wait_seconds: float | None
    p95_wait_seconds: float | None
    worst_wait_seconds: float | None


def calls(evidence: Evidence) -> list[CallFigures]:
    """Return every call that was offered, and those of Asterisk that the deeds do not know, by time."""
    legs = [*evidence.deeds.offers, *(leg.id for leg in evidence.callers if leg.id not in evidence.deeds.offers)]
    return sorted((_call(evidence, leg) for leg in legs), key=lambda call: call.offered_at)


def fault(struck: Fault, all_calls: Sequence[CallFigures]) -> FaultFigures:
    """Return the figures of one fault."""
    concerned = [call for call in all_calls if struck.concerns(call.app)]
    later = [call.bridged_at for call in concerned if call.offered_at >= struck.at and call.bridged_at is not None]
    span = (struck.at, struck.until + AFTERMATH_SECONDS)
    callers = [
        call for call in concerned if spans.overlap((call.offered_at, call.offered_at + call.wait_seconds), span)
    ]
    waits = sorted(call.wait_seconds for call in callers)
    return FaultFigures(
        number=struck.number,
        name=struck.name,
        target=struck.target,
        apps=None if struck.apps is None else sorted(struck.apps),
        at=struck.at,
        until=_finite(struck.until),
        in_setup=sum(call.was_in_setup(struck.at) for call in concerned),
        served_again_seconds=min(later) - struck.at if later else None,
        callers=len(callers),
        outcomes=dict(Counter(call.outcome.value for call in callers)),
        p50_wait_seconds=_percentile(waits, 0.50),
        p95_wait_seconds=_percentile(waits, 0.95),
        worst_wait_seconds=waits[-1] if waits else None,
    )


def totals(evidence: Evidence, all_calls: Sequence[CallFigures]) -> dict[str, int]:
    """Return the number of calls offered, of each outcome, of dead letters, runs and rows."""
    outcomes = Counter(call.outcome for call in all_calls)
    return {
        "offered": len(all_calls),
        **{outcome.value: outcomes[outcome] for outcome in Outcome},
        "rows": len(evidence.tables.calls),
        "runs": len(evidence.tables.runs),
        "dead_letters": len(evidence.tables.dead_letters),
        "listened": len(evidence.heard),
    }


def _call(evidence: Evidence, leg_id: str) -> CallFigures:
    leg, offer = evidence.history.legs.get(leg_id), evidence.deeds.offers.get(leg_id)
    rows = evidence.rows.get(leg_id, [])
    row = rows[-1] if rows else None
    setup = evidence.setup(leg) if leg else None
    bridged_at = evidence.bridged_at(leg) if leg else None
    ended_at = _finite(leg.gone_at) if leg else None
    offered_at = offer.at if offer else leg.created_at if leg else evidence.now
    over_at = bridged_at or (ended_at if leg else offered_at) or evidence.now
    app = evidence.app_of(leg_id)
    outcome, reason = _outcome(evidence, leg_id, leg, row)
    return CallFigures(
        leg=leg_id,
        app=app,
        direction=offer.direction if offer else row.direction if row else "inbound",
        manner=offer.manner if offer else None,
        offered_at=offered_at,
        entered_at=setup[0] if setup else None,
        answered_at=_finite(leg.up_at) if leg else None,
        bridged_at=bridged_at,
        set_up_until=setup[1] if setup else None,
        ended_at=ended_at,
        outcome=outcome,
        reason=reason,
        wait_seconds=max(0.0, over_at - offered_at),
        faults=[one.number for one in evidence.faults(app, (offered_at, max(offered_at, over_at)))],
    )


def _outcome(evidence: Evidence, leg_id: str, leg: Leg | None, row: CallRow | None) -> tuple[Outcome, str]:
    """Return how a call came out and why: by Asterisk first, by the row second, by the deeds third."""
    reason, said = (row.reason or "", row.outcome) if row else ("", None)
    hung_up_at = evidence.deeds.hang_ups.get(leg_id, FOREVER)
    not_offered = evidence.deeds.not_offered.get(leg_id)
    rules = (
        (leg and evidence.bridged_at(leg), Outcome.CONNECTED, reason),
        (leg and leg.is_lost, Outcome.LOST, "its Asterisk died"),
        (leg and leg.apps and is_unseen(evidence, leg), Outcome.UNSEEN, "left before it could be found"),
        (said == "refused", Outcome.REFUSED, reason),
        (said in ("abandoned", "canceled"), Outcome.ABANDONED, reason),
        (leg and hung_up_at <= leg.gone_at < FOREVER, Outcome.ABANDONED, reason or "its caller hung up"),
        (row, Outcome.FAILED, reason),
        (leg, Outcome.FAILED, "ended before it entered an app"),
        (not_offered, Outcome.LOST, f"could not be offered: {not_offered}"),
    )
    never = (Outcome.FAILED, "never seen in Asterisk")
    return next(((outcome, why) for holds, outcome, why in rules if holds), never)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _finite(at: float) -> float | None:
    return at if at < FOREVER else None
