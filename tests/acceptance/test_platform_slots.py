"""Calls that take slots in the platform's Redis: real processes, with a second Redis beside their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from devstack import servers
from shared.platform.dograh import platform_redis
from tests.acceptance import platform_stack
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, args, request_call, waiting_run
from tests.support import platform_api
from tests.support.platform_api import PlatformApi

pytestmark = pytest.mark.services

WORKERS = ("worker.1", "worker.2")
#: Until the scheduler has compared slots with calls, a young slot's age included.
COMPARED_SECONDS = 25


platform, api = platform_stack.FIXTURES


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, platform: servers.Redis) -> Iterator[Deployment]:
    with deploy(
        "platform-slots",
        layout="newest",
        processes=("listener", "scheduler", *WORKERS),
        PLATFORM_REDIS_URL=platform.url,
        PLATFORM_SLOTS_SECONDS="0.5",
    ) as made:
        yield made


@pytest.fixture
def env(deployment: Deployment, api: PlatformApi) -> Iterator[Environment]:
    platform_stack.start_missing(deployment, *WORKERS)
    with deployment.environment() as made:
        yield made


def counted(env: Environment, api: PlatformApi) -> int:
    return api.counted(env.tenant.organization_id)


def left(api: PlatformApi) -> list[str]:
    """Return the keys in the platform's Redis, without the orders for its workers."""
    return [key for key in api.client.keys("*") if not key.startswith(("arq:", "ari:told:"))]


def wait_clean(env: Environment, api: PlatformApi, *, seconds: float = 10) -> None:
    """Wait until the platform's Redis holds nothing of ours."""
    env.until(lambda: not left(api), seconds=seconds, what=f"nothing is left: {left(api)}")


def test_a_call_has_its_slot_and_its_keys_until_it_has_ended(env: Environment, api: PlatformApi) -> None:
    leg = env.dial()
    env.wait_state(leg, "connected")
    run_id = env.run(leg)["id"]
    (slot,) = api.client.zrange(f"concurrent_calls:{env.tenant.organization_id}", 0, -1)
    assert api.client.hgetall(f"workflow_slot_mapping:{run_id}") == {
        "org_id": str(env.tenant.organization_id), "slot_id": slot,
    }  # fmt: skip
    assert (api.run_of(leg), api.run_of(env.own(leg, "m")), api.fleet()) == (run_id, run_id, 1)
    env.end(leg)
    wait_clean(env, api)


def test_one_request_before_the_media_leg_is_asked_for(env: Environment, api: PlatformApi) -> None:
    env.end(*env.connect())
    requests: list[tuple[float, str]] = []
    # The scheduler compares slots with calls meanwhile, in requests of its own.
    env.pipeline.signal("scheduler", signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        stack.callback(env.pipeline.signal, "scheduler", signal.SIGCONT)
        monitor = stack.enter_context(api.client.monitor())
        with env.control.hold("POST", "/channels/externalMedia", "before") as point:
            leg = env.dial()
            point.wait_arrived()
            asked = time.time()
        env.wait_state(leg, "connected")
        api.client.echo("over")
        for entry in monitor.listen():
            if "over" in entry["command"]:
                break
            if entry["client_type"] != "lua" and leg in entry["command"]:
                requests.append((entry["time"], entry["command"].split()[0]))
    assert [name for at, name in requests if at < asked] == ["EVALSHA"]
    assert [name for at, name in requests] == ["EVALSHA", "EVALSHA"]
    env.end(leg)


def test_the_api_s_calls_and_callers_count_each_other(env: Environment, api: PlatformApi) -> None:
    env.tenant.limit_calls(2)
    theirs = api.acquire(env.tenant.organization_id, limit=2)
    (served,) = env.connect()
    refused = env.dial()
    env.wait_state(refused, "ended")
    call = env.pipeline.call(refused)
    assert (call["outcome"], call["hangup_cause"], call["workflow_run_id"]) == ("refused", 17, None)
    assert "the platform's 2 slots are in use" in call["reason"]
    assert api.acquire(env.tenant.organization_id, limit=2) is None
    assert theirs is not None
    api.release_slot(env.tenant.organization_id, theirs)
    env.end(*env.connect(), served)
    wait_clean(env, api)


def test_a_pipeline_that_has_given_the_slot_back_and_a_call_that_does_so_again(
    env: Environment, api: PlatformApi
) -> None:
    (leg,) = env.connect()
    assert api.release(env.run(leg)["id"])
    assert counted(env, api) == 0
    # The scheduler takes it for what it is: given back, and not missing.
    time.sleep(2)
    assert counted(env, api) == 0
    env.end(leg)
    wait_clean(env, api)


def test_a_leg_of_the_platform_keeps_the_slot_that_its_api_has_bound(env: Environment, api: PlatformApi) -> None:
    run_id = waiting_run(env)
    slot = api.acquire(env.tenant.organization_id, limit=1, scope="campaign:1")
    assert slot is not None
    api.bind(run_id, env.tenant.organization_id, slot, scope="campaign:1")
    leg = env.dial(answered=True, args=args(env, run_id).split(","))
    env.wait_state(leg, "connected")
    assert (counted(env, api), api.run_of(leg)) == (1, run_id)
    env.end(leg)
    wait_clean(env, api)


def test_an_unanswered_leg_of_the_platform_gives_the_slot_back(env: Environment, api: PlatformApi) -> None:
    env.tenant.configure(env.asterisk.url, **LOCAL)
    run_id, channel = waiting_run(env), f"platform-{uuid.uuid4().hex[:12]}"
    slot = api.acquire(env.tenant.organization_id, limit=1)
    assert slot is not None
    api.bind(run_id, env.tenant.organization_id, slot)
    env.pipeline.query(
        "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s RETURNING 1",
        json.dumps({"provider": "ari", "call_id": channel}), run_id,
    )  # fmt: skip
    env.rest(
        "POST", "/channels", endpoint="Local/busy@far", app="voiceai", appArgs=args(env, run_id), channelId=channel
    )
    wait_clean(env, api)


def test_an_outbound_call_of_ours_is_counted(env: Environment, api: PlatformApi) -> None:
    env.tenant.configure(env.asterisk.url, **LOCAL)
    request_call(env, "100")
    env.until(lambda: counted(env, api) == 1, seconds=10, what="it is counted")
    env.until(lambda: [c["state"] for c in env.calls()] == ["connected"], seconds=10, what="connected")
    env.end(env.calls()[0]["channel_id"])
    wait_clean(env, api)


@pytest.mark.parametrize("moment", ["slot", "run"])
def test_a_worker_that_is_killed_between_slot_and_run_leaks_neither(
    env: Environment, api: PlatformApi, deployment: Deployment, moment: str
) -> None:
    """Held: the transaction that writes the call, and the request after it."""
    runs = env.runs()
    if moment == "run":
        with env.control.hold("POST", "/channels/externalMedia", "before") as point:
            leg = env.dial()
            point.wait_arrived()
            (call,) = env.calls()
            env.pipeline.kill(str(call["claim_owner"]).partition("/")[0])
        env.wait_state(leg, "connected", seconds=20)
        assert (env.runs() - runs, counted(env, api)) == (1, 1)
        env.end(leg)
    else:
        with contextlib.closing(psycopg.connect(deployment.database_url)) as locking:
            locking.execute("LOCK TABLE ari.calls IN SHARE MODE")
            leg = env.dial()
            env.until(lambda: counted(env, api), seconds=5, what="its slot is taken")
            for name in WORKERS:
                env.pipeline.kill(name)
        env.control.hang_up(leg)
        for name in WORKERS:
            env.pipeline.start(name)
        env.until(lambda: env.pipeline.calls(leg) and env.pipeline.state(leg) == "ended", seconds=30, what="ended")
    wait_clean(env, api, seconds=COMPARED_SECONDS)


def test_a_slot_whose_call_was_never_written_is_given_back_by_the_scheduler(env: Environment, api: PlatformApi) -> None:
    holder = json.dumps([env.tenant.organization_id, 123456, ["gone.1"]])
    api.client.hset(platform_redis.REGISTRY, "1777636800250_deadbeef", f"{time.time() - 20:.3f} {holder}")
    api.client.zadd(f"concurrent_calls:{env.tenant.organization_id}", {"1777636800250_deadbeef": time.time()})
    api.bind(123456, env.tenant.organization_id, "1777636800250_deadbeef")
    api.client.set("ari:channel:gone.1", 123456)
    wait_clean(env, api)


@pytest.mark.parametrize("fault", ["killed", "frozen", "emptied"])
def test_callers_are_served_without_the_platform_s_redis_and_their_slots_are_written_afterwards(
    env: Environment, api: PlatformApi, platform: servers.Redis, fault: str
) -> None:
    env.tenant.limit_calls(2)
    legs: list[str] = []
    if fault == "emptied":
        legs = env.connect(2)
        api.client.flushall()
    else:
        getattr(platform, {"killed": "kill", "frozen": "freeze"}[fault])()
        legs = env.connect(2)
        # Counted from our own calls, with the platform's limit.
        refused = env.dial()
        env.wait_state(refused, "ended")
        assert "2 of 2 slots in use" in env.pipeline.call(refused)["reason"]
        platform.thaw()
        platform.start()
    with platform_api.connected(platform.url) as client:
        again = PlatformApi(client=client)
        env.until(lambda: counted(env, again) == 2, seconds=15, what="the slots are written")
        runs = [env.run(leg)["id"] for leg in legs]
        env.until(lambda: [again.run_of(leg) for leg in legs] == runs, seconds=5, what="the channels are noted")
        env.end(*legs)
        # A give-back may have come while it was not asked.
        wait_clean(env, again, seconds=COMPARED_SECONDS)


def test_forty_calls_leave_nothing(env: Environment, api: PlatformApi) -> None:
    for _ in itertools.repeat(None, 10):
        env.end(*env.connect(4))
    wait_clean(env, api)
