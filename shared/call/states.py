"""The words a call is told in: its state, direction and outcome, and the hang-up causes the product gives or reads."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class State(StrEnum):
    """Where a call is."""

    #: The row is written; the request that originates the leg is being made.
    ORIGINATING = "originating"
    #: Asterisk rings the far end.
    RINGING = "ringing"
    #: The caller's leg entered Stasis; tenant, route, quota and slots are to be checked.
    RECEIVED = "received"
    #: Granted; its workflow run is to be created.
    ADMITTED = "admitted"
    #: The run exists; media leg and bridge are being created, or the media leg is not ready yet.
    PREPARED = "prepared"
    #: The media leg is ready; caller and agent are being joined.
    JOINING = "joining"
    #: Every leg is in the bridge.
    CONNECTED = "connected"
    #: Over; legs, bridge and run are being ended.
    ENDING = "ending"
    #: Verified: nothing of the call is left.
    ENDED = "ended"


class Direction(StrEnum):
    """Which side started the call."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Outcome(StrEnum):
    """How a call came out."""

    #: It was connected, and ended in good order.
    COMPLETED = "completed"
    #: The caller left before an agent was on the line.
    ABANDONED = "abandoned"
    #: The product declined to serve it; the reason says why.
    REFUSED = "refused"
    #: The product, the agent or the Asterisk failed.
    FAILED = "failed"
    #: The far end was busy.
    BUSY = "busy"
    #: The far end did not answer.
    NO_ANSWER = "no-answer"
    #: It was cancelled before an answer.
    CANCELED = "canceled"


class Fault(StrEnum):
    """Whose fault it is that a call did not end well: its failure class."""

    CALLER = "caller"
    #: The far end, or a carrier in between.
    FAR_END = "far-end"
    #: The tenant's Asterisk, or what is behind it.
    ASTERISK = "asterisk"
    #: The voice agent.
    AGENT = "agent"
    #: The platform, and what is set there for the organization.
    PLATFORM = "platform"
    #: The product itself.
    US = "us"
    UNKNOWN = "unknown"


class Cause(IntEnum):
    """The Q.850 hang-up causes that the product gives or reads."""

    UNALLOCATED = 1
    NO_ROUTE_DESTINATION = 3
    NORMAL = 16
    BUSY = 17
    NO_RESPONSE = 18
    NO_ANSWER = 19
    REJECTED = 21
    NO_CIRCUIT = 34
    NETWORK_OUT_OF_ORDER = 38
    TEMPORARY_FAILURE = 41
    CONGESTION = 42
    NOT_ALLOWED = 57
    #: "Call having the requested call identity has been cleared": of a media leg that a teardown removes. Asterisk
    #: gives it to no media leg by itself.
    CALL_CLEARED = 86
    RECOVERY_ON_TIMER = 102


#: The states in which a call's legs are wanted.
LIVE = frozenset(State) - {State.ENDING, State.ENDED}

#: The live states in which a call uses a slot of its organization: from its admission on.
USES_SLOT = LIVE - {State.RECEIVED}
#: An ending call that was admitted keeps its slot until its legs are gone, but no longer than this.
ENDING_SLOT_SECONDS = 60

#: The states of a leg that the product originates and that was not answered yet.
DIALLING = frozenset({State.ORIGINATING, State.RINGING})
