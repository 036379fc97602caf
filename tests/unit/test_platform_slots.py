"""Slots at the platform: when a call takes one, what its answers mean, and what the scheduler compares."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock
from uuid import UUID

import pytest

from scheduler.platform_slots import PlatformSlots
from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Cause, State
from shared.call.steps import Step
from shared.platform.dograh import accounts
from shared.platform.dograh.slots import Slots
from shared.platform.ports import RegisteredSlot, Slot, SlotAnswer
from shared.storage.slot_holders import SlotHolder
from tests.support.calls import CALLS, CONNECTED, ENDING, PREPARED, RECEIVED
from tests.support.rounds import GONE
from tests.unit.test_admission_step import GRANTED, NAMING, PLATFORMS, ROUTE, Scene, arrived
from tests.unit.test_bridge import MEDIA_ID
from tests.unit.test_teardown import MEDIA, torn_down
from workers.bridge import Join

SHARED = replace(ROUTE, shares_slots=True, concurrent_calls=5, reserved_run_id=77)


@dataclass
class Counted:
    """The platform's count: answers as told, and notes what it was asked."""

    answer: SlotAnswer = SlotAnswer.TAKEN
    asked: list[Any] = field(default_factory=list)

    def take(
        self, call: Call, *, limit: int | None, run_id: int | None = None, media_id: str | None = None
    ) -> SlotAnswer:
        self.asked.append(("take", limit, run_id, media_id))
        return self.answer

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        self.asked.append(("bind", call.workflow_run_id, list(media_ids)))

    def give_back(self, call: Call, *, media_ids: Collection[str]) -> None:
        self.asked.append(("give back", call.workflow_run_id, list(media_ids)))


def shared_scene(counted: Counted, *, refuses: bool = False, route: Any = SHARED, **options: Any) -> Scene:
    scene = Scene(route=route, **options)
    scene.step = replace(scene.step, platform_slots=counted, refuses_uncounted=refuses)
    return scene


# ── the admission ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_takes_its_slot_before_the_transaction_and_binds_it_to_its_run_in_the_same_request() -> None:
    counted = Counted()
    scene = shared_scene(counted)
    assert scene.run(arrival=arrived(route=SHARED), leads_to=[Step.RUNS]) == (
        GRANTED,
        facts.RunCreated(workflow_run_id=9),
    )
    assert scene.claim.asked == ["quota", "slot", "begin"]
    media_id = NAMING.media_id(replace(RECEIVED, attempt=1))
    assert counted.asked == [("take", 5, 77, media_id)]
    # Our own limit holds beside the platform's, which is counted there.
    assert scene.slots_asked == []


def test_a_call_whose_slot_is_refused_is_busy_and_takes_none_of_ours() -> None:
    scene = shared_scene(Counted(SlotAnswer.FULL))
    reason = "too many concurrent calls: the platform's 5 slots are in use"
    refused = facts.Refused(reason=reason, hangup_cause=Cause.BUSY, continue_in_dialplan=True, limit="platform-slots")
    assert scene.run(arrival=arrived(route=SHARED)) == (refused,)
    assert scene.claim.asked == ["quota", "slot"]


def test_a_call_that_the_platform_does_not_count_is_counted_by_us_with_the_platform_s_limit() -> None:
    scene = shared_scene(Counted(SlotAnswer.UNKNOWN))
    assert scene.run(arrival=arrived(route=SHARED)) == (GRANTED,)
    assert scene.slots_asked == [(2, 5)]


def test_a_call_that_the_platform_does_not_count_is_refused_if_so_set() -> None:
    scene = shared_scene(Counted(SlotAnswer.UNKNOWN), refuses=True)
    (refused,) = scene.run(arrival=arrived(route=SHARED))
    assert isinstance(refused, facts.Refused)
    assert (refused.hangup_cause, "PLATFORM_SLOTS_UNREACHABLE" in refused.reason) == (Cause.CONGESTION, True)


def test_a_refused_call_takes_no_slot() -> None:
    counted = Counted()
    refusal = facts.Refused(reason="no minutes", hangup_cause=Cause.NOT_ALLOWED)
    (refused,) = shared_scene(counted, quota=refusal).run(arrival=arrived(route=SHARED))
    assert refused == replace(refusal, continue_in_dialplan=True, limit="quota")
    assert counted.asked == []


def test_a_call_that_the_platform_does_not_share_asks_it_nothing() -> None:
    counted = Counted()
    assert shared_scene(counted, route=ROUTE).run(arrival=arrived()) == (GRANTED,)
    assert counted.asked == []


def test_a_run_without_a_reserved_id_is_bound_later() -> None:
    counted = Counted()
    route = replace(SHARED, reserved_run_id=None)
    shared_scene(counted, route=route).run(arrival=arrived(route=route), leads_to=[Step.RUNS])
    assert counted.asked == [("take", 5, None, None)]


def test_a_run_of_the_platform_is_bound_once_it_is_known_to_be_its_organization_s() -> None:
    counted = Counted()
    scene = shared_scene(counted)
    scene.run(PLATFORMS)
    assert counted.asked == []
    scene.step.recorded(replace(PLATFORMS, state=State.PREPARED, workflow_run_id=9))
    scene.step.recorded(replace(PLATFORMS, state=State.ENDING))
    scene.step.recorded(PREPARED)
    assert counted.asked == [("bind", 9, [])]


# ── after it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", CALLS.values(), ids=lambda call: str(call.state))
def test_a_joined_call_binds_its_slot_with_the_media_leg_it_has(call: Call) -> None:
    counted = Counted()
    runs = SimpleNamespace(note_media=lambda *_args, **_ids: None)
    Join(
        asterisks=cast(Any, None), naming=NAMING, runs=cast(Any, runs), store=cast(Any, None), platform_slots=counted
    ).recorded(call)
    assert counted.asked == ([("bind", 9, [MEDIA_ID])] if call.state is State.CONNECTED else [])


def test_a_call_gives_its_slot_back_once_nothing_is_left_of_it() -> None:
    ended, left = Counted(), Counted()
    gone = replace(ENDING, caller_left=True)
    fact, *_ = torn_down(gone, {f"GET {MEDIA}": [GONE]}, slots=ended)
    assert isinstance(fact, facts.LegsRemoved)
    assert ended.asked == [("give back", 9, [MEDIA_ID])]
    away = errors.AsteriskUnreachable("away")
    fact, *_ = torn_down(gone, {f"DELETE {MEDIA}": [away], f"GET {MEDIA}": [away]}, slots=left)
    assert isinstance(fact, facts.RemovalPending)
    assert left.asked == []


# ── whether the platform's limit holds ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "february", "stand_alone", "newest", "without_a_row"),
    [("auto", None, 4, 4, 10), ("on", 4, 4, 4, 10), ("off", None, None, None, None)],
)
def test_the_platform_s_limit_holds_as_its_layout_has_it_unless_set_otherwise(
    setting: Any, february: int | None, stand_alone: int | None, newest: int | None, without_a_row: int | None
) -> None:
    limits = accounts.CallLimits(setting=setting)
    assert limits.of_february(4, is_stand_alone=False) == february
    assert limits.of_february(4, is_stand_alone=True) == stand_alone
    assert limits.of_february(None, is_stand_alone=True) is None
    assert (limits.of_newest(4), limits.of_newest(None)) == (newest, without_a_row)
    assert limits.of_newest(0) in (1, None)


# ── the scheduler's comparison ───────────────────────────────────────────────────────────────────────────────────────


class World:
    """Registered slots, and calls, by number."""

    def __init__(self) -> None:
        self.registered_now: dict[str, RegisteredSlot] = {}
        self.written: list[Slot] = []
        self.removed: list[Slot] = []
        self.calls: dict[UUID, Call] = {}
        self.holders: list[SlotHolder] = []
        #: Run → its unanswered call; and the runs that have a slot.
        self.unanswered_calls: dict[int, UUID] = {}
        self.bound: set[int] = set()
        #: What was bound to its run afterwards.
        self.bound_now: list[tuple[UUID, list[str]]] = []
        self.is_away = False
        self.is_shared = True
        self.name, self.slot_of = Slots.name, Slots.slot_of
        self.job = PlatformSlots(
            cast(Any, self), cast(Any, self), self.calls.get, Naming(""), is_shared=lambda: self.is_shared
        )

    def call(self, number: int, *, needs_one: bool = True, **fields: Any) -> Call:
        made = replace(CONNECTED, call_id=UUID(int=number), channel_id=f"1.{number}", **fields)
        self.calls[made.call_id] = made
        self.holders.append(
            SlotHolder(
                call_id=made.call_id, organization_id=made.organization_id, channel_id=made.channel_id,
                channel_created=made.channel_created, entry=made.entry, workflow_run_id=made.workflow_run_id,
                needs_one=needs_one, age_seconds=60.0,
            )
        )  # fmt: skip
        return made

    def hold(self, call: Call, *, age_seconds: float = 60.0) -> Slot:
        slot = Slots.slot_of(call, ())
        self.registered_now[slot.name] = RegisteredSlot(slot=slot, age_seconds=age_seconds)
        return slot

    def registered(self) -> dict[str, RegisteredSlot]:
        if self.is_away:
            raise errors.PlatformRedisAway("away")
        return self.registered_now

    def write(self, slot: Slot, *, limit: int | None, age_seconds: float = 0.0) -> SlotAnswer:
        assert (limit, age_seconds) == (None, 60.0)
        self.written.append(slot)
        return SlotAnswer.TAKEN

    def remove(self, slot: Slot) -> None:
        self.removed.append(slot)

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        self.bound_now.append((call.call_id, list(media_ids)))

    def bound_among(self, run_ids: Collection[int]) -> set[int]:
        return self.bound & set(run_ids)

    def all(self) -> list[SlotHolder]:
        return self.holders

    def unanswered(self) -> dict[int, UUID]:
        return self.unanswered_calls


@pytest.fixture
def world() -> World:
    return World()


def test_calls_and_slots_that_agree_are_left_alone(world: World) -> None:
    world.hold(world.call(1))
    world.job.compare()
    assert (world.written, world.removed) == ([], [])


def test_a_slot_without_a_call_is_given_back_once_a_call_would_have_been_written(world: World) -> None:
    never_written = replace(CONNECTED, channel_id="9.9", workflow_run_id=None)
    slot = world.hold(never_written)
    world.hold(replace(never_written, channel_id="9.8"), age_seconds=14.0)
    world.job.compare()
    assert (world.written, world.removed) == ([], [slot])


def test_a_call_without_a_slot_gets_it_afterwards_with_its_channels(world: World) -> None:
    lacking = world.call(1)
    world.call(2, needs_one=False)
    world.call(3, ending_at=CONNECTED.connected_at)
    world.job.compare()
    assert world.written == [Slots.slot_of(lacking, [Naming("").media_id(lacking)])]


def test_a_slot_that_was_taken_for_another_run_is_bound_to_that_of_its_call(world: World) -> None:
    """The platform's Redis was away when the legs were joined, or a fail-over has forgotten the first run."""
    call = world.call(1)
    world.hold(replace(call, workflow_run_id=1234))
    world.job.compare()
    assert (world.bound_now, world.written, world.removed) == ([(call.call_id, [Naming("").media_id(call)])], [], [])


def test_no_slot_is_written_where_the_platform_counts_no_callers(world: World) -> None:
    left = world.hold(replace(CONNECTED, channel_id="9.9"))
    world.call(1)
    world.is_shared = False
    world.job.compare()
    assert (world.written, world.removed) == ([], [left])


def test_slots_of_unanswered_legs_are_given_back_at_the_start_after_an_outage_and_once_a_minute(world: World) -> None:
    """They are in no registry of ours. One whose run has no slot any more is not given back again."""
    unanswered, done = world.call(1, workflow_run_id=1), world.call(2, workflow_run_id=2)
    world.holders.clear()
    world.unanswered_calls = {1: unanswered.call_id, 2: done.call_id}
    world.bound = {1}

    def look() -> int:
        world.removed.clear()
        world.job.compare()
        return len(world.removed)

    assert [look() for _ in range(14)] == [1] + 11 * [0] + [1, 0]
    world.is_away = True
    with pytest.raises(errors.PlatformRedisAway):
        look()
    world.is_away = False
    assert [look(), look()] == [1, 0]


def test_the_slots_are_read_before_the_calls(world: World) -> None:
    """A call that ends in between has given its slot back: it must not be written again."""
    order: list[str] = []

    def noted(what: str, answer: Callable[[], Any]) -> Callable[[], Any]:
        def ask() -> Any:
            order.append(what)
            return answer()

        return ask

    with (
        mock.patch.object(world, "registered", noted("slots", world.registered)),
        mock.patch.object(world, "all", noted("calls", world.all)),
    ):
        world.job.compare()
    assert order == ["slots", "calls"]
