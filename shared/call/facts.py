"""What can happen to a call, in the past tense. Each is the input of one `calls.advance`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Tenant, route, quota and concurrency were checked: the call may be served."""

    workflow_id: int
    user_id: int
    #: The websocket client of Asterisk that reaches the voice agent, as configured when the call came.
    media_client: str
    #: The connection's own bound on a connected call; None for the setting's.
    call_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAttached:
    """A leg that the platform originated is ours from here on: its run is of this tenant and waits for a call."""

    workflow_id: int
    user_id: int
    media_client: str
    workflow_run_id: int
    call_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The call may not be served. `hangup_cause` is a Q.850 number for the caller's network."""

    reason: str
    hangup_cause: int
    #: The caller goes on in the dialplan, told why, instead of being hung up.
    continue_in_dialplan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated:
    """The workflow run exists, in the same transaction as this fact."""

    workflow_run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegun:
    """A worker is about to ask for this attempt's media leg and bridge; nothing was asked yet.

    Until `in_doubt_until` a request of this attempt may be on its way, or may still take effect.
    """

    attempt: int
    in_doubt_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsCreated:
    """Asterisk accepted both the media leg and the bridge. The leg is not ready before its own StasisStart."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRefused:
    """Asterisk declined to make the media leg or the bridge, in so many words. Trying again would not help."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsUnknown:
    """Nobody knows whether the media leg or the bridge was made: a time-out, a 5xx, a worker that died."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReady:
    """The media leg entered Stasis: the voice agent has accepted it."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGone:
    """The media leg ended, or never came up.

    `heard`: Asterisk said so. One that is only found missing may have gone because no event socket was up: then no leg
    can enter Stasis, and nobody hears of it.
    """

    attempt: int
    hangup_cause: int | None = None
    reason: str = "media leg ended"
    reported_by_event: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The caller is answered and both legs are in the bridge; verified by asking."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused:
    """The legs cannot be joined, in Asterisk's own words."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLost:
    """A connected call's bridge is gone, or lacks one of its legs."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerHangingUp:
    """A hang-up of the caller's leg was asked for (ChannelHangupRequest): the leg is still in Stasis."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLeft:
    """The caller's leg left Stasis (StasisEnd). It may live on in the dialplan: it is no longer ours to touch."""

    #: Asterisk's timestamp of it: tells a StasisStart that came late from one that came after.
    stamp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerGone:
    """The caller's leg no longer exists (ChannelDestroyed, or Asterisk said so)."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Originated:
    """Asterisk took our originating request: it dials the far end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """How the dialling of a leg that we originated came out: BUSY, NOANSWER, CONGESTION, …"""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FarEndAnswered:
    """The far end of a leg that we originated answered: its StasisStart, or a resync found it in our app."""

    channel_name: str
    #: Asterisk's `creationtime` of the leg.
    channel_created: str
    #: Asterisk's timestamp of the StasisStart; None when a resync found it.
    stamp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginateRefused:
    """Asterisk declined to originate: nothing was dialled."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRequested:
    """Somebody of ours wants the call ended: an operator, a limit, a restored database."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The sweep found the call overdue and in nobody's hands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRemoved:
    """Every leg and bridge of the call is gone, each verified; no request can bring one back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalPending:
    """Something is not verified gone yet: Asterisk is unreachable, or a creating request may still take effect."""

    reason: str
    not_before: datetime | None = None


Fact = (
    Admitted
    | RunAttached
    | Refused
    | RunCreated
    | AttemptBegun
    | LegsCreated
    | LegsRefused
    | LegsUnknown
    | MediaReady
    | MediaGone
    | Joined
    | JoinRefused
    | BridgeLost
    | CallerHangingUp
    | CallerLeft
    | CallerGone
    | Originated
    | Dialled
    | FarEndAnswered
    | OriginateRefused
    | EndRequested
    | DeadlinePassed
    | LegsRemoved
    | RemovalPending
)
