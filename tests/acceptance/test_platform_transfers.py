"""Transfers with a stand-in of the platform's API: it hears what became of its destination, and swaps the legs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from devstack import servers
from tests.acceptance import platform_stack
from tests.acceptance.environment import APP, Deploy, Deployment, Environment
from tests.acceptance.test_transfers import begin_swap, swap, talk
from tests.support.platform_api import Heard, PlatformApi

pytestmark = pytest.mark.services

#: A caller is alone no longer than this, whatever dies.
ALONE_SECONDS = 5.0
#: From the answer of a destination until it is hung up, if nothing comes of it: the looks and a message's way.
LOOKED_AFTER_SECONDS = 20.0


platform, api = platform_stack.FIXTURES


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, platform: servers.Redis) -> Iterator[Deployment]:
    with deploy(
        "platform-transfers",
        layout="newest",
        processes=("listener", "scheduler", "worker.1", "worker.2"),
        COMPLETED_RUNS_SECONDS="0.5",
        RESYNC_SECONDS="2",
        RUN_COMPLETION="platform",
        PLATFORM_REDIS_URL=platform.url,
        PLATFORM_SLOTS_SECONDS="0.5",
    ) as made:
        yield made


@pytest.fixture
def env(deployment: Deployment, api: PlatformApi) -> Iterator[Environment]:
    platform_stack.start_missing(deployment, "listener", "scheduler", "worker.1", "worker.2")
    with deployment.environment() as made:
        yield made


@dataclass(kw_only=True)
class Transfer:
    """One transfer, as the API makes it."""

    env: Environment
    api: PlatformApi
    caller: str
    transfer_id: str
    destination: str

    @classmethod
    def begin(cls, env: Environment, api: PlatformApi, caller: str, *, number: str = "200", timeout: int = 30) -> Any:
        made = cls(
            env=env, api=api, caller=caller, transfer_id=str(uuid.uuid4()),
            destination=f"destination-{uuid.uuid4().hex[:12]}",
        )  # fmt: skip
        run_id = env.run(caller)["id"]
        api.begin_transfer(made.transfer_id, caller, run_id, destination_id=None)
        env.rest(
            "POST", "/channels", endpoint=f"PJSIP/{number}", app=APP, appArgs=f"transfer,{made.transfer_id}",
            channelId=made.destination, timeout=str(timeout),
        )  # fmt: skip
        api.begin_transfer(made.transfer_id, caller, run_id, destination_id=made.destination)
        return made

    def is_answered(self) -> bool:
        started = self.env.control.event_log("StasisStart")
        return any(each["event"]["channel"]["id"] == self.destination for each in started)

    def hears(self) -> Any:
        return self.api.listening(self.transfer_id)

    def swap(self) -> None:
        swap(self.env, self.caller, self.destination)
        self.api.client.set(f"ari:channel:{self.destination}", self.env.run(self.caller)["id"], ex=3600)
        self.api.end_transfer(self.transfer_id, self.caller, self.destination)

    def wait_gone(self, *, seconds: float) -> None:
        self.env.until(
            lambda: self.env.control.channel(self.destination) is None, seconds=seconds, what="the destination is gone"
        )

    def wait_known(self) -> None:
        self.env.until(
            lambda: self.env.pipeline.call(self.caller)["destination_id"] == self.destination,
            seconds=5, what="the transfer is known",
        )  # fmt: skip


def answered(heard: Heard, transfer: Transfer, *, seconds: float = 5.0) -> None:
    told = heard.first(seconds)
    wanted = ("destination_answered", transfer.transfer_id, transfer.caller, transfer.destination)
    assert tuple(told[key] for key in ("type", "transfer_id", "original_call_sid", "transfer_call_sid")) == wanted


def transferred(env: Environment, api: PlatformApi) -> Transfer:
    (caller,) = env.connect()
    transfer: Transfer = Transfer.begin(env, api, caller)
    with transfer.hears() as heard:
        answered(heard, transfer)
    transfer.swap()
    transfer.wait_known()
    return transfer


def end(env: Environment, caller: str) -> None:
    """Let a caller hang up, and the API complete the run, as its pipeline does at its end."""
    complete(env, caller)
    env.end(caller)


def complete(env: Environment, caller: str) -> None:
    env.pipeline.query(
        "UPDATE workflow_runs SET is_completed = true, state = 'completed' WHERE id = %s RETURNING 1",
        env.run(caller)["id"],
    )


def nothing_left(env: Environment, api: PlatformApi, *, seconds: float = 25) -> None:
    """Wait until no leg and no key is left: what a teardown could not give back, the scheduler does."""
    env.wait_empty()
    env.until(
        lambda: not [key for key in api.client.keys("*") if not key.startswith(("transfer:", "arq:", "ari:told:"))],
        seconds=seconds, what=f"no key is left: {api.client.keys('*')}",
    )  # fmt: skip


@pytest.mark.parametrize("who", ["caller", "destination"])
def test_an_answered_transfer_is_told_swapped_and_ends_with_either_side(
    env: Environment, api: PlatformApi, who: str
) -> None:
    transfer = transferred(env, api)
    assert api.release(env.run(transfer.caller)["id"])
    time.sleep(4)
    assert talk(env, transfer.caller, transfer.destination), env.describe()
    assert env.run(transfer.caller)["gathered_context"]["transfer_state"] == "complete"
    assert api.counted(env.tenant.organization_id) == 0
    env.control.hang_up(getattr(transfer, who))
    env.wait_state(transfer.caller, "ended")
    assert env.run(transfer.caller)["gathered_context"]["transfer_state"] == "terminated"
    nothing_left(env, api)


def test_an_api_that_listens_late_is_told_again(env: Environment, api: PlatformApi) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    time.sleep(0.8)
    with transfer.hears() as heard:
        answered(heard, transfer)
    transfer.swap()
    transfer.wait_known()
    end(env, caller)
    nothing_left(env, api)


@pytest.mark.parametrize(
    ("number", "words"), [("busy", "busy"), ("ring", "not answered"), ("reject", "rejected"), ("congestion", "failed")]
)
def test_a_destination_that_is_not_reached_is_told_by_cause_and_the_caller_keeps_the_agent(
    env: Environment, api: PlatformApi, number: str, words: str
) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller, number=number, timeout=1)
    with transfer.hears() as heard:
        told = heard.first(8)
    assert (told["type"], words in told["reason"]) == ("transfer_failed", True), told
    assert env.is_joined(caller)
    end(env, caller)
    nothing_left(env, api)


def test_two_transfers_in_a_row(env: Environment, api: PlatformApi) -> None:
    (caller,) = env.connect()
    first = Transfer.begin(env, api, caller, number="busy", timeout=5)
    with first.hears() as heard:
        assert heard.first()["type"] == "transfer_failed"
    second = Transfer.begin(env, api, caller)
    with second.hears() as heard:
        answered(heard, second)
    second.swap()
    second.wait_known()
    assert talk(env, caller, second.destination)
    env.control.hang_up(second.destination)
    env.wait_state(caller, "ended")
    nothing_left(env, api)


def test_a_destination_that_answers_after_the_caller_has_left_is_hung_up(env: Environment, api: PlatformApi) -> None:
    (caller,) = env.connect()
    run_id = env.run(caller)["id"]
    end(env, caller)
    made = Transfer(env=env, api=api, caller=caller, transfer_id=str(uuid.uuid4()), destination=f"late-{uuid.uuid4()}")
    api.begin_transfer(made.transfer_id, caller, run_id, destination_id=made.destination)
    env.rest("POST", "/channels", endpoint="PJSIP/200", app=APP, appArgs=f"transfer,{made.transfer_id}",
             channelId=made.destination)  # fmt: skip
    made.wait_gone(seconds=ALONE_SECONDS)
    nothing_left(env, api)


def test_a_destination_whose_caller_leaves_in_the_swap_is_hung_up(env: Environment, api: PlatformApi) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    with transfer.hears() as heard:
        answered(heard, transfer)
    env.control.hang_up(caller)
    complete(env, caller)
    env.wait_state(caller, "ended")
    transfer.wait_gone(seconds=ALONE_SECONDS)
    nothing_left(env, api)


@pytest.mark.parametrize("step", ["heard", "added", "removed"])
def test_an_api_that_dies_in_a_transfer_leaves_neither_party_alone(
    env: Environment, api: PlatformApi, step: str
) -> None:
    """With it its agent goes: the media socket breaks."""
    (caller,) = env.connect()
    media, bridge = env.own(caller, "m"), env.own(caller, "b")
    transfer = Transfer.begin(env, api, caller)
    with transfer.hears() as heard:
        answered(heard, transfer)
    if step != "heard":
        begin_swap(env, caller, transfer.destination)
    if step == "removed":
        env.rest("POST", f"/bridges/{bridge}/removeChannel", channel=media)
    env.control.hang_up(media)
    complete(env, caller)
    if step == "heard":
        env.wait_state(caller, "ended", seconds=ALONE_SECONDS)
        transfer.wait_gone(seconds=ALONE_SECONDS)
    else:
        transfer.wait_known()
        assert talk(env, caller, transfer.destination)
        env.end(caller)
    nothing_left(env, api)


def test_a_destination_that_the_api_forgets_is_hung_up_and_the_caller_keeps_the_agent(
    env: Environment, api: PlatformApi
) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    transfer.wait_gone(seconds=LOOKED_AFTER_SECONDS)
    assert env.is_joined(caller)
    end(env, caller)
    nothing_left(env, api)


def test_a_destination_in_the_bridge_of_another_process_is_left_to_it(env: Environment, api: PlatformApi) -> None:
    """The platform's own process has bridged it, before ours took the app over."""
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    env.until(transfer.is_answered, seconds=5, what="the destination answers")
    bridge, leg = f"theirs-{uuid.uuid4().hex[:8]}", transfer.destination
    env.rest("POST", f"/bridges/{bridge}", type="mixing")
    env.rest("POST", f"/bridges/{bridge}/addChannel", channel=leg)
    api.end_transfer(transfer.transfer_id, caller, leg)
    found = f"channel {leg} is in the foreign bridge {bridge}: left alone"
    env.until(lambda: any(found in entry for entry in env.connection_entries()), seconds=10, what=found)
    ends_at = time.monotonic() + LOOKED_AFTER_SECONDS
    while time.monotonic() < ends_at:
        assert env.control.channel(leg) is not None, env.describe()
        time.sleep(0.5)
    assert env.is_joined(caller)
    env.control.hang_up(leg)
    env.rest("DELETE", f"/bridges/{bridge}")
    end(env, caller)
    nothing_left(env, api)


@pytest.mark.parametrize("process", ["worker.1", "worker.2", "listener", "scheduler"])
def test_a_process_that_is_killed_in_a_transfer_leaves_neither_party_alone(
    env: Environment, api: PlatformApi, process: str
) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    env.until(transfer.is_answered, seconds=5, what="the destination answers")
    env.pipeline.kill(process)
    env.pipeline.start(process)
    # A listener that has not passed the answer on: a resync finds the leg.
    with transfer.hears() as heard:
        answered(heard, transfer, seconds=30)
    transfer.swap()
    env.until(
        lambda: env.pipeline.call(caller)["destination_id"] == transfer.destination,
        seconds=30, what="the transfer is known",
    )  # fmt: skip
    env.control.hang_up(transfer.destination)
    began = time.monotonic()
    env.wait_state(caller, "ended", seconds=2 * ALONE_SECONDS)
    env.until(lambda: env.control.channel(caller) is None, seconds=5, what="the caller is hung up")
    assert time.monotonic() - began < ALONE_SECONDS
    nothing_left(env, api)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_without_the_platform_s_redis_a_destination_is_hung_up_and_the_caller_keeps_the_agent(
    env: Environment, api: PlatformApi, platform: servers.Redis, fault: str
) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    getattr(platform, fault)()
    transfer.wait_gone(seconds=ALONE_SECONDS)
    assert env.is_joined(caller)
    platform.thaw()
    end(env, caller)


def test_a_platform_s_redis_that_is_full_stops_no_transfer(env: Environment, api: PlatformApi) -> None:
    """It takes no key and no transaction, and still publishes."""
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    api.client.config_set("maxmemory", 1)
    try:
        with transfer.hears() as heard:
            answered(heard, transfer)
        swap(env, caller, transfer.destination)
        transfer.wait_known()
        # It is asked again: what is not removed meanwhile expires.
        time.sleep(1.5)
        assert talk(env, caller, transfer.destination)
        env.control.hang_up(transfer.destination)
        env.wait_state(caller, "ended", seconds=ALONE_SECONDS)
    finally:
        api.client.config_set("maxmemory", 0)
    nothing_left(env, api)


@pytest.mark.parametrize("who", ["caller", "destination"])
@pytest.mark.parametrize("workers", ["live", "are killed"])
def test_a_party_that_leaves_before_the_swap_is_found_leaves_the_other_not_alone(
    env: Environment, api: PlatformApi, who: str, workers: str
) -> None:
    (caller,) = env.connect()
    transfer = Transfer.begin(env, api, caller)
    with transfer.hears() as heard:
        answered(heard, transfer)
    with env.control.hold("GET", f"/bridges/{env.own(caller, 'b')}", "before") as point:
        transfer.swap()
        complete(env, caller)
        point.wait_arrived()
        if workers == "are killed":
            for name in ("worker.1", "worker.2"):
                env.pipeline.kill(name)
        env.control.hang_up(getattr(transfer, who))
    for name in ("worker.1", "worker.2"):
        if not env.pipeline.is_running(name):
            env.pipeline.start(name)
    other = transfer.destination if who == "caller" else caller
    # Beside other tests, processes that start take seconds of that.
    seconds = ALONE_SECONDS if workers == "live" else 2 * ALONE_SECONDS
    env.until(lambda: env.control.channel(other) is None, seconds=seconds, what="the other is hung up")
    env.wait_state(caller, "ended", seconds=ALONE_SECONDS)
    nothing_left(env, api)
