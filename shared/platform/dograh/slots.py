"""The slots in the platform's Redis, in which its API counts calls: taken by the platform's own atomic rules.

A slot's name derives from the leg that it is for. So a call that is reported twice, or again after a worker has died,
takes one slot, and it can be given back from the call's row alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import redis

from shared import errors
from shared.call import ids
from shared.call.calls import Call
from shared.platform.dograh import platform_redis
from shared.platform.dograh.platform_redis import PlatformRedis
from shared.platform.ports import RegisteredSlot, Slot, SlotAnswer

_TAKE = platform_redis.Script("slots_registry", "slots_take")
_GIVE_BACK = platform_redis.Script("slots_registry", "slots_give_back")
_ANSWERS = {1: SlotAnswer.TAKEN, 0: SlotAnswer.FULL, -1: SlotAnswer.UNKNOWN}
#: Most bindings that one request asks for.
_AT_ONCE = 1000
#: A number of as many digits as the milliseconds have.
_NO_MOMENT = 1_000_000_000_000


def _milliseconds(created: str, digest: str) -> int:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        # Any number does: it only tells slots apart.
        return _NO_MOMENT + int(digest[8:17], 16)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class Slots:
    """The ports `PlatformSlots`, for the calls, and `SlotRegistry`, for the scheduler."""

    def __init__(self, asked: PlatformRedis) -> None:
        self._redis = asked

    @staticmethod
    def name(*, organization_id: int, channel_id: str, channel_created: str, entry: int) -> str:
        """Return a slot's name, in the platform's form: milliseconds, `_`, and 8 hexadecimal digits."""
        # A leg that we originate has no time of creation before it answers, and an id of its own.
        created = "" if ids.is_originated(channel_id) else channel_created
        digest = hashlib.sha256(f"{organization_id}/{channel_id}/{created}/{entry}".encode()).hexdigest()
        return f"{_milliseconds(created, digest)}_{digest[:8]}"

    @classmethod
    def slot_of(cls, call: Call, media_ids: Collection[str], *, run_id: int | None = None) -> Slot:
        """Return a call's slot, as the port says."""
        name = cls.name(
            organization_id=call.organization_id,
            channel_id=call.channel_id,
            channel_created=call.channel_created,
            entry=call.entry,
        )
        destination = [call.destination_id] if call.destination_id is not None else []
        return Slot(
            name=name,
            organization_id=call.organization_id,
            workflow_run_id=call.workflow_run_id if run_id is None else run_id,
            channel_ids=(call.channel_id, *media_ids, *destination),
            destination_id=call.destination_id,
        )

    # ── for a call ───────────────────────────────────────────────────────────────────────────────────────────────────

    def take(
        self, call: Call, *, limit: int | None, run_id: int | None = None, media_id: str | None = None
    ) -> SlotAnswer:
        """Take a call's slot, as the port says."""
        media_ids = [media_id] if media_id is not None else []
        try:
            return self.write(self.slot_of(call, media_ids, run_id=run_id), limit=limit)
        except errors.PlatformRedisAway:
            return SlotAnswer.UNKNOWN

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        """Bind a call's slot, as the port says."""
        if call.workflow_run_id is None:
            return
        try:
            self.write(self.slot_of(call, media_ids), limit=None, only_binds=True)
        except errors.PlatformRedisAway:
            return

    def give_back(self, call: Call, *, media_ids: Collection[str]) -> None:
        """Give a call's slot back, as the port says."""
        try:
            self.remove(self.slot_of(call, media_ids))
        except errors.PlatformRedisAway:
            return

    # ── for the scheduler ────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, slot: Slot, *, limit: int | None, age_seconds: float = 0.0, only_binds: bool = False) -> SlotAnswer:
        """Write a slot, as the port says.

        Args:
            only_binds: The call is written: its run is this one, and no slot is taken.
        """
        run_id = slot.workflow_run_id
        keys = [
            platform_redis.REGISTRY,
            platform_redis.slots(slot.organization_id),
            platform_redis.FLEET,
            platform_redis.binding(run_id) if run_id is not None else "",
            *map(platform_redis.channel, slot.channel_ids),
        ]
        arguments: list[str | int | float] = [
            slot.name,
            slot.organization_id,
            "" if run_id is None else run_id,
            "" if limit is None else limit,
            json.dumps([slot.organization_id, run_id, slot.channel_ids]),
            age_seconds,
            "bind" if only_binds else "",
        ]
        return _ANSWERS[self._redis.ask(lambda client: _TAKE.run(client, keys, arguments))]

    def remove(self, slot: Slot) -> None:
        """Give a slot back, as the port says."""
        run_id, destination_id = slot.workflow_run_id, slot.destination_id
        keys = [
            platform_redis.REGISTRY,
            platform_redis.FLEET,
            platform_redis.binding(run_id) if run_id is not None else "",
            platform_redis.transfer_channel(destination_id) if destination_id is not None else "",
            *map(platform_redis.channel, slot.channel_ids),
        ]
        arguments: list[str | int | float] = [slot.name, slot.organization_id, "" if run_id is None else run_id]
        self._redis.ask(lambda client: _GIVE_BACK.run(client, keys, arguments))

    def registered(self) -> dict[str, RegisteredSlot]:
        """Return the registered slots, as the port says."""
        now, entries = self._redis.ask(_registry)
        found = {name: _registered(name, text, now) for name, text in entries.items()}
        return {name: entry for name, entry in found.items() if entry is not None}

    def bound_among(self, run_ids: Collection[int]) -> set[int]:
        """Return the runs that have a slot, as the port says."""
        runs = list(run_ids)
        batches = (runs[first : first + _AT_ONCE] for first in range(0, len(runs), _AT_ONCE))
        return set().union(*(self._redis.ask(functools.partial(_bound, run_ids=batch)) for batch in batches))


def _bound(client: redis.Redis, *, run_ids: Sequence[int]) -> set[int]:
    with client.pipeline(transaction=False) as pipeline:
        for run_id in run_ids:
            pipeline.exists(platform_redis.binding(run_id))
        return {run_id for run_id, is_bound in zip(run_ids, pipeline.execute(), strict=True) if is_bound}


def _registry(client: redis.Redis) -> tuple[float, dict[str, str]]:
    with client.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(platform_redis.REGISTRY)
        (seconds, micros), entries = pipeline.execute()
    return seconds + micros / 1e6, entries


def _registered(name: str, text: str, now: float) -> RegisteredSlot | None:
    """Read an entry of the registry; None for one that is none of this release's."""
    taken, _, kept = text.partition(" ")
    try:
        organization_id, run_id, channel_ids = json.loads(kept)
        age_seconds = now - float(taken)
    except (ValueError, TypeError):
        return None
    slot = Slot(name=name, organization_id=organization_id, workflow_run_id=run_id, channel_ids=tuple(channel_ids))
    return RegisteredSlot(slot=slot, age_seconds=age_seconds)
