"""Compares the slots in the platform's Redis with the calls, in both directions.

A slot whose call was never written, or has ended without giving it back, is given back. A call that was admitted while
that Redis was away, or before it was emptied, gets its slot afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol
from uuid import UUID

import structlog

from shared import errors
from shared.call.calls import Call
from shared.call.legs import Naming, Role
from shared.platform.ports import RegisteredSlot, SlotRegistry
from shared.storage.slot_holders import SlotHolder

log = structlog.stdlib.get_logger(__name__)

#: A slot is taken before its call is written: a younger one is not judged.
_YOUNG_SECONDS = 15.0
#: Most slots that one look writes, each by a request.
_BATCH = 500
#: One look of so many, beside the first one and that after an outage, is also for the runs of unanswered legs.
_UNANSWERED_EVERY = 12


class Holders(Protocol):
    """The calls that may hold a slot. `slot_holders.SlotHolders` is the adapter."""

    def all(self) -> Collection[SlotHolder]:
        """Return all of them."""

    def unanswered(self) -> Mapping[int, UUID]:
        """Return the calls of the last minutes that were dialled and not answered, by their runs."""


class PlatformSlots:
    """Keeps the slots in the platform's Redis right.

    Args:
        load: Returns a call as it is now.
        naming: Names the media legs of calls.
        is_shared: Returns whether the platform counts our calls with its own.
    """

    def __init__(
        self,
        registry: SlotRegistry,
        holders: Holders,
        load: Callable[[UUID], Call | None],
        naming: Naming,
        *,
        is_shared: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._holders = holders
        self._load = load
        self._naming = naming
        self._is_shared = is_shared
        #: After so many looks it is looked for slots of unanswered legs. They are in no registry of ours, and are left
        #: by a worker that has died after it had ended their runs, or gave them back to a Redis that was away.
        self._looks_left = 0

    def compare(self) -> None:
        """Look once. Raises a TransientError."""
        try:
            # In this order: a call that ends in between is given back, which may be repeated, and no slot is written
            # for it.
            registered = self._registry.registered()
            holders = {self._name_of(each): each for each in self._holders.all()}
            self._give_back(registered, holders)
            if self._is_shared():
                self._write(registered, holders)
            if self._looks_left == 0:
                self._give_back_unanswered()
                self._looks_left = _UNANSWERED_EVERY
            self._looks_left -= 1
        except errors.PlatformRedisAway:
            self._looks_left = 0
            raise

    def _give_back(self, registered: dict[str, RegisteredSlot], holders: Collection[str]) -> None:
        old = {name: each.slot for name, each in registered.items() if each.age_seconds > _YOUNG_SECONDS}
        left = [slot for name, slot in old.items() if name not in holders]
        for slot in left:
            self._registry.remove(slot)
        if left:
            log.info("slots without a call were given back to the platform", slots=len(left))

    def _write(self, registered: Mapping[str, RegisteredSlot], holders: dict[str, SlotHolder]) -> None:
        needing = {name: each for name, each in holders.items() if each.needs_one}
        self._bind({
            each.call_id for name, each in needing.items()
            if name in registered and registered[name].slot.workflow_run_id != each.workflow_run_id
        })  # fmt: skip
        lacking = [each for name, each in needing.items() if name not in registered]
        for each in lacking[:_BATCH]:
            call = self._load(each.call_id)
            if call is not None and call.ending_at is None:
                slot = self._registry.slot_of(call, self._media_ids(call))
                self._registry.write(slot, limit=None, age_seconds=each.age_seconds)
        if lacking:
            log.info("slots were written to the platform afterwards", calls=len(lacking))

    def _bind(self, call_ids: Collection[UUID]) -> None:
        """Bind slots that were taken for runs which were not written, or were forgotten by a fail-over."""
        for call_id in call_ids:
            call = self._load(call_id)
            if call is not None and call.ending_at is None:
                self._registry.bind(call, media_ids=self._media_ids(call))

    def _give_back_unanswered(self) -> None:
        calls = self._holders.unanswered()
        for run_id in self._registry.bound_among(calls):
            call = self._load(calls[run_id])
            if call is not None:
                self._registry.remove(self._registry.slot_of(call, ()))

    def _media_ids(self, call: Call) -> list[str]:
        return [attempt.legs[Role.MEDIA] for attempt in self._naming.attempts(call)]

    def _name_of(self, holder: SlotHolder) -> str:
        return self._registry.name(
            organization_id=holder.organization_id,
            channel_id=holder.channel_id,
            channel_created=holder.channel_created,
            entry=holder.entry,
        )
