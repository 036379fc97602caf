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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The call may not be served. `hangup_cause` is a Q.850 number for the caller's network."""

    reason: str
    hangup_cause: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated:
    """The workflow run exists, in the same transaction as this fact."""

    workflow_run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegun:
    """A worker is about to ask for this attempt's media leg and bridge; nothing was asked yet.

    Until `open_until` a request of this attempt may be on its way, or may still take effect.
    """

    attempt: int
    open_until: datetime


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
    """The media leg ended, or never came up."""

    attempt: int
    hangup_cause: int | None = None
    why: str = "media leg ended"


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
    """The caller's leg no longer exists (ChannelDestroyed, or Asterisk said so).

    `dial_status` is the last one heard of a leg that we originated, such as BUSY or NOANSWER.
    """

    hangup_cause: int | None = None
    dial_status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ringing:
    """The far end of a leg that we originated rings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FarEndAnswered:
    """The far end of a leg that we originated answered: its StasisStart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginateRefused:
    """Asterisk declined to originate."""

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

    why: str
    not_before: datetime | None = None


Fact = (
    Admitted
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
    | Ringing
    | FarEndAnswered
    | OriginateRefused
    | EndRequested
    | DeadlinePassed
    | LegsRemoved
    | RemovalPending
)
