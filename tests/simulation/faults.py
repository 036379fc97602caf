"""Every kind of fault, the ports it can hit, and the pairs of state and fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from shared.call.states import State


class Fault(StrEnum):
    """One kind of fault."""

    #: The process dies at a port call, before or after its effect. Nothing of it runs any more, no clean-up either.
    KILLED_BEFORE = "worker killed, operation not done"
    KILLED_AFTER = "worker killed, operation done"
    #: The step stalls at a port call, for up to 40 s, and goes on.
    FROZEN_BEFORE = "step frozen, operation not done"
    FROZEN_AFTER = "step frozen, operation done"

    #: A request to an Asterisk.
    REFUSED = "request refused"
    UNSENT = "request times out, unsent"
    UNANSWERED = "request times out, done"
    LATE = "request times out, done later"
    MISANSWERED = "request answered 401, 404 or 503"

    #: A statement, or a commit, to Postgres.
    STATEMENT_FAILED = "statement fails"
    STATEMENT_UNANSWERED = "statement done, answer lost"

    #: A message to Redis.
    ENQUEUE_FAILED = "enqueue fails"
    ENQUEUE_UNANSWERED = "enqueue done, answer lost"

    MESSAGE_LOST = "message lost"
    MESSAGE_DOUBLED = "message doubled"
    MESSAGE_LATE = "message late"
    PUSH_LOST = "message lost on its way"

    EVENT_LOST = "event lost"
    EVENT_DOUBLED = "event doubled"
    EVENT_LATE = "event late"

    #: Outages: they hit many calls at once.
    SOCKET_CUT = "event socket cut"
    ASTERISK_RESTARTED = "Asterisk restarted"
    ASTERISK_AWAY = "Asterisk unreachable"
    ASTERISK_CLOCK_SET = "clock of the Asterisks set"
    POSTGRES_AWAY = "Postgres away"
    #: A standby that lacks the last commits takes over: some of a call's, up to all of them.
    COMMITS_LOST = "last commits lost"
    REDIS_AWAY = "Redis away"
    REDIS_FLUSHED = "Redis flushed"
    WORKERS_KILLED = "all workers killed"
    WORKER_FROZEN = "worker frozen"
    WORKER_DECLARED_DEAD = "worker declared dead, lives on"
    #: The platform's: no request gets an answer, and some have their effect; all its keys are gone.
    PLATFORM_REDIS_AWAY = "platform's Redis away"
    PLATFORM_REDIS_FLUSHED = "platform's Redis flushed"
    #: Another channel takes the place of a caller's leg: a transfer, a pick-up, any masquerade.
    LEG_REPLACED = "leg replaced"
    LEG_REPLACED_LATE = "leg replaced, its end told first"
    #: As an earlier release's scheduler takes it: another connection of the same app instance, beside the old one.
    SAVED_ANEW = "configuration saved anew"


OF_THE_PLATFORM_S_REDIS = (Fault.PLATFORM_REDIS_AWAY, Fault.PLATFORM_REDIS_FLUSHED)
OF_SERVERS = (Fault.POSTGRES_AWAY, Fault.REDIS_AWAY, Fault.REDIS_FLUSHED, *OF_THE_PLATFORM_S_REDIS)
OF_STEPS = (Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.FROZEN_BEFORE, Fault.FROZEN_AFTER)
OF_REQUESTS = (Fault.REFUSED, Fault.UNSENT, Fault.UNANSWERED, Fault.LATE, Fault.MISANSWERED)
OF_STATEMENTS = (Fault.STATEMENT_FAILED, Fault.STATEMENT_UNANSWERED)
OF_ENQUEUES = (Fault.ENQUEUE_FAILED, Fault.ENQUEUE_UNANSWERED)
OF_MESSAGES = (Fault.MESSAGE_LOST, Fault.MESSAGE_DOUBLED, Fault.MESSAGE_LATE, Fault.PUSH_LOST)
OF_EVENTS = (Fault.EVENT_LOST, Fault.EVENT_DOUBLED, Fault.EVENT_LATE)
OUTAGES = (
    Fault.SOCKET_CUT, Fault.ASTERISK_RESTARTED, Fault.ASTERISK_AWAY, Fault.POSTGRES_AWAY, Fault.REDIS_AWAY,
    Fault.REDIS_FLUSHED, Fault.WORKERS_KILLED, Fault.WORKER_FROZEN, Fault.WORKER_DECLARED_DEAD,
    Fault.ASTERISK_CLOCK_SET, Fault.COMMITS_LOST, Fault.SAVED_ANEW,
    Fault.LEG_REPLACED, Fault.LEG_REPLACED_LATE, Fault.PLATFORM_REDIS_AWAY, Fault.PLATFORM_REDIS_FLUSHED,
)  # fmt: skip

#: The state that a fault hits before there is a call.
NO_CALL = "no call yet"

#: (state of the call, fault)
Pair = tuple[str, Fault]
Tally = Counter[Pair]


@dataclass(frozen=True, slots=True)
class Target:
    """The pair that one history aims at."""

    state: str
    fault: Fault
    #: The port calls to hit: part of their name; empty for any.
    what: str = ""


#: The first attempt's media leg appears late, when the call may have ended with its second attempt. Too rare otherwise.
LATE_MEDIA_LEG = Target(State.PREPARED, Fault.LATE, "externalMedia")
_LATE_MEDIA_LEG_WEIGHT = 20
#: Neither the answer nor an event tells how a dialling came out: two faults, too rare together otherwise.
UNHEARD_DIALS = tuple(
    Target(State.ORIGINATING, fault, "POST /channels") for fault in (Fault.KILLED_AFTER, Fault.UNANSWERED)
)
_UNHEARD_DIALS_WEIGHT = 7

STATES = (NO_CALL, *State)


def pairs() -> list[Target]:
    """Return every possible pair: before there is a call, no command is enqueued for it."""
    return [Target(state, fault) for state in STATES for fault in Fault if state != NO_CALL or fault not in OF_ENQUEUES]


def targets() -> list[Target]:
    """Return what the histories aim at, one after the other; rare pairs stand there more often."""
    rare = [LATE_MEDIA_LEG] * _LATE_MEDIA_LEG_WEIGHT + [*UNHEARD_DIALS] * _UNHEARD_DIALS_WEIGHT
    return [pair for pair in pairs() for _ in range(_weight(pair))] + rare


def _weight(pair: Target) -> int:
    if pair.fault is Fault.COMMITS_LOST and pair.state in (State.ENDING, State.ENDED):
        # Only from here a call goes back to being connected.
        return 18
    if pair.fault is Fault.COMMITS_LOST and pair.state in (State.RINGING, State.PREPARED):
        # Only from a call that was answered it goes back to one that rings.
        return 12
    is_short = pair.state in (State.ORIGINATING, State.RINGING, State.RECEIVED, State.ADMITTED, State.JOINING)
    if pair.fault in OF_STEPS + OF_STATEMENTS:
        # Every step has several operations: these pairs are hit by chance as well.
        return 3 if is_short else 1
    if pair.state == State.JOINING or (is_short and pair.fault in OF_REQUESTS + OF_ENQUEUES):
        # Not every history gets so far, and these states have hardly one.
        return 8
    if is_short or pair.fault in (*OF_EVENTS, Fault.COMMITS_LOST):
        return 6
    return 1 if pair.fault in OUTAGES else 3
