"""The call: one row of ari.calls, and one change of it.

    received → admitted → prepared → joining → connected → ending → ended
    originating → ringing ↗

`transitions.advance` says what a fact makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from shared.call import facts
from shared.call.ids import ConnectionVersion
from shared.call.states import Direction, Fault, Outcome, State

#: The caller's number when Asterisk reports none.
UNKNOWN_NUMBER = "unknown"


# Without slots: see `replace`.
@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: a row of ari.calls. All times are Postgres's."""

    call_id: UUID
    connection_id: int
    connection_version: int
    organization_id: int
    channel_id: str
    #: Asterisk's `creationtime` of the caller's leg: text, only ever compared for equality.
    channel_created: str
    #: How many times this channel has entered the app: 1, 2, …
    entry: int
    direction: Direction
    state: State
    received_at: datetime
    state_since: datetime
    deadline_at: datetime | None
    #: 0 as first written; drawn anew by every write, claims included. A write names the value it has read. A counter
    #: would come to the same value again on a server that has lost the last writes.
    lock_version: int = 0
    #: How often the sweep has started this state's step again.
    step_retries: int = 0

    channel_name: str = ""
    caller_number: str = UNKNOWN_NUMBER
    called_number: str = ""
    args: tuple[str, ...] = ()
    #: Asterisk's timestamps of the leg entering and leaving Stasis: they tell a duplicate event from a new entry.
    entered_stamp: str | None = None
    left_stamp: str | None = None

    workflow_id: int | None = None
    user_id: int | None = None
    media_client: str | None = None
    workflow_run_id: int | None = None
    #: The connection's bound on a connected call; None for the setting's.
    call_seconds: float | None = None
    #: If refused, the caller continues in the dialplan instead of being hung up.
    continue_in_dialplan: bool = False

    #: Begins the ids of its legs and bridges, whatever is drawn later; empty if an earlier release wrote the call.
    id_prefix: str = ""

    #: Names the request to originate, once per connection; None for a leg that entered by itself.
    request_id: str | None = None
    #: What to dial for it, such as `PJSIP/4930123@trunk`, and for how long.
    dial_endpoint: str | None = None
    ring_seconds: float | None = None
    #: How the dialling came out (Dial events): BUSY, NOANSWER, …
    dial_status: str | None = None

    #: The last attempt committed; 0 before the first. Every attempt from 1 on may have left something behind.
    attempt: int = 0
    #: The nonce in the ids of each attempt, from the first on; empty, or missing at the end, for one without.
    attempt_nonces: tuple[str, ...] = ()
    #: Until then a request of the last attempt may be under way or take effect; None when its outcome is known. Before
    #: the first attempt: the one request to dial the far end.
    attempt_in_doubt_until: datetime | None = None
    #: The same for earlier requests whose outcome stayed unknown.
    earlier_in_doubt_until: datetime | None = None
    legs_created: bool = False
    media_ready: bool = False

    #: The leg that the platform has transferred the caller to: it is in the bridge in place of the media leg.
    destination_id: str | None = None

    #: The channels that have taken the place of the caller's leg, one after the other. `channel_id` and its creation
    #: time stay those that the call came with: they identify it.
    replacements: tuple[str, ...] = ()

    #: The caller's leg left Stasis or is gone: it must not be touched.
    caller_left: bool = False
    connected_at: datetime | None = None
    ending_at: datetime | None = None
    ended_at: datetime | None = None
    #: It has ended without proof that nothing is left of it: its Asterisk gave no answer for too long.
    unverified: bool = False
    outcome: Outcome | None = None
    reason: str | None = None
    hangup_cause: int | None = None
    #: Whose fault the outcome is (`faults.fault_of`). None: it ended well, or an earlier release ended it.
    fault: Fault | None = None
    #: What the technology of the leg that ended told: the code of SIP, or of a media leg's websocket. From Asterisk
    #: 22.7 on; else None.
    tech_cause: int | None = None
    #: What holds this state up: why its step, or the last attempt, came to nothing so far.
    obstacle: str | None = None

    @property
    def connection(self) -> ConnectionVersion:
        """The connection version the call came in by."""
        return ConnectionVersion(self.connection_id, self.connection_version)

    @property
    def leg_id(self) -> str:
        """The channel of the caller's leg."""
        return self.replacements[-1] if self.replacements else self.channel_id

    def is_leg(self, channel_id: str, created: str) -> bool:
        """True for the channel of the caller's leg, and not for another one of its id.

        One that has taken another's place has its own creation time, or that of the one before (measured).
        """
        return channel_id == self.leg_id and (bool(self.replacements) or created == self.channel_created)

    @property
    def is_unanswered(self) -> bool:
        """True for a leg the product originates that was not seen in Stasis yet: it may be hung up wherever it is."""
        return self.request_id is not None and not self.channel_created

    @property
    def is_dial_begun(self) -> bool:
        """True if a worker may have asked Asterisk to dial, and the outcome is unknown."""
        return self.state is State.ORIGINATING and self.attempt_in_doubt_until is not None

    @property
    def nonce(self) -> str:
        """The nonce of the last attempt."""
        return self.nonce_of(self.attempt)

    def nonce_of(self, attempt: int) -> str:
        """Return the nonce of an attempt; empty for one without."""
        return self.attempt_nonces[attempt - 1] if 1 <= attempt <= len(self.attempt_nonces) else ""

    @property
    def in_doubt_until(self) -> datetime | None:
        """Until when a creating request may still take effect; None when none can."""
        return max(
            (t for t in (self.attempt_in_doubt_until, self.earlier_in_doubt_until) if t is not None), default=None
        )

    @property
    def talk_seconds(self) -> float:
        """Seconds from answered to ended; 0 for a call that was never connected."""
        if self.connected_at is None or self.ending_at is None:
            return 0.0
        return max(0.0, (self.ending_at - self.connected_at).total_seconds())


if TYPE_CHECKING:
    from dataclasses import replace as replace  # noqa: PLC0414 - exported
else:

    def replace(call: Call, /, **changes: Any) -> Call:
        """As `dataclasses.replace`, at a twentieth of its cost: a call has forty fields, a set-up twenty changes."""
        changed = object.__new__(type(call))
        changed.__dict__.update(call.__dict__)
        changed.__dict__.update(changes)
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a fact made of a call."""

    before: Call
    after: Call
    fact: facts.Fact
