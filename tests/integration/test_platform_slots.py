"""The slots in the platform's Redis, on a real one: the API's calls and ours count each other, by its own rules."""

from __future__ import annotations

import concurrent.futures
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from devstack import servers
from shared.call import ids
from shared.platform.dograh import platform_redis
from shared.platform.dograh.platform_redis import PlatformRedis
from shared.platform.dograh.slots import Slots
from shared.platform.ports import SlotAnswer
from tests.support import platform_api
from tests.support.calls import RECEIVED
from tests.support.platform_api import PlatformApi

pytestmark = pytest.mark.services

ORGANIZATION = RECEIVED.organization_id
SECONDS = 0.2
#: A machine at work lets threads wait.
LATE_SECONDS = 0.3


@pytest.fixture
def api(redis_url: str) -> Iterator[PlatformApi]:
    with platform_api.connected(redis_url) as client:
        yield PlatformApi(client=client)


@pytest.fixture
def ours(redis_url: str) -> Iterator[Slots]:
    asked = PlatformRedis(redis_url, seconds=2.0)
    yield Slots(asked)
    asked.close()


def call(number: int, *, run_id: int | None = None) -> Any:
    return replace(RECEIVED, channel_id=f"1762.{number}", workflow_run_id=run_id)


def keys(api: PlatformApi) -> set[str]:
    return set(api.client.keys("*"))


def name_of(made: Any) -> str:
    return Slots.slot_of(made, ()).name


def test_a_slot_is_written_as_the_platform_writes_it(api: PlatformApi, ours: Slots) -> None:
    made = replace(call(1), channel_created="2026-05-01T12:00:00.250+0000")
    assert ours.take(made, limit=3, run_id=7, media_id="media-1") is SlotAnswer.TAKEN
    (slot,) = api.client.zrange(f"concurrent_calls:{ORGANIZATION}", 0, -1)
    assert re.fullmatch(r"1777636800250_[0-9a-f]{8}", slot)
    assert api.client.zrange("concurrent_calls_fleet", 0, -1) == [f"{ORGANIZATION}:{slot}"]
    assert abs(float(api.client.zscore("concurrent_calls_fleet", f"{ORGANIZATION}:{slot}") or 0) - time.time()) < 5
    assert api.client.hgetall("workflow_slot_mapping:7") == {"org_id": str(ORGANIZATION), "slot_id": slot}
    assert (api.run_of("1762.1"), api.run_of("media-1"), api.counted(ORGANIZATION), api.fleet()) == (7, 7, 1, 1)
    lifetimes = {name: api.client.ttl(name) for name in keys(api) - {platform_redis.REGISTRY}}
    assert lifetimes == {
        f"concurrent_calls:{ORGANIZATION}": pytest.approx(3600, abs=5),
        "concurrent_calls_fleet": pytest.approx(3600, abs=5),
        "workflow_slot_mapping:7": pytest.approx(1200, abs=5),
        "ari:channel:1762.1": pytest.approx(3600, abs=5),
        "ari:channel:media-1": pytest.approx(3600, abs=5),
    }
    ours.give_back(replace(made, workflow_run_id=7), media_ids=("media-1",))
    assert keys(api) == set()


@pytest.mark.parametrize("created", ["", "no time", "2026-05-01T12:00:00.250+0000"])
def test_a_slot_s_name_has_the_platform_s_form_whatever_its_leg_is(created: str) -> None:
    assert re.fullmatch(r"\d{13}_[0-9a-f]{8}", name_of(replace(call(1), channel_created=created)))


def test_each_entry_of_a_leg_has_its_own_slot_and_a_leg_of_ours_the_same_before_and_after_it_answered() -> None:
    first = call(1)
    legs = [first, call(2), replace(first, entry=2), replace(first, organization_id=99),
            replace(first, channel_created="later")]  # fmt: skip
    assert len(set(map(name_of, legs))) == 5
    dialled = replace(RECEIVED, channel_id=ids.originated_id("aip-", 7, "request"), channel_created="")
    assert name_of(dialled) == name_of(replace(dialled, channel_created="2026-05-01T12:00:00.250+0000"))


def test_a_call_that_is_reported_twice_takes_one_slot_even_when_all_are_used(api: PlatformApi, ours: Slots) -> None:
    assert [ours.take(call(1), limit=1, run_id=7) for _ in range(3)] == [SlotAnswer.TAKEN] * 3
    assert api.counted(ORGANIZATION) == 1
    assert ours.take(call(2), limit=1, run_id=8) is SlotAnswer.FULL
    assert not api.client.exists("workflow_slot_mapping:8")


def test_what_is_older_than_twenty_minutes_counts_no_more(api: PlatformApi, ours: Slots) -> None:
    key = f"concurrent_calls:{ORGANIZATION}"
    api.client.zadd(key, {"1_aaaaaaaa": time.time() - 1201, "1_bbbbbbbb": time.time() - 1190})
    api.client.zadd("concurrent_calls_fleet", {"9:1_aaaaaaaa": time.time() - 1201})
    assert ours.take(call(1), limit=2) is SlotAnswer.TAKEN
    assert (api.counted(ORGANIZATION), api.fleet()) == (2, 1)
    assert ours.take(call(2), limit=2) is SlotAnswer.FULL


def test_without_a_limit_a_call_is_counted_all_the_same(api: PlatformApi, ours: Slots) -> None:
    assert [ours.take(call(number), limit=None) for number in range(3)] == [SlotAnswer.TAKEN] * 3
    assert api.acquire(ORGANIZATION, limit=3) is None


def test_the_api_s_calls_and_ours_together_never_exceed_the_limit(api: PlatformApi, ours: Slots) -> None:
    limit, rounds = 5, 40
    seen: list[int] = []

    def of_the_api(number: int) -> bool:
        slot = api.acquire(ORGANIZATION, limit=limit)
        if slot is None:
            return False
        api.bind(1000 + number, ORGANIZATION, slot)
        seen.append(api.counted(ORGANIZATION))
        time.sleep(random.random() / 100)
        return api.release(1000 + number)

    def of_ours(number: int) -> bool:
        made = call(number, run_id=number)
        if ours.take(made, limit=limit, run_id=number) is not SlotAnswer.TAKEN:
            return False
        seen.append(api.counted(ORGANIZATION))
        time.sleep(random.random() / 100)
        if number % 2:
            # Its pipeline has released it already.
            api.release(number)
        ours.give_back(made, media_ids=())
        return True

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        theirs = [threads.submit(of_the_api, number) for number in range(rounds)]
        mine = [threads.submit(of_ours, number) for number in range(rounds)]
        served = [sum(one.result() for one in every) for every in (theirs, mine)]
    assert max(seen) == limit
    assert min(served) > 0
    assert keys(api) == set()


def test_a_run_that_the_platform_began_keeps_its_slot_and_gives_that_back(api: PlatformApi, ours: Slots) -> None:
    slot = api.acquire(ORGANIZATION, limit=1, scope="campaign:4")
    assert slot is not None
    api.bind(7, ORGANIZATION, slot, scope="campaign:4")
    attached = call(1, run_id=7)
    ours.bind(attached, media_ids=())
    assert (api.counted(ORGANIZATION), api.run_of("1762.1")) == (1, 7)
    ours.give_back(attached, media_ids=())
    assert keys(api) == set()


def test_giving_back_may_be_repeated_and_takes_no_other_call_s(api: PlatformApi, ours: Slots) -> None:
    for number in (1, 2):
        ours.take(call(number), limit=None, run_id=number)
    for _ in range(2):
        ours.give_back(call(1, run_id=1), media_ids=())
    assert (api.counted(ORGANIZATION), api.fleet(), api.run_of("1762.2")) == (1, 1, 2)


def test_a_slot_that_is_given_back_leaves_that_of_another_call_for_the_same_run(api: PlatformApi, ours: Slots) -> None:
    """Two requests to call for one run: each takes a slot before the second one is refused, and is swept later."""
    ours.take(call(1), limit=None, run_id=7)
    ours.take(call(2), limit=None, run_id=7)
    ours.give_back(call(2, run_id=7), media_ids=())
    assert api.counted(ORGANIZATION) == api.fleet() == 1
    assert api.client.hget("workflow_slot_mapping:7", "slot_id") == name_of(call(1))
    ours.give_back(call(1, run_id=7), media_ids=())
    assert keys(api) == set()


def test_the_runs_that_have_a_slot_are_read_whose_ever_it_is(api: PlatformApi, ours: Slots) -> None:
    slot = api.acquire(ORGANIZATION, limit=2)
    assert slot is not None
    api.bind(1500, ORGANIZATION, slot)
    ours.take(call(1), limit=None, run_id=7)
    assert ours.bound_among(range(1, 2501)) == {7, 1500}
    assert ours.bound_among([]) == set()


def test_what_was_written_for_a_run_that_was_not_written_goes_with_the_slot(api: PlatformApi, ours: Slots) -> None:
    """A call that is received twice at a time is about to have two runs; one that its worker has died with, too."""
    for run_id, media_id in ((7, "media-7"), (8, "media-8")):
        assert ours.take(call(1), limit=1, run_id=run_id, media_id=media_id) is SlotAnswer.TAKEN
    assert not api.client.exists("workflow_slot_mapping:8")
    # The second one is written, and joined.
    ours.bind(call(1, run_id=8), media_ids=("media-8",))
    assert (api.run_of("1762.1"), api.run_of("media-7"), api.run_of("media-8")) == (8, None, 8)
    assert [api.client.exists(f"workflow_slot_mapping:{run_id}") for run_id in (7, 8)] == [0, 1]
    ours.give_back(call(1, run_id=8), media_ids=("media-8",))
    assert keys(api) == set()
    # Another worker has begun its first attempt, with another media leg.
    ours.take(call(1), limit=1, run_id=8, media_id="media-8")
    ours.give_back(call(1, run_id=8), media_ids=("media-88",))
    assert keys(api) == set()
    # Or it ends before that.
    ours.take(call(1), limit=1, run_id=9, media_id="media-9")
    ours.give_back(call(1, run_id=10), media_ids=("media-10",))
    assert keys(api) == set()


def test_the_channels_that_a_slot_had_before_go_with_it(api: PlatformApi, ours: Slots) -> None:
    """A fail-over has forgotten its call; the leg is found again, and has another media leg."""
    ours.take(call(1), limit=None, run_id=7, media_id="media-1")
    for media_id in ("media-1", "media-2"):
        ours.bind(call(1, run_id=7), media_ids=(media_id,))
    assert (api.run_of("media-1"), api.run_of("media-2")) == (7, 7)
    ours.give_back(call(1, run_id=7), media_ids=("media-2",))
    assert keys(api) == set()


def test_a_slot_that_the_pipeline_of_a_forgotten_call_has_released_counts_again(api: PlatformApi, ours: Slots) -> None:
    ours.take(call(1), limit=1, run_id=7)
    # Another call of the leg, whose run is written, and the end of the pipeline of the one before.
    ours.take(call(1), limit=1, run_id=8)
    api.release(7)
    ours.bind(call(1, run_id=8), media_ids=("media-8",))
    assert (api.counted(ORGANIZATION), api.fleet()) == (1, 1)
    ours.give_back(call(1, run_id=8), media_ids=("media-8",))
    assert keys(api) == set()


def test_the_note_of_another_run_s_channel_is_neither_overwritten_nor_removed(api: PlatformApi, ours: Slots) -> None:
    """A PBX may name its channels as another tenant's are named."""
    ours.take(call(1), limit=None, run_id=7)
    theirs = replace(call(1, run_id=8), organization_id=99)
    ours.take(theirs, limit=None, run_id=8)
    assert api.run_of("1762.1") == 7
    ours.give_back(theirs, media_ids=())
    assert api.run_of("1762.1") == 7


def test_a_call_without_a_slot_gets_none_when_its_legs_are_joined(api: PlatformApi, ours: Slots) -> None:
    ours.bind(call(1, run_id=7), media_ids=("media-1",))
    assert keys(api) == set()
    ours.take(call(1), limit=None)
    ours.bind(call(1, run_id=7), media_ids=("media-1",))
    assert (api.run_of("media-1"), api.client.hget("workflow_slot_mapping:7", "slot_id")) == (7, name_of(call(1)))


# ── a Redis that does not do its work ────────────────────────────────────────────────────────────────────────────────


def _read_only(server: servers.Redis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", "1")


def _of_another_type(server: servers.Redis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(f"concurrent_calls:{ORGANIZATION}", "text")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(servers.Redis.kill, id="away"),
        pytest.param(servers.Redis.freeze, id="slow"),
        pytest.param(_read_only, id="read-only"),
        pytest.param(_of_another_type, id="a key of another type"),
    ],
)
def test_a_caller_waits_for_it_once_and_no_longer_than_its_bound(
    stack_folder: Path, fault: Callable[[servers.Redis], None]
) -> None:
    with servers.Redis(stack_folder / f"platform-{uuid.uuid4().hex[:8]}") as server:
        asked = PlatformRedis(server.url, seconds=SECONDS)
        ours = Slots(asked)
        assert ours.take(call(1), limit=None) is SlotAnswer.TAKEN
        fault(server)
        began = time.monotonic()
        assert ours.take(call(2), limit=None) is SlotAnswer.UNKNOWN
        assert time.monotonic() - began < SECONDS + LATE_SECONDS
        # The next ones do not wait at all.
        began = time.monotonic()
        for number in range(3, 50):
            assert ours.take(call(number), limit=None) is SlotAnswer.UNKNOWN
            ours.bind(call(number, run_id=number), media_ids=())
            ours.give_back(call(number), media_ids=())
        assert time.monotonic() - began < LATE_SECONDS
        server.thaw()
        asked.close()


def test_a_full_redis_takes_our_slots_as_it_takes_the_platform_s(stack_folder: Path) -> None:
    """Both scripts drop old slots before they add one, and Redis judges a script by its first write."""
    with servers.Redis(stack_folder / f"platform-{uuid.uuid4().hex[:8]}") as server:
        asked = PlatformRedis(server.url, seconds=2.0)
        with platform_api.connected(server.url) as client:
            client.config_set("maxmemory", "100kb")
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.set("more", "than fits")
            api = PlatformApi(client=client)
            assert api.acquire(ORGANIZATION, limit=2) is not None
            assert Slots(asked).take(call(1), limit=2, run_id=7) is SlotAnswer.TAKEN
            assert Slots(asked).take(call(2), limit=2, run_id=8) is SlotAnswer.FULL
            Slots(asked).give_back(call(1, run_id=7), media_ids=())
            assert api.counted(ORGANIZATION) == 1
        asked.close()


def test_a_name_that_is_not_looked_up_in_time_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_args: object, **_options: object) -> list[object]:
        time.sleep(3)
        return []

    monkeypatch.setattr("socket.getaddrinfo", hangs)
    asked = PlatformRedis("redis://redis.invalid:6379/0", seconds=SECONDS)
    began = time.monotonic()
    assert Slots(asked).take(call(1), limit=None) is SlotAnswer.UNKNOWN
    assert time.monotonic() - began < SECONDS + LATE_SECONDS
    asked.close()


def test_it_is_asked_again_after_a_pause_and_no_password_is_shown(stack_folder: Path) -> None:
    now = [0.0]
    with servers.Redis(stack_folder / f"platform-{uuid.uuid4().hex[:8]}") as server:
        asked = PlatformRedis(server.url, seconds=2.0, monotonic=lambda: now[0])
        ours = Slots(asked)
        server.kill()
        with capture_logs() as logged:
            assert ours.take(call(1), limit=None) is SlotAnswer.UNKNOWN
            server.start()
            assert ours.take(call(1), limit=None) is SlotAnswer.UNKNOWN
            now[0] += 1.1
            assert ours.take(call(1), limit=None) is SlotAnswer.TAKEN
        assert [entry["log_level"] for entry in logged] == ["warning", "info"]
        assert server._secret("password") not in str(logged)
        asked.close()
