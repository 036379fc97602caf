"""Requests for outbound calls: checked before anything is written or dialled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared import errors
from shared.call import call_settings

_LONGEST_REQUEST_ID = 200
SHORTEST_RING_SECONDS = 1
LONGEST_RING_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """A request for a call through an organization's Asterisk."""

    organization_id: int
    #: Digits or an extension.
    number: str
    #: Chosen by the requester. The same id again means the same call, which is dialled once.
    request_id: str
    #: For a new run.
    workflow_id: int | None = None
    #: A run that waits for a call.
    workflow_run_id: int | None = None
    #: Shown to the far end; None: the first of the connection's own numbers.
    caller_id: str | None = None
    #: None: the usual time.
    ring_seconds: float | None = None

    def checked(self) -> CallRequest:
        """Return the request with its numbers in the form in which they are dialled.

        Raises:
            InvalidRequest: Says what is wrong with it.
        """
        if not (0 < len(self.request_id) <= _LONGEST_REQUEST_ID and self.request_id.isprintable()):
            raise errors.InvalidRequest(f"the request id is not 1 to {_LONGEST_REQUEST_ID} printable characters")
        if self.ring_seconds is not None and not SHORTEST_RING_SECONDS <= self.ring_seconds <= LONGEST_RING_SECONDS:
            raise errors.InvalidRequest(
                f"the ring time is not between {SHORTEST_RING_SECONDS} and {LONGEST_RING_SECONDS} seconds"
            )
        if self.workflow_id is None and self.workflow_run_id is None:
            raise errors.InvalidRequest("it names neither a workflow, for a new run, nor a run that waits for a call")
        caller_id = call_settings.number(self.caller_id) if self.caller_id is not None else None
        return replace(self, number=call_settings.number(self.number), caller_id=caller_id)
