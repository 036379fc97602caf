"""What a call has on its Asterisk: legs, each with a role, and the bridge that joins them.

Join, verification, resync and teardown go over the legs of a call, whatever roles there are; only what one role alone
does (answering the caller, asking for the media leg) names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from shared.call import ids
from shared.call.calls import Call


class Role(StrEnum):
    """What a leg is in a call."""

    #: The channel that entered Stasis; for an outbound call the far end.
    CALLER = "caller"
    #: The external media channel to the voice agent.
    MEDIA = "media"
    #: The leg that the platform has transferred the caller to, in place of the media leg.
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The ids of one attempt: what its requests may have created."""

    number: int
    #: The legs created for the attempt, by role.
    legs: dict[Role, str]
    bridge_id: str


class Naming:
    """Names the legs and bridges of calls.

    Args:
        prefix: Begins the ids of new calls; a call keeps the prefix that it was made with.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def prefix_of(self, call: Call) -> str:
        """Return what the ids of a call begin with."""
        return call.id_prefix or self.prefix

    def is_of(self, call: Call, own: ids.OwnId) -> bool:
        """Return whether an id, read back, is one of this call's, of whatever attempt."""
        return (own.call_id, own.prefix) == (call.call_id, self.prefix_of(call))

    def is_known(self, call: Call, own: ids.OwnId) -> bool:
        """Return whether an id of this call is of an attempt in its row.

        What is not was left by an attempt whose commit is lost: a fail-over has forgotten it.
        """
        return 1 <= own.attempt <= call.attempt and own.nonce == call.nonce_of(own.attempt)

    def legs(self, call: Call) -> dict[Role, str]:
        """Return the channel id of each leg that belongs in the call's bridge."""
        if call.destination_id is not None:
            return {Role.CALLER: call.leg_id, Role.DESTINATION: call.destination_id}
        return {Role.CALLER: call.leg_id, **self.attempt(call, call.attempt).legs}

    def bridge_id(self, call: Call) -> str:
        """Return the id of the newest attempt's bridge."""
        return self.attempt(call, call.attempt).bridge_id

    def media_id(self, call: Call) -> str:
        """Return the channel id of the newest attempt's media leg."""
        return self.attempt(call, call.attempt).legs[Role.MEDIA]

    def attempt(self, call: Call, number: int, nonce: str | None = None) -> Attempt:
        """Return the ids of one attempt.

        Args:
            nonce: Of an attempt that is not in the call's row; None for the row's.
        """
        prefix, drawn = self.prefix_of(call), call.nonce_of(number) if nonce is None else nonce
        return Attempt(
            number=number,
            legs={Role.MEDIA: ids.media_id(prefix, call.call_id, number, drawn)},
            bridge_id=ids.bridge_id(prefix, call.call_id, number, drawn),
        )

    def attempts(self, call: Call) -> Iterator[Attempt]:
        """Yield every attempt that was committed: each may have left something behind."""
        return (self.attempt(call, number) for number in range(1, call.attempt + 1))
