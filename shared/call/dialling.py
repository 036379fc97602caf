"""How the dialling of a leg came out, by Asterisk's dial status and hang-up cause."""

from __future__ import annotations

from enum import IntEnum

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
#: Asterisk's status for every cause that it has no other one for: a cause that is known says more (a rejected leg has
#: NOANSWER and cause 21, measured, 22.10).
_VAGUE_STATUS = "NOANSWER"
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


class Doubt(IntEnum):
    """How much an event leaves open about how the dialling of its leg came out."""

    #: It tells how: no further event has to be waited for.
    NONE = 0
    #: It was not answered; another event may tell why.
    REASON = 1
    #: It does not tell.
    ALL = 2


def doubt(dial_status: str | None, cause: int | None) -> Doubt:
    """Return what a dial status and a hang-up cause leave open. Of two events the one that leaves less counts."""
    if dial_status in _CONCLUSIVE_STATUSES or cause in _OF_CAUSE:
        return Doubt.NONE
    return Doubt.REASON if dial_status in _OF_STATUS else Doubt.ALL


def clearer(first: int | None, second: int | None) -> int | None:
    """Return which of two hang-up causes of one leg says more about its dialling; the first, where neither does."""
    known = next((cause for cause in (first, second) if cause in _OF_CAUSE), None)
    return known or first or second or first


def dial_outcome(dial_status: str | None, cause: int | None) -> tuple[Outcome, str, int | None]:
    """Return how the dialling of an unanswered leg came out, the reason in words, and the hang-up cause.

    The dial status counts first, the cause second: the cause was 0 for busy and for congestion over Local channels
    (measured, 22.10).
    """
    known = _OF_STATUS.get(dial_status or "")
    if known is not None and not (dial_status == _VAGUE_STATUS and cause in _OF_CAUSE):
        outcome, reason, usual = known
        return outcome, reason, cause or usual
    otherwise = (Outcome.FAILED, f"not reached, cause {cause}" if cause else "not reached")
    outcome, reason = _OF_CAUSE.get(cause or 0, otherwise)
    return outcome, reason, cause or None
