"""What can happen to a call, in the past tense: the inputs of `transitions.advance`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Tenant, route, quota and slots were checked: the call may be served."""

    workflow_id: int
    user_id: int
    #: The websocket client of Asterisk that reaches the voice agent, as configured when the call came.
    media_client: str
    #: The connection's bound on a connected call; None for the setting's.
    call_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAttached:
    """A leg that the platform originated is served: its run belongs to this tenant and waits for a call."""

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
    #: The caller continues in the dialplan, which can read the reason, instead of being hung up.
    continue_in_dialplan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated:
    """The workflow run exists, in the same transaction as this fact."""

    workflow_run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegun:
    """A worker is about to request this attempt's media leg and bridge; no request was made yet.

    Until `in_doubt_until` a request of this attempt may be under way, or may still take effect.
    """

    attempt: int
    in_doubt_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsCreated:
    """Asterisk created both the media leg and the bridge. The leg is ready at its own StasisStart, not before."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsFound:
    """Media leg and bridge of an attempt that was given up are there: only the answer, or its worker, was lost."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRefused:
    """Asterisk refused to create the media leg or the bridge. Trying again would not help."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsUnknown:
    """It is unknown whether the media leg or the bridge was created: a time-out, a 5xx, a worker that died."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReady:
    """The media leg entered Stasis: the voice agent has accepted it."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGone:
    """The media leg ended, or never came up.

    One that was never ready was refused by the voice agent, or did not reach it; or no event socket was connected (a
    channel cannot enter Stasis then).
    """

    attempt: int
    hangup_cause: int | None = None
    reason: str = "media leg ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The caller is answered and every leg is in the bridge; verified by a GET."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused:
    """The legs cannot be joined; the reason is Asterisk's answer."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLost:
    """A connected call's bridge is gone, or lacks one of its legs."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """The platform has put another leg into the bridge, in place of the media leg; verified by a GET."""

    attempt: int
    destination_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationGone:
    """The leg that the caller was transferred to left Stasis or is gone."""

    destination_id: str
    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerHangingUp:
    """A hang-up of the caller's leg was requested (ChannelHangupRequest): the leg is still in Stasis."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLeft:
    """The caller's leg left Stasis (StasisEnd). It may continue in the dialplan: it must not be touched any more."""

    #: Asterisk's timestamp of the StasisEnd: it tells a late StasisStart from a new one.
    stamp: str | None = None
    #: That of the ChannelHangupRequest before it, if there was one.
    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerGone:
    """The caller's leg no longer exists (ChannelDestroyed, or Asterisk said so)."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Originated:
    """Asterisk accepted the originating request: it dials the far end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """How the dialling of an originated leg came out: BUSY, NOANSWER, CONGESTION, …"""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FarEndAnswered:
    """The far end of an originated leg answered: its StasisStart, or a resync found it in the app."""

    channel_name: str
    #: Asterisk's `creationtime` of the leg.
    channel_created: str
    #: Asterisk's timestamp of the StasisStart; None when a resync found it.
    stamp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginateRefused:
    """Asterisk refused to originate: nothing was dialled."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRequested:
    """The call is to end: an operator, a limit or a restored database requires it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The sweep found the call overdue and unclaimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRemoved:
    """Every leg and bridge of the call is gone, each verified, and no request can bring one back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalPending:
    """Something is not verified gone yet: Asterisk is unreachable, or a creating request may still take effect."""

    reason: str
    not_before: datetime | None = None
    #: Only legs or bridges are still to go.
    run_is_over: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFound:
    """A resync found the caller's leg still in Stasis, although its call has ended."""


Fact = (
    Admitted
    | RunAttached
    | Refused
    | RunCreated
    | AttemptBegun
    | LegsCreated
    | LegsFound
    | LegsRefused
    | LegsUnknown
    | MediaReady
    | MediaGone
    | Joined
    | JoinRefused
    | BridgeLost
    | Transferred
    | DestinationGone
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
    | CallerFound
)
