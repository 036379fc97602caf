"""How the dialling of a leg came out, by Asterisk's dial status and hang-up cause."""

from __future__ import annotations

from shared.call.states import Cause, Outcome

#: Dial status → outcome, reason, and the cause to use when Asterisk reports none.
_OF_STATUS: dict[str, tuple[Outcome, str, int]] = {
    "BUSY": (Outcome.BUSY, "busy", Cause.BUSY),
    "NOANSWER": (Outcome.NO_ANSWER, "not answered", Cause.NO_ANSWER),
    "CANCEL": (Outcome.NO_ANSWER, "not answered", Cause.NO_ANSWER),
    "CONGESTION": (Outcome.FAILED, "congestion", Cause.CONGESTION),
}
#: The dial statuses of a leg that was not answered.
UNANSWERED_STATUSES = frozenset({*_OF_STATUS, "CHANUNAVAIL"})
#: Of these the status alone tells how the dialling came out: there may be no cause.
_CONCLUSIVE_STATUSES = frozenset({"BUSY", "CONGESTION"})
#: Q.850 cause → outcome and reason, when no dial status says it.
_OF_CAUSE: dict[int, tuple[Outcome, str]] = {
    Cause.UNALLOCATED: (Outcome.FAILED, "unallocated number"),
    Cause.BUSY: (Outcome.BUSY, "busy"),
    Cause.NO_RESPONSE: (Outcome.NO_ANSWER, "not answered"),
    Cause.NO_ANSWER: (Outcome.NO_ANSWER, "not answered"),
    Cause.REJECTED: (Outcome.FAILED, "rejected"),
    Cause.NO_CIRCUIT: (Outcome.FAILED, "congestion"),
    Cause.CONGESTION: (Outcome.FAILED, "congestion"),
}


def is_conclusive(dial_status: str | None, cause: int | None) -> bool:
    """True if these say how the dialling of a leg came out: no further event has to be waited for."""
    return dial_status in _CONCLUSIVE_STATUSES or cause in _OF_CAUSE


def dial_outcome(dial_status: str | None, cause: int | None) -> tuple[Outcome, str, int | None]:
    """Return how the dialling of an unanswered leg came out, the reason in words, and the hang-up cause.

    The dial status counts first, the cause second: the cause was 0 for busy and for congestion over Local channels
    (measured, 22.10).
    """
    known = _OF_STATUS.get(dial_status or "")
    # A rejected leg has the status NOANSWER, too (measured, 22.10): there the cause says more.
    if known is not None and not (dial_status == "NOANSWER" and cause in (Cause.REJECTED, Cause.UNALLOCATED)):
        outcome, reason, usual = known
        return outcome, reason, cause or usual
    otherwise = (Outcome.FAILED, f"not reached, cause {cause}" if cause else "not reached")
    outcome, reason = _OF_CAUSE.get(cause or 0, otherwise)
    return outcome, reason, cause or None
