"""Events as Asterisk writes them: types, order of fields, time stamps, causes."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

#: A JSON object.
Event = dict[str, Any]

CAUSE_TEXTS = {
    0: "Unknown",
    1: "Unallocated (unassigned) number",
    3: "No route to destination",
    16: "Normal Clearing",
    17: "User busy",
    18: "No user responding",
    19: "User alerting, no answer",
    20: "Subscriber absent",
    21: "Call Rejected",
    26: "Answered elsewhere",
    27: "Destination out of order",
    28: "Invalid number format",
    31: "Normal, unspecified",
    34: "Circuit/channel congestion",
    38: "Network out of order",
    41: "Temporary failure",
    58: "Bearer capability not available",
    127: "Interworking, unspecified",
}

#: The cause in the ChannelHangupRequest of a DELETE, for every reason (measured); the reason's own cause is in the
#: ChannelDestroyed.
DELETED = 32
#: `cause` and `tech_cause` of a media leg by how its media server ended it (measured): it asked for a hang-up, closed
#: the websocket, broke the connection, or sent what is no websocket frame.
MEDIA_HUNG_UP = (16, 1000)
MEDIA_CLOSED = (16, 1001)
MEDIA_LOST = (38, 1001)
MEDIA_GARBAGE = (38, 1003)

#: Values of `DELETE /channels/{id}?reason=`.
CAUSE_BY_REASON = {
    "normal": 16,
    "busy": 17,
    "congestion": 34,
    "no_answer": 19,
    "timeout": 18,
    "rejected": 21,
    "unallocated": 1,
    "normal_unspecified": 31,
    "number_incomplete": 28,
    "codec_mismatch": 58,
    "interworking": 127,
    "failure": 38,
    "answered_elsewhere": 26,
}


#: The clock, in seconds since 1970; a variable, so that a simulation can replace it.
clock: Callable[[], float] = time.time
#: How far the machine's clock is set ahead, in seconds; negative: behind. All Asterisks of the process stand on it.
ahead_seconds: float = 0.0


def timestamp() -> str:
    """Returns the present time, as `2026-11-23T11:39:28.123+0000`."""
    return datetime.fromtimestamp(clock() + ahead_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"


def event(kind: str, **fields: Any) -> Event:
    """Returns an event that begins with its type and time."""
    return {"type": kind, "timestamp": timestamp(), **fields}


def stasis_start(channel: Event, args: list[str], *, replaced: Event | None = None) -> Event:
    """A channel has entered a Stasis app, or has replaced another one there."""
    replacing = {} if replaced is None else {"replace_channel": replaced}
    return event("StasisStart", args=args, channel=channel, **replacing)


def stasis_end(channel: Event) -> Event:
    """A channel has left its Stasis app; it carries no cause."""
    return event("StasisEnd", channel=channel)


def move_failed(channel: Event, destination: str, args: list[str]) -> Event:
    """A channel was to be moved to an app that is not connected, and stays where it is."""
    return event("ApplicationMoveFailed", channel=channel, destination=destination, args=args)


def hangup_request(channel: Event, cause: int, *, soft: bool, tech_cause: int | None = None) -> Event:
    """A client or a party hangs a channel up. Asterisk writes `cause` (and `soft`) in front of `type`."""
    front: Event = {"cause": cause} | ({"soft": True} if soft else {}) | _tech(tech_cause)
    return front | event("ChannelHangupRequest", channel=channel)


def channel_destroyed(channel: Event, cause: int, *, tech_cause: int | None = None) -> Event:
    """A channel is gone; the cause is a field of the event, not of its channel."""
    text = CAUSE_TEXTS.get(cause, "Unknown")
    return event("ChannelDestroyed", cause=cause, cause_txt=text, channel=channel) | _tech(tech_cause)


def _tech(cause: int | None) -> Event:
    return {} if cause is None else {"tech_cause": cause}


def state_change(channel: Event) -> Event:
    """A channel has a new state."""
    return event("ChannelStateChange", channel=channel)


def talking_started(channel: Event) -> Event:
    """A channel with the function TALK_DETECT has sent audio."""
    return event("ChannelTalkingStarted", channel=channel)


def dial(peer: Event, status: str, dialstring: str = "") -> Event:
    """Progress of the dialling of an originated channel: "" at its start, then RINGING, ANSWER, BUSY ..."""
    return event("Dial", dialstatus=status, forward="", dialstring=dialstring, peer=peer)


def entered_bridge(bridge: Event, channel: Event) -> Event:
    """A channel was put into a bridge."""
    return event("ChannelEnteredBridge", bridge=bridge, channel=channel)


def left_bridge(bridge: Event, channel: Event) -> Event:
    """A channel left a bridge."""
    return event("ChannelLeftBridge", bridge=bridge, channel=channel)


def bridge_destroyed(bridge: Event) -> Event:
    """A bridge is gone."""
    return event("BridgeDestroyed", bridge=bridge)


def call_broadcast(channel: Event, caller: str, called: str) -> Event:
    """A call is offered to several apps."""
    return event("CallBroadcast", channel=channel, caller=caller, called=called)


def user_event(name: str, variables: Event) -> Event:
    """An event of a client's own."""
    return event("ChannelUserevent", eventname=name, userevent=variables | {"eventname": name})


def application_replaced() -> Event:
    """A newer websocket has taken over the app."""
    return event("ApplicationReplaced")
