"""The platform's Redis in memory: whether it answers, the slots in it, and what the platform's API does with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar, cast
from uuid import UUID

from shared import errors
from shared.call.states import Direction, State
from shared.platform.dograh import platform_redis
from shared.platform.dograh.slots import Slots
from shared.platform.ports import RegisteredSlot, Slot, SlotAnswer
from shared.storage.slot_holders import SlotHolder
from tests.simulation.platforms import Postgres
from tests.simulation.stores import MemoryStore
from tests.simulation.world import World

_T = TypeVar("_T")
#: A request that gets no answer is given up after this. Seconds.
_REQUEST_SECONDS = 0.2
#: How many of those have their effect all the same.
_DONE_UNANSWERED = 0.3
#: The platform drops a slot that was taken so long ago; a call has its own once its admission had the time. Seconds.
_OLDEST_SECONDS = 1200.0
_ADMITTED_SECONDS = 5.0


class PlatformRedis:
    """The server."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_away = False

    def ask(self, what: str, effect: Callable[[], _T]) -> _T:
        """Make one request of the current fiber. Raises PlatformRedisAway."""

        def answer() -> _T:
            if not self.is_away:
                return effect()
            if self._world.choices.happens(_DONE_UNANSWERED):
                effect()
            self._world.pause(_REQUEST_SECONDS)
            raise errors.PlatformRedisAway("no answer in time")

        return self._world.port_call(
            f"platform's Redis: {what}", answer, latency_seconds=0.0005, own_faults=(),
            inflict=lambda _fault, effect: effect(),
        )  # fmt: skip


class PlatformSlots(Slots):
    """What the scripts of `Slots` do in that Redis, and what the API does there.

    Attributes:
        used: the slots, by organization, each with the moment from which it counts.
        bound: run → its organization and slot.
        released: the runs whose slot the API has given back at the end of a pipeline.
        notes: channel → its run.
        is_exact: all slots of calls are there: nothing was lost, and none was given back without its call.
        given_back: called before slots are dropped that a product's process gives back, with their names.
    """

    def __init__(self, world: World, server: PlatformRedis) -> None:
        super().__init__(cast(platform_redis.PlatformRedis, server))
        self._world = world
        self._server = server
        self.used: dict[int, dict[str, float]] = {}
        self.bound: dict[int, tuple[int, str]] = {}
        self.released: set[int] = set()
        self.notes: dict[str, int] = {}
        self.registry: dict[str, tuple[float, Slot]] = {}
        self.is_exact = True
        self.given_back: Callable[[Collection[str]], None] = lambda _names: None

    # ── the API ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, organization_id: int, run_id: int) -> None:
        """Take the slot of a call that the platform is about to make."""
        name = f"api-{run_id}"
        self.used.setdefault(organization_id, {})[name] = self._world.now
        self.bound[run_id] = organization_id, name

    def release(self, run_id: int) -> None:
        """Give the slot of a run back, as the API does at the end of its pipeline."""
        self.released.add(run_id)
        organization_id, name = self.bound.pop(run_id, (0, ""))
        self.used.get(organization_id, {}).pop(name, None)

    def flush(self) -> None:
        """Lose everything."""
        self.is_exact = False
        for kept in (self.used, self.bound, self.notes, self.registry):
            kept.clear()

    # ── the ports ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, slot: Slot, *, limit: int | None, age_seconds: float = 0.0, only_binds: bool = False) -> SlotAnswer:
        def write() -> SlotAnswer:
            return self._write(slot, limit, age_seconds, only_binds=only_binds)

        return self._ask("bind a slot" if only_binds else "take a slot", write)

    def remove(self, slot: Slot) -> None:
        self._ask("give a slot back", lambda: self._remove(slot))

    def registered(self) -> dict[str, RegisteredSlot]:
        def read() -> dict[str, RegisteredSlot]:
            now = self._world.now
            return {
                name: RegisteredSlot(slot=slot, age_seconds=now - taken)
                for name, (taken, slot) in self.registry.items()
            }

        return self._ask("read the slots", read)

    def bound_among(self, run_ids: Collection[int]) -> set[int]:
        return self._ask("read the bindings", lambda: self.bound.keys() & set(run_ids))

    def _ask(self, what: str, effect: Callable[[], _T]) -> _T:
        try:
            return self._server.ask(what, effect)
        except errors.PlatformRedisAway:
            self.is_exact = False
            raise

    def _write(self, slot: Slot, limit: int | None, age_seconds: float, *, only_binds: bool) -> SlotAnswer:
        run_id, now = slot.workflow_run_id, self._world.now
        is_registered = slot.name in self.registry
        if is_registered and not only_binds:
            return SlotAnswer.TAKEN
        is_bound = run_id in self.bound
        used = self.used.setdefault(slot.organization_id, {})
        if not is_bound and slot.name not in used:
            if only_binds and not is_registered:
                return SlotAnswer.UNKNOWN
            for name in [name for name, taken in used.items() if taken < now - _OLDEST_SECONDS]:
                del used[name]
            if limit is not None and len(used) >= limit:
                return SlotAnswer.FULL
            used[slot.name] = now - age_seconds
        _, written = self.registry.get(slot.name, (now, slot))
        self._forget_written(slot, is_all=False)
        if run_id is not None:
            if not is_bound:
                self.bound[run_id] = slot.organization_id, slot.name
            for channel_id in slot.channel_ids:
                self.notes.setdefault(channel_id, run_id)
        if written.workflow_run_id == run_id:
            channel_ids = tuple(dict.fromkeys((*slot.channel_ids, *written.channel_ids)))
            slot = replace(slot, channel_ids=channel_ids)
        self.registry[slot.name] = now, slot
        return SlotAnswer.TAKEN

    def _remove(self, slot: Slot) -> None:
        run_id = slot.workflow_run_id
        bound = self.bound.get(run_id or 0, (0, ""))[1]
        if bound != slot.name and bound in self.registry:
            bound = ""
        self.given_back([name for name in (bound, slot.name) if name in self.used.get(slot.organization_id, {})])
        self._forget_written(slot, is_all=True)
        if run_id is not None:
            if bound:
                self.release(run_id)
            self._forget(slot.channel_ids, run_id)
        self.used.get(slot.organization_id, {}).pop(slot.name, None)
        self.registry.pop(slot.name, None)

    def _forget_written(self, slot: Slot, *, is_all: bool) -> None:
        """Remove what was written for another run, whose call was not written, or with another run later."""
        if slot.name not in self.registry:
            return
        _, written = self.registry[slot.name]
        run_id = written.workflow_run_id
        if run_id is None or (run_id == slot.workflow_run_id and not is_all):
            return
        if run_id != slot.workflow_run_id and self.bound.get(run_id, (0, ""))[1] == slot.name:
            del self.bound[run_id]
        self._forget(written.channel_ids, run_id)

    def _forget(self, channel_ids: Collection[str], run_id: int) -> None:
        for channel_id in channel_ids:
            if self.notes.get(channel_id) == run_id:
                del self.notes[channel_id]


class SlotHolders:
    """The calls that may hold a slot: what the statements of `slot_holders` find."""

    def __init__(self, postgres: Postgres, store: MemoryStore) -> None:
        self._postgres = postgres
        self._store = store

    def all(self) -> list[SlotHolder]:
        return self._postgres.statement("slot holders", self._all)

    def unanswered(self) -> dict[int, UUID]:
        return self._postgres.statement("unanswered legs", self._unanswered)

    def _all(self) -> list[SlotHolder]:
        now = self._store.now()
        return [
            SlotHolder(
                call_id=call.call_id,
                organization_id=call.organization_id,
                channel_id=call.channel_id,
                channel_created=call.channel_created,
                entry=call.entry,
                workflow_run_id=call.workflow_run_id,
                needs_one=call.state is not State.ENDING
                and call.workflow_run_id is not None
                and call.destination_id is None
                and (now - call.received_at).total_seconds() >= _ADMITTED_SECONDS,
                age_seconds=(now - call.received_at).total_seconds(),
            )
            for call in (row.call for row in self._store.rows.values())
            if call.state is not State.ENDED
        ]

    def _unanswered(self) -> dict[int, UUID]:
        return {
            call.workflow_run_id: call.call_id
            for call in (row.call for row in self._store.rows.values())
            if call.state is State.ENDED
            and call.direction is Direction.OUTBOUND
            and call.connected_at is None
            and call.workflow_run_id is not None
        }
