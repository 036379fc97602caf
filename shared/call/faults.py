"""Whose fault it is that a call did not end well: its failure class, by what its row tells.

The reason says it. It is read by its beginning, so that the calls of an earlier release have a class, too. Behind a
colon stands what has held the call up (`obstacle` of the call): it counts where a caller or a limit ended the waiting.

`us` is the product alone: what its own processes have not done. What is not known is `unknown`, and never `us`.
"""

from __future__ import annotations

import re

from shared.call.states import Fault, Outcome

#: How obstacles begin that an error tells: of the Asterisk, and of the platform.
NO_ANSWER = "Asterisk gave no answer"
NOT_SERVED = "the platform gave no answer"
#: Other obstacles.
NOT_ACCEPTED = "the voice agent has not accepted the socket"
NOT_DONE = "no worker has done its step"
WORKER_DIED = "its worker died"

#: Added to the reason of a call that ends without proof that its legs are gone.
NOT_VERIFIED = "; not verified"

#: How the reasons of calls begin that ended as an operator wanted it, which is no fault. Postgres reads it alike.
WANTED = rf"^(?:ended by an operator(?:{NOT_VERIFIED})?$|connection (?:parked|drained|suspended))"
_WANTED = re.compile(WANTED)

#: What it is if the reason tells no more.
_OF_OUTCOME = {
    Outcome.ABANDONED: Fault.CALLER,
    # What is set at the platform for the organization: configuration, numbers, workflow, run, limits, credits.
    Outcome.REFUSED: Fault.PLATFORM,
    Outcome.FAILED: Fault.UNKNOWN,
    Outcome.BUSY: Fault.FAR_END,
    Outcome.NO_ANSWER: Fault.FAR_END,
    Outcome.CANCELED: Fault.FAR_END,
}

#: What these begin with is told by the obstacle that follows.
_HINDERED = re.compile(
    r"(?:\w+ for too long|(?:caller|far end) hung up before (?:an agent was on the line|the call was received)"
    r"|media leg not ready in time|dialled, and what came of it is unknown): "
)

#: Beginnings of reasons and obstacles, the first that matches counts.
_BEGINNINGS: list[tuple[Fault, list[str]]] = [
    (
        Fault.US,
        [NOT_DONE, WORKER_DIED, r"received [\d.]+ s late$", "media not created: the worker did not report back"],
    ),
    # It may have been too slow, or its Asterisk.
    (
        Fault.UNKNOWN,
        [
            "media not created: (?:the step ran out|this worker was not heard of)",
            r"received [\d.]+ s late, its Asterisk was asked first",
        ],
    ),
    # It has completed the run, before or while the agent was called.
    (Fault.PLATFORM, [NOT_SERVED, "its run was completed", r"voice agent not reached: .*\((?:its run|configuration) "]),
    (
        Fault.AGENT,
        [
            NOT_ACCEPTED,
            "agent lost: ",
            r"voice agent not reached: media leg (?:ended, cause (?:3|16|38)\b|ended while being joined|not ready)",
        ],
    ),
    (
        Fault.ASTERISK,
        [
            NO_ANSWER,
            # It refused, or gave no answer.
            "media refused: ",
            "media not created: ",
            "legs not joined: ",
            "not originated: ",
            # It, or who rules it, has taken the leg, or taken the bridge apart.
            "(?:caller|far end) left Stasis",
            "the caller's leg was replaced too often",
            "bridge lost: ",
            # It, or its dialplan, has sent what nothing can be made of.
            "no request can name a channel",
            "the called number is longer",
            r"the arguments of Stasis\(\)",
            "(?:workflow_run|workflow|user)_id is ",
            "the far end has not answered",
        ],
    ),
    (Fault.FAR_END, ["congestion$", "unallocated number$", "rejected$", "not reached"]),
]
_OF_TEXT = [(fault, re.compile("|".join(beginnings))) for fault, beginnings in _BEGINNINGS]

#: The fault of a row of `ari.calls`, for counting; where an earlier release has written none, it is unknown.
SQL = f"""CASE WHEN outcome <> '{Outcome.COMPLETED}' AND NOT (fault IS NULL AND coalesce(reason, '') ~ '{WANTED}')
            THEN coalesce(fault, '{Fault.UNKNOWN}') END"""


def fault_of(outcome: Outcome | None, reason: str | None) -> Fault | None:
    """Return whose fault an outcome is; None for a call that ended well, or has not come to an outcome yet."""
    text = (reason or "").removesuffix(NOT_VERIFIED)
    if outcome is None or outcome is Outcome.COMPLETED or _WANTED.match(text):
        return None
    hindered = _HINDERED.match(text)
    if hindered is not None:
        return _of_text(text[hindered.end() :]) or Fault.UNKNOWN
    return _of_text(text) or _OF_OUTCOME[outcome]


def _of_text(text: str) -> Fault | None:
    return next((fault for fault, beginning in _OF_TEXT if beginning.match(text)), None)
