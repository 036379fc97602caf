"""What can happen to a call, in the past tense: the inputs of `transitions.advance`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.call.states import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Tenant, route, quota and slots were checked: the call may be served."""

    workflow_id: int
    user_id: int
    #: The websocket client of Asterisk that reaches the voice agent, as configured when the call came.
    media_client: str
    #: The connection's bound on a connected call; None for the setting's.
    call_seconds: float | None = None
    #: The run that was created along with this fact, for a quota that is asked about runs; None: it is yet to be made.
    workflow_run_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAttached:
    """A leg that the platform originated is served: its run belongs to this tenant and waits for a call."""

    workflow_id: int
    user_id: int
    media_client: str
    workflow_run_id: int
    call_seconds: float | None = None
    #: As the run names them; None if it does not.
    caller_number: str | None = None
    called_number: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The call may not be served. `hangup_cause` is a Q.850 number for the caller's network."""

    reason: str
    hangup_cause: int
    #: The caller continues in the dialplan, which can read the reason, instead of being hung up.
    continue_in_dialplan: bool = False
    #: The limit that refuses it; empty if none does.
    limit: Literal["", "concurrent-calls", "platform-slots", "quota"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated:
    """The workflow run exists, in the same transaction as this fact."""

    workflow_run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFact:
    """Something happened to one attempt. It says nothing of another one with the same number and another nonce."""

    attempt: int
    nonce: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegun(AttemptFact):
    """A worker is about to request this attempt's media leg and bridge; no request was made yet.

    Until `in_doubt_until` a request of this attempt may be under way, or may still take effect.
    """

    in_doubt_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsCreated(AttemptFact):
    """Asterisk created both the media leg and the bridge. The leg is ready at its own StasisStart, not before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsFound(AttemptFact):
    """Media leg and bridge of an attempt that was given up are there: only the answer, or its worker, was lost."""

    #: Both were there when it was looked for them: each request of the attempt has taken effect.
    is_complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRefused(AttemptFact):
    """Asterisk refused to create the media leg or the bridge. Trying again would not help."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsUnknown(AttemptFact):
    """It is unknown whether the media leg or the bridge was created: a time-out, a 5xx, a worker that died."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReady(AttemptFact):
    """The media leg entered Stasis: the voice agent has accepted it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGone(AttemptFact):
    """The media leg ended, or never came up.

    One that was never ready was refused by the voice agent, or did not reach it; or no event socket was connected (a
    channel cannot enter Stasis then).
    """

    hangup_cause: int | None = None
    #: Of its websocket: 1000 and up.
    tech_cause: int | None = None
    reason: str = "media leg ended"
    #: Found by a look: no event told of it, so most likely no event socket was connected when the leg came up.
    is_found: bool = False
    #: The voice agent has not begun the call's run: it accepted the socket, and refused it then.
    is_refusal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(AttemptFact):
    """The caller is answered and every leg is in the bridge; verified by a GET."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused(AttemptFact):
    """The legs cannot be joined; the reason is Asterisk's answer."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLost(AttemptFact):
    """A connected call's bridge is gone, or lacks one of its legs."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred(AttemptFact):
    """The platform has put another leg into the bridge, in place of the media leg; verified by a GET."""

    destination_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationGone:
    """The leg that the caller was transferred to left Stasis or is gone."""

    destination_id: str
    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LegReplaced:
    """Another channel has taken the place of a leg: a transfer, a pick-up, any masquerade. The call follows."""

    replaced_id: str
    channel_id: str
    channel_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFact:
    """Something happened to the caller's leg. It says nothing of a channel that has taken its place since."""

    #: The channel; None for the leg that the caller has by now.
    leg_id: str | None = None
    #: What its technology told, such as the code of SIP; None where Asterisk told none.
    tech_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerHangingUp(CallerFact):
    """A hang-up of the caller's leg was requested (ChannelHangupRequest): the leg is still in Stasis."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLeft(CallerFact):
    """The caller's leg left Stasis (StasisEnd). It may continue in the dialplan: it must not be touched any more."""

    #: Asterisk's timestamp of the StasisEnd: it tells a late StasisStart from a new one.
    stamp: str | None = None
    #: That of the ChannelHangupRequest before it, if there was one.
    hangup_cause: int | None = None
    #: It was seen to be up still: it goes on elsewhere.
    is_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerGone(CallerFact):
    """The caller's leg no longer exists (ChannelDestroyed, or Asterisk said so)."""

    hangup_cause: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DialBegun:
    """A worker is about to ask Asterisk to dial the far end, once; no request was made yet.

    Until `in_doubt_until` the request may be under way, or may still take effect.
    """

    in_doubt_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DialUnsent:
    """The request to dial was certainly not sent: another one may be made. It was begun with this `in_doubt_until`."""

    in_doubt_until: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DialLost:
    """The request to dial may have been made, its outcome is unknown, and Asterisk has no such leg."""


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
class Hindered:
    """The step of a state came to nothing, or what it waits for has not come: the deadline has it tried again.

    `obstacle` says why, as `shared/call/faults.py` reads it.
    """

    state: State
    obstacle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The sweep found the call overdue and unclaimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied:
    """The worker that had claimed the call shows no life: its step is lost. It may wake up all the same, late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsRemoved(CallerFact):
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
    | LegReplaced
    | CallerHangingUp
    | CallerLeft
    | CallerGone
    | DialBegun
    | DialUnsent
    | DialLost
    | Originated
    | Dialled
    | FarEndAnswered
    | OriginateRefused
    | EndRequested
    | Hindered
    | DeadlinePassed
    | WorkerDied
    | LegsRemoved
    | RemovalPending
    | CallerFound
)
