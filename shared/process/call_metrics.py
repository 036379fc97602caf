"""Metrics of calls, from what the call writer has stored: its `Observer`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

from shared import spans
from shared.call import facts, faults
from shared.call.calls import Call, Change
from shared.call.states import State
from shared.process import metrics
from shared.process.metric_kinds import guarded

#: Most calls that are being set up in one process of which it is kept how long their event had waited.
_KEPT = 10_000


class CallMetrics:
    """Counts what becomes of calls.

    A call's row does not tell how long its event had waited. So this process remembers it until the call is connected,
    which it is here: its media leg is awaited where it was created. Of one that is connected elsewhere it is left out.
    """

    def __init__(self) -> None:
        self._waited: OrderedDict[UUID, float] = OrderedDict()

    @guarded
    def arrived(self, call: Call, waited_seconds: float) -> None:
        """A call is about to be written; its event has waited for so long."""
        self._waited[call.call_id] = waited_seconds
        while len(self._waited) > _KEPT:
            self._waited.popitem(last=False)

    @guarded
    def changed(self, changes: Sequence[Change]) -> None:
        """These changes of one call are stored."""
        for change in changes:
            if isinstance(change.fact, facts.Refused) and change.fact.limit:
                metrics.QUOTA_REFUSALS.add(change.fact.limit)
            is_over_again = change.after.state is State.ENDED and _has_ended(change.before)
            if change.after.state is not change.before.state and not is_over_again:
                self._entered(change.after)

    @guarded
    def ended(self, call: Call) -> None:
        """A call that was over before it was known is stored."""
        self._entered(call)

    def _entered(self, call: Call) -> None:
        if call.state is State.CONNECTED and call.connected_at is not None:
            waited_seconds = self._waited.pop(call.call_id, 0.0)
            took_seconds = (call.connected_at - call.received_at).total_seconds()
            metrics.CALL_SETUP.observe(
                waited_seconds + took_seconds, call.direction, trace_id=spans.trace_id(call.call_id)
            )
        elif call.state is State.ENDING:
            self._waited.pop(call.call_id, None)
        elif call.state is State.ENDED and call.outcome is not None:
            metrics.CALLS_ENDED.add(call.direction, call.outcome, _fault(call))


def _has_ended(call: Call) -> bool:
    """True for a call that is being ended again: its caller was found, or came back, after it was over."""
    return call.ending_at is not None and call.state_since > call.ending_at


def _fault(call: Call) -> str:
    # A call that an earlier release brought to its outcome has none in its row.
    return call.fault or faults.fault_of(call.outcome, call.reason) or "none"
