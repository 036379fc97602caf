"""Whose fault the end of a call may be, by what the history has brought about until then."""

from __future__ import annotations

from shared.call import faults as classes
from shared.call.calls import Call
from shared.call.states import Fault, Outcome
from tests.simulation import faults
from tests.simulation.faults import Fault as Inflicted

#: What our own processes, Postgres and Redis do not do.
OURS = frozenset({
    *faults.OF_STEPS, *faults.OF_STATEMENTS, *faults.OF_ENQUEUES, *faults.OF_MESSAGES, *faults.OF_EVENTS,
    Inflicted.POSTGRES_AWAY, Inflicted.COMMITS_LOST, Inflicted.REDIS_AWAY, Inflicted.REDIS_FLUSHED,
    Inflicted.WORKERS_KILLED, Inflicted.WORKER_FROZEN, Inflicted.WORKER_DECLARED_DEAD,
})  # fmt: skip
#: What an Asterisk does not answer.
UNANSWERED = frozenset({*faults.OF_REQUESTS, Inflicted.ASTERISK_AWAY, Inflicted.ASTERISK_RESTARTED})


def objection(call: Call, inflicted: set[Inflicted], *, agent_is_good: bool) -> str:
    """Return what is wrong with the failure class of a call that has come to an outcome; an empty text if nothing is.

    Args:
        inflicted: The kinds of fault of the history so far.
        agent_is_good: Each voice agent of the call has accepted its socket at once, and stayed.
    """
    told = f"{call.outcome}, {call.reason!r}, is told as the fault of {call.fault or 'none'}"
    is_well = call.outcome is Outcome.COMPLETED
    if (call.fault is None) != is_well:
        return told
    is_unanswered = classes.NO_ANSWER in (call.reason or "")
    match call.fault:
        case Fault.US if not inflicted & OURS:
            return f"{told}, and nothing of ours has failed"
        case Fault.ASTERISK if is_unanswered and not inflicted & UNANSWERED:
            return f"{told}, and it has answered everything"
        # A server without the last commits does not know that the platform has removed a media leg.
        case Fault.AGENT if agent_is_good and Inflicted.COMMITS_LOST not in inflicted:
            return f"{told}, and its agent was good"
    return ""
