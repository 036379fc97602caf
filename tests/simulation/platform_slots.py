"""The scheduler's comparison of the platform's slots with the calls, and what must hold of these slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set

import greenlet

from scheduler.platform_slots import PlatformSlots as Comparison
from shared import errors
from shared.call.calls import Call
from shared.call.states import State
from tests.simulation.asterisks import NAMING, has_stalled
from tests.simulation.faults import Fault
from tests.simulation.platform_redis import PlatformSlots, SlotHolders
from tests.simulation.platforms import Postgres
from tests.simulation.stores import MemoryStore
from tests.simulation.world import Process, World

_COMPARED_EVERY = 5.0
#: Once all calls are over, nothing is left in the platform's Redis after this: the slots of unanswered legs are looked
#: for once a minute.
SLOT_SECONDS = 70.0


class Comparisons:
    """Compares on a clock, in a process of its own."""

    def __init__(self, world: World, slots: PlatformSlots, postgres: Postgres, store: MemoryStore) -> None:
        self._world = world
        self._job = Comparison(slots, SlotHolders(postgres, store), store.load, NAMING, is_shared=lambda: True)
        self._process = Process("scheduler")
        self._is_running = False

    def tick(self) -> None:
        """Compare now and from now on."""
        self._world.after(_COMPARED_EVERY, self.tick)
        if self._is_running:
            return
        if self._process.is_dead:
            self._process = Process("scheduler")
        self._is_running = True
        self._process.at_death.append(self._ended)
        self._world.start(self._process, "compare slots", self._compare)

    def _compare(self) -> None:
        try:
            self._job.compare()
        except errors.TransientError as exc:
            self._world.tell("scheduler", "slots not compared: %s", exc)
        self._ended()

    def _ended(self) -> None:
        self._is_running = False


class SlotInvariants:
    """Checks the slots, and reports violations to the world.

    Args:
        limit: Each organization's slots.
        named: Returns a call's name in the story.
        check_own: Checks our own count of a call's organization against a number of slots.
    """

    def __init__(
        self,
        world: World,
        store: MemoryStore,
        slots: PlatformSlots,
        *,
        limit: int,
        named: Callable[[Call], str],
        check_own: Callable[[Call, int], None],
    ) -> None:
        self._world = world
        self._store = store
        self._slots = slots
        self._limit = limit
        self._named = named
        self._check_own = check_own
        slots.given_back = self._given_back

    def admitted(self, call: Call) -> None:
        """Check that a call which is admitted has a slot; if that Redis may have lost it, that we count it."""
        if self._name_of(call) in self._used(call):
            return
        # A slot of a call that a fail-over has forgotten may be taken for the new call of its channel.
        is_exact = self._slots.is_exact and Fault.COMMITS_LOST not in self._world.inflicted
        if is_exact and not has_stalled(greenlet.getcurrent()):
            self._world.violation(f"{self._named(call)} is admitted without a slot at the platform")
        elif call.organization_id in self._store.counted_at:
            self._check_own(call, self._limit)

    def lacking(self) -> list[Call]:
        """Return the calls that should have a slot by now, and have none.

        A fail-over may have forgotten a media leg of a call. It is removed once the call has another one, and the API
        gives the slot of their run back with the first one's pipeline.
        """
        calls = (row.call for row in self._store.rows.values() if row.call.state is State.CONNECTED)
        is_forgotten = any(fault is Fault.COMMITS_LOST for _, fault in self._world.tally)
        given_back = self._slots.released if is_forgotten else set()
        return [
            call for call in calls
            if call.destination_id is None and call.workflow_run_id not in given_back and not self._has_slot(call)
        ]  # fmt: skip

    def check_recovered(self) -> None:
        """Check that every call has its slot again, whatever was lost."""
        for call in self.lacking():
            self._world.violation(f"{self._named(call)} has no slot at the platform")

    def check_left(self) -> None:
        """Check that no call has left anything. A run whose call no process learned of is left to the platform."""
        slots = self._slots
        runs = {row.call.workflow_run_id for row in self._store.rows.values()}
        left = [f"slot {name}" for used in slots.used.values() for name in used if not name.startswith("api-")]
        left += [f"the slot of run {run_id}" for run_id in slots.bound if run_id in runs]
        left += [f"the note of channel {channel_id}" for channel_id in slots.notes]
        left += [f"slot {name} in the registry" for name in slots.registry]
        for each in left:
            self._world.violation(f"left over at the platform: {each}")

    def _given_back(self, names: Collection[str]) -> None:
        """Check that no slot is given back whose call goes on; unless a fail-over may have forgotten its end."""
        if any(fault is Fault.COMMITS_LOST for _, fault in self._world.tally):
            return
        for call in (row.call for row in self._store.rows.values()):
            is_over = call.state in (State.ENDING, State.ENDED)
            if not is_over and call.destination_id is None and self._name_of(call) in names:
                self._world.violation(f"the slot of {self._named(call)} is given back, and it goes on: {call.state}")

    def _has_slot(self, call: Call) -> bool:
        bound = self._slots.bound.get(call.workflow_run_id or 0, (0, ""))[1]
        return not self._used(call).isdisjoint({self._name_of(call), bound})

    def _used(self, call: Call) -> Set[str]:
        return self._slots.used.get(call.organization_id, {}).keys()

    def _name_of(self, call: Call) -> str:
        return self._slots.slot_of(call, ()).name
