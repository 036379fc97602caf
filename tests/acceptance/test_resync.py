"""Resync on a simulated Asterisk finds and repairs what a lost event, message, socket or process has left.

The product's processes run once for all tests of this file, with short times; each test has its own tenant and
Asterisk.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import signal
import uuid
from collections.abc import Callable, Iterator

import pytest
import requests
from websockets.sync import client

from devstack.agent import Agent
from devstack.tenants import PASSWORD
from shared import messages, queues
from shared.asterisk import events
from shared.call.ids import ConnectionVersion
from tests.acceptance.environment import APP, EVENTS, Deploy, Deployment, Environment
from tests.support import queued

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("resync") as made:
        yield made


# ── what was lost on the way to us ───────────────────────────────────────────────────────────────────────────────────


def test_a_caller_whose_stasis_start_was_lost_is_adopted_and_the_late_event_changes_nothing(
    deployment: Deployment, env: Environment
) -> None:
    env.control.drop_events(["StasisStart"], times=1)
    leg = env.dial(caller="+49301234", called="100", args=["sales"])
    env.wait_state(leg, "connected")
    call = env.pipeline.call(leg)
    assert (call["caller_number"], call["called_number"], call["args"]) == ("+49301234", "100", ["sales"])
    assert call["entered_stamp"] is None, "no event told of it"
    before = env.facts(leg)
    (lost,) = [
        entry["event"]
        for entry in env.control.event_log("StasisStart")
        if entry["event"]["channel"]["id"] == leg and not entry["delivered"]
    ]
    late = events.parse(json.dumps(lost))
    assert late is not None
    with deployment.queue() as client:
        for _ in range(2):
            env.push_event(client, late)
        deployment.wait_idle(client)
    assert len(env.pipeline.calls(leg)) == 1, env.describe()
    assert env.facts(leg) == before, env.describe()
    assert env.runs() == 1
    assert env.is_joined(leg), env.describe()
    env.end(leg)


def test_callers_who_hang_up_while_the_listener_is_dead_are_ended(deployment: Deployment, env: Environment) -> None:
    legs = env.connect(3)
    deployment.pipeline.kill("listener")
    try:
        for leg in legs:
            env.control.hang_up(leg)
        for leg in legs:
            env.wait_state(leg, "ended", seconds=15)
            assert (env.pipeline.call(leg)["outcome"], env.run(leg)["is_completed"]) == ("completed", True)
        env.wait_empty()
    finally:
        deployment.pipeline.start("listener")
    env.until(lambda: env.control.sockets(APP), seconds=15, what="a socket again")
    env.end(*env.connect())


@pytest.mark.parametrize("silently", [False, True], ids=["loudly", "silently"])
def test_a_cut_event_socket_is_opened_again_and_what_happened_meanwhile_is_found(
    deploy: Deploy, silently: bool
) -> None:
    """Periodic resyncs are off here: the new connection triggers one."""
    with (
        deploy(f"resync-cut-{silently}", RESYNC_SECONDS="300") as deployment,
        deployment.environment() as env,
    ):
        # Without a socket and without any channel, the app and its filter are gone.
        filters = env.count("PUT", "/applications/voiceai/eventFilter")
        env.control.cut_event_sockets(APP)
        env.until(
            lambda: env.count("PUT", "/applications/voiceai/eventFilter") > filters,
            seconds=15,
            what="the event filter is set again",
        )
        assert allowed(env) == set(EVENTS)
        gone, stays = env.connect(2)
        # A resync judges only a call that has not changed for two seconds.
        env.until(
            lambda: env.pipeline.value("SELECT clock_timestamp() - max(at) > '2.1 s' FROM ari.timeline"),
            seconds=5,
            what="quiet",
        )
        lost = env.count("GET", "/applications/voiceai")
        assert env.control.cut_event_sockets(APP, silently=silently) == 1
        env.control.hang_up(gone)
        env.wait_state(gone, "ended", seconds=25)
        assert env.pipeline.call(gone)["outcome"] == "completed"
        assert env.count("GET", "/applications/voiceai") > lost, "it was the resync that found it"
        assert env.pipeline.state(stays) == "connected", env.describe()
        env.end(stays)
        env.end(*env.connect())


def allowed(env: Environment) -> set[str]:
    return {entry["type"] for entry in env.rest("GET", "/applications/voiceai").json()["events_allowed"]}


def test_the_event_filter_is_set_with_the_socket_and_restored_after_another_client_changes_it(
    env: Environment,
) -> None:
    opened = min(socket["opened_at"] for socket in env.control.sockets(APP))
    assert opened <= min(r.started_at for r in env.asked("PUT", "/applications/voiceai/eventFilter"))
    assert allowed(env) == set(EVENTS)
    requests.put(
        f"{env.asterisk.url}/ari/applications/voiceai/eventFilter",
        json={"allowed": [{"type": "ChannelDtmfReceived"}]},
        auth=(APP, PASSWORD),
        timeout=5,
    ).raise_for_status()
    env.until(lambda: allowed(env) == set(EVENTS), seconds=5, what="the filter is ours again")
    env.end(*env.connect())


def test_a_media_leg_whose_stasis_start_was_lost_is_found_ready_and_joined(env: Environment) -> None:
    with env.control.hold("POST", "/channels/externalMedia", "before") as point:
        leg = env.dial()
        point.wait_arrived()
        env.control.drop_events(["StasisStart"], times=1)
    env.wait_state(leg, "connected", seconds=6)
    delivered = [entry["delivered"] for entry in env.control.event_log("StasisStart")]
    assert delivered == [True, False], "the media leg's event was lost"
    assert env.is_joined(leg), env.describe()
    assert env.pipeline.call(leg)["attempt"] == 1, env.describe()
    env.end(leg)


@contextlib.contextmanager
def another_app(env: Environment, name: str) -> Iterator[Callable[[str, str], None]]:
    """Let another program have an app; yield what moves a leg to an app."""
    secret = base64.b64encode(f"{APP}:{PASSWORD}".encode()).decode()
    url = f"{env.asterisk.url.replace('http', 'ws', 1)}/ari/events?app={name}"

    def move(leg: str, app: str) -> None:
        answer = requests.post(
            f"{env.asterisk.url}/ari/channels/{leg}/move", params={"app": app}, auth=(APP, PASSWORD), timeout=5
        )
        assert answer.status_code == 204

    with client.connect(url, additional_headers={"Authorization": f"Basic {secret}"}):
        yield move


def test_a_caller_who_was_moved_to_our_app_unheard_is_found(env: Environment) -> None:
    with another_app(env, "ivr") as move:
        leg = env.control.dial("ivr", channel_id=f"caller-{uuid.uuid4().hex[:12]}")
        env.until(lambda: env.control.channel(leg), seconds=5, what="the caller is in the menu")
        env.control.drop_events(["StasisStart"], times=1)
        move(leg, APP)
        env.wait_state(leg, "connected")
        assert env.pipeline.call(leg)["entered_stamp"] is None, "found by a resync"
        env.control.hang_up(env.own(leg, "m"))
        env.until(lambda: env.control.channel(leg) is None, seconds=2, what="the caller is hung up")
        env.wait_state(leg, "ended")


def test_a_caller_who_was_moved_away_unheard_ends_the_call_and_lives(env: Environment) -> None:
    """It stays in our bridge until the bridge is removed."""
    (leg,) = env.connect()
    with another_app(env, "ivr") as move:
        env.control.drop_events(["StasisEnd"], times=1)
        move(leg, "ivr")
        env.wait_state(leg, "ended")
        assert env.control.channel(leg) is not None, env.describe()
        assert env.pipeline.call(leg)["reason"] == "caller left Stasis, and goes on elsewhere"
        assert not env.control.bridges()
    env.control.hang_up(leg)
    env.wait_empty()


def test_a_connected_call_whose_media_leg_or_caller_left_without_an_event_is_ended(env: Environment) -> None:
    agent_gone, caller_gone, stays = env.connect(3)
    env.control.drop_events(EVENTS)
    env.control.hang_up(env.own(agent_gone, "m"))
    env.control.hang_up(caller_gone)
    env.wait_state(agent_gone, "ended")
    env.wait_state(caller_gone, "ended")
    assert env.control.channel(agent_gone) is None, "the caller was left in silence"
    assert env.pipeline.call(agent_gone)["reason"] == "agent found gone", env.describe()
    assert env.pipeline.call(caller_gone)["reason"] == "caller hung up", env.describe()
    assert env.pipeline.state(stays) == "connected", env.describe()
    env.control.hang_up(stays)
    env.wait_state(stays, "ended")
    env.wait_empty()


# ── what another client did ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_connected_call_whose_bridge_was_taken_apart_is_ended_with_the_reason(env: Environment) -> None:
    unbridged, removed, stays = env.connect(3)
    env.rest("DELETE", f"/bridges/{env.own(unbridged, 'b')}")
    env.rest("POST", f"/bridges/{env.own(removed, 'b')}/removeChannel", channel=removed)
    env.wait_state(unbridged, "ended")
    env.wait_state(removed, "ended")
    assert env.pipeline.call(unbridged)["reason"] == "bridge lost: the bridge is gone", env.describe()
    assert env.pipeline.call(removed)["reason"].startswith("bridge lost: not in the bridge"), env.describe()
    assert removed in env.pipeline.call(removed)["reason"]
    assert {env.pipeline.call(leg)["outcome"] for leg in (unbridged, removed)} == {"failed"}
    assert env.is_joined(stays), env.describe()
    env.end(stays)


def test_orphans_with_our_prefix_and_no_live_call_are_removed(env: Environment) -> None:
    over, stays = env.connect(2)
    env.control.hang_up(over)
    env.wait_state(over, "ended")
    strange = f"{env.pipeline.id_prefix}{uuid.uuid4().hex}"
    for leg in (f"{strange}-m1", env.own(over, "m", 2)):
        env.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=leg)
    for bridge in (f"{strange}-b1", env.own(over, "b", 2)):
        env.rest("POST", f"/bridges/{bridge}", type="mixing")
    env.until(
        lambda: not [b for b in env.control.bridges() if b["id"] != env.own(stays, "b")],
        seconds=10,
        what="the bridges are removed",
    )
    env.until(
        lambda: {c["id"] for c in env.control.channels()} == {stays, env.own(stays, "m")},
        seconds=5,
        what="the legs are removed",
    )
    env.until(
        lambda: any(f"{strange}-m1 had no live call: removed" in entry for entry in env.connection_entries()),
        seconds=5,
        what="it is told",
    )
    assert env.is_joined(stays), env.describe()
    env.end(stays)


def test_legs_and_bridges_of_another_controller_are_left_alone_and_reported(deployment: Deployment) -> None:
    with (
        Agent() as their_agent,
        deployment.environment(media_urls={"theirs": their_agent.url}) as env,
    ):
        with env.control.hold("GET", "/applications/voiceai", "before"):
            # A complete call of the other controller: caller, media leg and bridge. Its socket got the caller's
            # StasisStart, ours did not.
            env.control.drop_events(["StasisStart"], times=1)
            caller = env.dial()
            env.rest("POST", "/bridges/their-bridge", type="mixing")
            env.rest("POST", "/bridges/their-bridge/addChannel", channel=caller)
            env.rest(
                "POST",
                "/channels/externalMedia",
                app=APP,
                external_host="theirs",
                format="ulaw",
                transport="websocket",
                encapsulation="none",
                channelId="their-media",
                transport_data="v(workflow_id=1,user_id=1,workflow_run_id=1)",
            )
            env.until(
                lambda: (env.control.channel("their-media") or {}).get("app") == APP, seconds=5, what="it is ready"
            )
            env.rest("POST", "/bridges/their-empty-bridge", type="mixing")
            looks = env.count("GET", "/bridges")
        env.until(lambda: env.count("GET", "/bridges") >= looks + 3, seconds=10, what="three looks at the bridges")
        assert env.control.channel("their-media") is not None
        told = [entry for entry in env.connection_entries() if caller in entry]
        assert told, env.describe()
        assert "in the foreign bridge their-bridge: left alone" in told[0]
        assert "ForeignMedia: channel their-media" in "\n".join(env.connection_entries()), env.describe()
        env.control.hang_up("their-media")
        env.until(lambda: env.control.channel("their-media") is None, seconds=5, what="their leg is gone")
        with deployment.queue() as client:
            deployment.wait_idle(client)
        assert not env.calls(), f"a leg of theirs became a call of ours\n{env.describe()}"
        assert env.control.channel(caller) is not None
        assert {bridge["id"] for bridge in env.control.bridges()} == {"their-bridge", "their-empty-bridge"}
        assert not [r for r in env.control.requests("DELETE") if "their" in r.path or caller in r.path]


def test_a_caller_sent_on_in_the_dialplan_is_never_hung_up_and_is_a_new_call_when_it_comes_back(
    env: Environment,
) -> None:
    (leg,) = env.connect()
    first_run = env.pipeline.call(leg)["workflow_run_id"]
    env.control.continue_in_dialplan(leg)
    env.wait_state(leg, "ended")
    assert [channel["id"] for channel in env.control.channels()] == [leg], env.describe()
    assert not env.count("DELETE", f"/channels/{leg}"), env.describe()
    env.control.reenter(leg, APP)
    env.until(lambda: len(env.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    env.wait_state(leg, "connected")
    first, second = env.pipeline.calls(leg)
    assert (first["entry"], second["entry"]) == (1, 2)
    assert first["state"] == "ended"
    assert second["workflow_run_id"] not in (None, first_run)
    assert env.is_joined(leg), env.describe()
    env.end(leg)


def test_a_caller_sent_on_without_an_event_survives_the_resync_and_is_a_new_call_when_it_comes_back(
    env: Environment,
) -> None:
    (leg,) = env.connect()
    env.control.drop_events(EVENTS)
    env.control.continue_in_dialplan(leg)
    env.wait_state(leg, "ended")
    assert [channel["id"] for channel in env.control.channels()] == [leg], env.describe()
    env.control.reenter(leg, APP)
    env.until(lambda: len(env.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    env.wait_state(leg, "connected", seconds=15)
    assert not env.count("DELETE", f"/channels/{leg}"), env.describe()
    assert [call["entry"] for call in env.pipeline.calls(leg)] == [1, 2]
    assert env.runs() == 2
    env.control.clear()
    env.end(leg)


# ── what was lost on our side ────────────────────────────────────────────────────────────────────────────────────────


def test_an_emptied_redis_loses_no_call_and_touches_no_connected_one(deployment: Deployment, env: Environment) -> None:
    connected = env.connect(3)
    made = env.count("POST", "/channels/externalMedia")
    with env.control.hold("POST", "/channels/externalMedia", "before") as point, deployment.queue() as client:
        # No more than the threads that one tenant may use.
        in_media = [env.dial() for _ in range(2)]
        point.wait_arrived(count=2)
        # The worker is frozen, so the listener's messages are still in Redis when it is emptied.
        deployment.pipeline.signal("worker", signal.SIGSTOP)
        try:
            unread = [env.dial() for _ in range(3)]
            env.until(lambda: queued.size(client, "admission") >= 2 + 3, seconds=5, what="their events are queued")
            client.flushall()
        finally:
            deployment.pipeline.signal("worker", signal.SIGCONT)
    waiting = [*in_media, *unread]
    for leg in waiting:
        env.wait_state(leg, "connected", "ended", seconds=25)
    assert [env.pipeline.state(leg) for leg in waiting] == ["connected"] * 5, env.describe()
    assert all(len(env.pipeline.calls(leg)) == 1 for leg in [*connected, *waiting]), env.describe()
    assert all(env.is_joined(leg, env.pipeline.call(leg)["attempt"]) for leg in [*connected, *waiting]), env.describe()
    assert env.runs() == 8
    assert {channel["gaps"] for channel in env.control.channels()} == {0}, "a connected caller heard a gap"
    assert all(env.facts(leg)[-1] in ("Joined", "MediaReady") for leg in connected), env.describe()
    assert env.count("POST", "/channels/externalMedia") >= made + 5
    env.end(*connected, *waiting)


def test_resyncs_of_one_connection_go_one_after_the_other_and_none_that_matters_is_left_out(
    deployment: Deployment, env: Environment
) -> None:
    # A worker runs at most one resync of a connection at a time; a second worker does not know of it.
    deployment.pipeline.start("worker.2")
    try:
        logs = [deployment.pipeline.logs / name for name in ("worker.log", "worker.2.log")]
        env.until(lambda: "worker started" in logs[1].read_text(), seconds=20, what="the second worker works")

        def put_off() -> int:
            return sum(log.read_text().count("resync postponed") for log in logs)

        before = put_off()
        with env.control.hold("GET", "/applications/voiceai", "before") as point:
            point.wait_arrived()
            orders = queues.BrokerCommandQueue(queues.broker(deployment.redis_url))
            for _ in range(3):
                orders.send(messages.of_resync(connection=of_connection(env), reason="test", full=True))
            env.until(lambda: put_off() >= before + 3, seconds=20, what="some were put off, and some once more")
            assert point.waiting() == 1, "one at a time"
            looks = env.count("GET", "/bridges")
        env.until(lambda: env.count("GET", "/bridges") >= looks + 3, seconds=20, what="each was done after all")
    finally:
        deployment.pipeline.stop("worker.2")


def of_connection(env: Environment) -> ConnectionVersion:
    return ConnectionVersion(env.connection["connection_id"], env.connection["version"])


def test_a_quiet_resync_asks_one_request_and_two_every_fourth_time(env: Environment) -> None:
    legs = env.connect(2)
    env.until(lambda: env.count("GET", "/bridges"), seconds=10, what="a full look")
    since = env.control.requests()[-1].started_at

    def asked_since() -> list[str]:
        return [f"{r.method} {r.path}" for r in env.control.requests() if r.started_at > since]

    env.until(lambda: asked_since().count("GET /bridges") >= 3, seconds=20, what="three full looks")
    seen = asked_since()
    assert set(seen) == {"GET /applications/voiceai", "GET /bridges"}, seen
    between = [len(list(group)) for what, group in itertools.groupby(seen) if what == "GET /applications/voiceai"]
    assert between[1:3] == [4, 4], f"looks between two full ones: {between}"
    env.end(*legs)
