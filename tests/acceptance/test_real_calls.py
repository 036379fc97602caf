"""Inbound calls on a real Asterisk with the real processes: from SQL rows to audio, until nothing is left."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
import requests

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_config import Client
from devstack.asterisk_root import Root
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

CALLS = 100
CALLS_PER_SECOND = 10


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    with real_stack.running(deploy, asterisk_root, stack_folder, "real-calls") as made:
        yield made


running, asterisk, agent, tenant = real_stack.FIXTURES


class SilentAgent:
    """Accepts connections and never answers; once `closing`, closes every connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ends = False
        self.closing = False
        self.url = f"ws://127.0.0.1:{self._server.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = self.closing = True
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while not self._ends:
            with contextlib.suppress(TimeoutError):
                self._connections.append(self._server.accept()[0])
            while self.closing and self._connections:
                self._connections.pop().close()


def ours(asterisk: RealAsterisk) -> list[str]:
    """Return our legs, and the callers' legs that have entered the dialplan."""
    return [channel["id"] for channel in asterisk.channels() if not channel["id"].startswith("far-")]


def nothing_is_left(asterisk: RealAsterisk) -> bool:
    return not asterisk.channels() and not asterisk.bridges()


def in_one_bridge_with_media(asterisk: RealAsterisk, leg: str) -> bool:
    return any(leg in bridge["channels"] and len(bridge["channels"]) == 2 for bridge in asterisk.bridges())


def attempts(pipeline: Pipeline, leg: str) -> int:
    """Return how many attempts the call of a leg has begun."""
    return int(pipeline.call(leg)["attempt"]) if pipeline.calls(leg) else 0


def media_ids(pipeline: Pipeline, leg: str) -> list[str]:
    """Return the ids under which a media leg was requested for the call of a leg, in their order."""
    rows = pipeline.query(
        "SELECT media_id FROM ari.attempts WHERE call_id = %s ORDER BY attempt", pipeline.call(leg)["call_id"]
    )
    return [row["media_id"] for row in rows]


def ended(pipeline: Pipeline, *legs: str) -> bool:
    return all(pipeline.state(leg) == "ended" for leg in legs)


def test_a_hundred_calls_are_all_bridged_once_and_leave_nothing(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant
) -> None:
    legs = []
    begun = time.monotonic()
    for number in range(CALLS):
        time.sleep(max(0.0, begun + number / CALLS_PER_SECOND - time.monotonic()))
        legs.append(asterisk.dial(called="5551234", caller=f"49155500{number:04d}"))
    wait_until(
        lambda: all(running.state(leg) == "connected" for leg in legs),
        seconds=20,
        what=lambda: str(running.query("SELECT state, reason, count(*) FROM ari.calls GROUP BY 1, 2")),
    )
    bridged = {leg for bridge in asterisk.bridges() if len(bridge["channels"]) == 2 for leg in bridge["channels"]}
    assert set(legs) <= bridged, "a caller is connected to no agent"
    assert running.value("SELECT count(*) FROM workflow_runs") == CALLS
    assert running.value("SELECT count(DISTINCT workflow_run_id) FROM ari.calls") == CALLS
    run = running.run(legs[0])
    call = running.call(legs[0])
    assert (run["name"], run["mode"], run["call_type"], run["state"]) == (
        "ARI Inbound 491555000000",
        "ari",
        "inbound",
        "running",
    )
    assert run["workflow_id"] == tenant.workflow_id
    assert run["definition_id"] == tenant.definition_id
    assert run["initial_context"] == {
        "caller_number": "491555000000",
        "called_number": "5551234",
        "direction": "inbound",
        "provider": "ari",
    }
    assert run["gathered_context"] == {
        "call_id": legs[0],
        "provider": "ari",
        "channel_name": call["channel_name"],
        "ext_channel_id": running.own_id(call, "m"),
        "bridge_id": running.own_id(call, "b"),
    }
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(asterisk.hang_up_caller, legs))
    wait_until(lambda: ended(running, *legs), seconds=30, what="every call ended")
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: f"left: {asterisk.channels()}")
    assert running.value("SELECT count(*) FROM workflow_runs WHERE NOT is_completed OR state <> 'completed'") == 0
    durations = running.query("SELECT (usage_info ->> 'call_duration_seconds')::int AS seconds FROM workflow_runs")
    assert all(row["seconds"] is not None for row in durations)
    assert max(row["seconds"] for row in durations) >= CALLS / CALLS_PER_SECOND - 1
    outcomes = running.query("SELECT outcome, count(*) AS calls FROM ari.calls GROUP BY 1")
    assert outcomes == [{"outcome": "completed", "calls": CALLS}]


def test_audio_flows_both_ways(running: Pipeline, asterisk: RealAsterisk, agent: Agent) -> None:
    leg = asterisk.dial(far="tone", listen=True)
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    session = agent.sessions[running.call(leg)["workflow_run_id"]]
    wait_until(lambda: session.dominant_frequency is not None, seconds=5, what="the agent hears the caller")
    heard_by_agent = session.dominant_frequency
    assert heard_by_agent == pytest.approx(1004, abs=20)


def test_the_caller_hears_the_agent(running: Pipeline, asterisk: RealAsterisk) -> None:
    leg = asterisk.dial(far="wait", listen=True)
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    assert asterisk.heard_by_caller(leg, seconds=10) == pytest.approx(400, abs=20)


def test_two_hundred_callers_who_hang_up_at_once_leave_nothing(running: Pipeline, asterisk: RealAsterisk) -> None:
    chance = random.Random(1)
    legs: list[str] = []

    def call_briefly(number: int) -> None:
        leg = asterisk.dial(channel_id=f"brief-{number}x")
        legs.append(leg)
        time.sleep(chance.uniform(0, 0.05))
        asterisk.hang_up_caller(leg)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call_briefly, range(200)))
    wait_until(lambda: nothing_is_left(asterisk), seconds=30, what=lambda: f"left: {ours(asterisk)}")
    wait_until(
        lambda: running.value("SELECT count(*) FROM ari.calls WHERE state <> 'ended'") == 0,
        seconds=30,
        what=lambda: str(running.query("SELECT state, reason, count(*) FROM ari.calls GROUP BY 1, 2")),
    )
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: f"left: {ours(asterisk)}")
    assert running.value("SELECT count(*) FROM workflow_runs WHERE NOT is_completed") == 0
    assert running.value("SELECT count(*) FROM ari.timeline WHERE kind = 'dead-letter'") == 0


def test_an_agent_that_is_back_in_two_seconds_gets_the_caller_who_waits(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    """Neither the caller nor Asterisk is touched: the product waits, and tries again under new ids."""
    agent.stop()
    leg = asterisk.dial()
    wait_until(lambda: attempts(running, leg) >= 2, seconds=10, every=0, what=lambda: running.story(leg))
    # 0.5 s have passed since the first refusal; the third attempt follows after 1 s, the fourth after 2 s more.
    time.sleep(1.5)
    states = {channel["id"]: channel["state"] for channel in asterisk.channels()}
    assert (running.state(leg), states[leg]) == ("prepared", "Ring")
    agent.start()
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    assert in_one_bridge_with_media(asterisk, leg)
    assert len(agent.sessions) == 1
    assert running.value("SELECT count(*) FROM workflow_runs") == 1
    # What the attempts before have left is gone.
    assert {channel["id"] for channel in asterisk.channels()} == {leg, f"far-{leg}", *media_ids(running, leg)[-1:]}
    assert len(asterisk.bridges()) == 1


def test_an_agent_that_refuses_for_good_is_asked_four_times_under_four_ids(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    agent.behaviour.refuse = 409
    leg = asterisk.dial()
    wait_until(lambda: ended(running, leg), seconds=20, what=lambda: running.story(leg))
    call = running.call(leg)
    assert (call["outcome"], call["attempt"], call["connected_at"]) == ("failed", 4, None)
    assert call["reason"].startswith("voice agent not reached: media leg ended, cause 3")
    assert len(agent.refusals) == 4
    assert len(set(media_ids(running, leg))) == 4
    assert running.run(leg)["is_completed"]
    wait_until(lambda: nothing_is_left(asterisk), seconds=5)


def test_who_hangs_up_while_an_agent_refuses_leaves_nothing(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    agent.behaviour.refuse = 409
    leg = asterisk.dial()
    wait_until(lambda: agent.refusals, seconds=10, every=0)
    asterisk.hang_up_caller(leg)
    wait_until(lambda: ended(running, leg), seconds=5, what=lambda: running.story(leg))
    asked = len(agent.refusals)
    assert running.call(leg)["outcome"] == "abandoned"
    assert nothing_is_left(asterisk)
    # Another attempt would follow within a second.
    time.sleep(1.5)
    assert len(agent.refusals) == asked


def test_an_agent_that_refuses_holds_no_other_caller_up(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent, tenant: Tenant
) -> None:
    agent.behaviour.refuse = 409
    legs = [asterisk.dial(caller=f"4915550{number:04d}") for number in range(10)]
    wait_until(lambda: ended(running, *legs), seconds=20, what=lambda: running.story(legs[-1]))
    assert len(agent.refusals) == 4 * len(legs)
    assert running.value("SELECT count(*) FROM ari.attempts WHERE outcome <> 'created'") == 0
    wait_until(lambda: nothing_is_left(asterisk), seconds=5)


def test_an_agent_that_is_down_costs_the_caller_nothing_but_a_wait(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    agent.stop()
    leg = asterisk.dial()
    wait_until(lambda: ended(running, leg), seconds=20, what=lambda: running.story(leg))
    call = running.call(leg)
    assert call["outcome"] == "failed"
    assert call["reason"].startswith("voice agent not reached")
    assert call["connected_at"] is None
    run = running.run(leg)
    assert (run["is_completed"], run["usage_info"]) == (True, {"call_duration_seconds": 0})
    assert run["gathered_context"]["mapped_call_disposition"] == "error"
    assert run["gathered_context"]["error"].startswith("voice agent not reached")
    wait_until(lambda: nothing_is_left(asterisk), seconds=5)
    assert asterisk.answers(), "Asterisk crashed"


def test_an_agent_that_never_answers_the_upgrade_blocks_asterisk_until_it_closes_the_connection(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    with SilentAgent() as silent:
        asterisk.configuration.clients["media"] = Client(uri=silent.url)
        asterisk.reload()
        leg = asterisk.dial()
        wait_until(lambda: running.state(leg) in ("ending", "ended"), seconds=20, what=lambda: running.story(leg))
        call = running.call(leg)
        assert (call["outcome"], call["connected_at"]) == ("failed", None)
        assert call["reason"] == "voice agent not reached: media leg not ready in time"
        wait_until(lambda: running.run(leg)["is_completed"], seconds=5, what="the run does not wait for Asterisk")
        assert running.run(leg)["gathered_context"]["mapped_call_disposition"] == "error"
        with pytest.raises(requests.Timeout):
            asterisk.dial()
        silent.closing = True
        # Asterisk tries the agent four times, and each try is closed at once. A teardown may pause for 30 s by now.
        wait_until(lambda: ended(running, leg), seconds=60, what=lambda: running.story(leg))
    asterisk.configuration.clients["media"] = Client(uri=agent.url)
    asterisk.reload()
    after = asterisk.dial()
    wait_until(lambda: running.state(after) == "connected", seconds=30, what=lambda: running.story(after))


def test_an_agent_that_takes_a_second_is_waited_for(running: Pipeline, asterisk: RealAsterisk, agent: Agent) -> None:
    agent.behaviour.accept_delay_seconds = 1.0
    leg = asterisk.dial()
    wait_until(lambda: running.state(leg) == "connected", seconds=15, what=lambda: running.story(leg))
    assert in_one_bridge_with_media(asterisk, leg)


def test_an_agent_that_hangs_up_ends_the_call(running: Pipeline, asterisk: RealAsterisk, agent: Agent) -> None:
    leg = asterisk.dial()
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    agent.close_all()
    wait_until(lambda: ended(running, leg), seconds=10, what=lambda: running.story(leg))
    assert (running.call(leg)["outcome"], running.call(leg)["reason"]) == ("completed", "agent hung up")
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: f"left: {asterisk.channels()}")


def test_an_unknown_websocket_client_is_named(running: Pipeline, asterisk: RealAsterisk, tenant: Tenant) -> None:
    tenant.configure(asterisk.url, ws_client_name="unknown")
    leg = asterisk.dial()
    wait_until(lambda: ended(running, leg), seconds=10, what=lambda: running.story(leg))
    assert "is the websocket client 'unknown' in websocket_client.conf?" in running.call(leg)["reason"]
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: f"left: {asterisk.channels()}")


def test_a_restarted_asterisk_ends_its_calls_and_serves_new_ones(running: Pipeline, asterisk: RealAsterisk) -> None:
    before = asterisk.dial()
    wait_until(lambda: running.state(before) == "connected", seconds=10, what=lambda: running.story(before))
    asterisk.restart()
    wait_until(lambda: ended(running, before), seconds=25, what=lambda: running.story(before))
    assert running.run(before)["is_completed"]
    wait_until(running.connected, seconds=20)
    after = asterisk.dial()
    wait_until(lambda: running.state(after) == "connected", seconds=10, what=lambda: running.story(after))


def test_a_worker_killed_in_the_media_step_loses_no_call(running: Pipeline, asterisk: RealAsterisk) -> None:
    running.stop("worker")
    running.start("worker.a", WORKER_QUEUES="admission,runs,bridge,teardown,resync")
    running.start("worker.b", WORKER_QUEUES="media")
    legs = [asterisk.dial() for _ in range(10)]
    wait_until(lambda: any(running.calls(leg) and running.call(leg)["attempt"] for leg in legs), seconds=10, every=0)
    running.kill("worker.b")
    running.start("worker.c", WORKER_QUEUES="media")
    wait_until(
        lambda: all(running.state(leg) in ("connected", "ended") for leg in legs),
        seconds=60,
        what=lambda: str(running.query("SELECT state, reason, attempt FROM ari.calls")),
    )
    assert [running.state(leg) for leg in legs] == ["connected"] * len(legs)
    assert all(in_one_bridge_with_media(asterisk, leg) for leg in legs)
    assert asterisk.answers(), "Asterisk crashed"
    for leg in legs:
        asterisk.hang_up_caller(leg)
    wait_until(lambda: ended(running, *legs), seconds=60, what="every call ended")
    wait_until(lambda: nothing_is_left(asterisk), seconds=10, what=lambda: f"left: {asterisk.channels()}")
    for name in ("worker.a", "worker.c"):
        running.stop(name)
    running.start("worker")


def test_a_password_changed_during_a_call_neither_ends_it_nor_leaves_it_behind(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant
) -> None:
    leg = asterisk.dial()
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    open_version = "SELECT version FROM ari.connection_versions WHERE retired_at IS NULL AND socket_state = 'connected'"
    ((version,),) = (row.values() for row in running.query(open_version))
    asterisk.configuration.users["voiceai"] = "another & longer one"
    asterisk.reload()
    tenant.configure(asterisk.url, password="another & longer one")
    wait_until(
        lambda: running.query(open_version) == [{"version": version + 1}],
        seconds=15,
        what=lambda: str(running.query("SELECT * FROM ari.connection_versions")),
    )
    assert running.state(leg) == "connected", running.story(leg)
    assert in_one_bridge_with_media(asterisk, leg)
    asterisk.hang_up_caller(leg)
    # The worker that has the old password gets the new one within ten seconds.
    wait_until(lambda: ended(running, leg), seconds=30, what=lambda: running.story(leg))
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: f"left: {ours(asterisk)}")


def test_configurations_added_changed_and_removed_take_effect_within_ten_seconds(
    running: Pipeline, tenant: Tenant, asterisk: RealAsterisk
) -> None:
    tenant.configure(asterisk.url, password="wrong")
    wait_until(
        lambda: "401" in str(running.query("SELECT last_error FROM ari.connection_versions")),
        seconds=10,
        what=lambda: str(running.query("SELECT * FROM ari.connection_versions")),
    )
    tenant.configure(asterisk.url, password=PASSWORD)
    wait_until(running.connected, seconds=10, what="the right password connects")
    leg = asterisk.dial()
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    tenant.remove_configuration()
    wait_until(
        lambda: running.query("SELECT state FROM ari.connections") == [{"state": "removed"}],
        seconds=10,
        what="the connection is left",
    )
    refused = asterisk.dial()
    wait_until(lambda: ended(running, refused), seconds=10, what=lambda: running.story(refused))
    assert running.call(refused)["outcome"] == "refused"
    assert running.state(leg) == "connected", "a running call goes on"
    asterisk.hang_up_caller(leg)
    wait_until(lambda: ended(running, leg), seconds=10, what=lambda: running.story(leg))
    wait_until(
        lambda: (
            running.query("SELECT count(*) AS open FROM ari.connection_versions WHERE retired_at IS NULL")
            == [{"open": 0}]
        ),
        seconds=10,
        what="its socket is let go when its calls have ended",
    )
