"""Resync against a simulated Asterisk: whatever an event, a message, a socket or a process loses, is found and mended.

The product's processes run once for all tests of this module, with fast clocks; each test has a tenant and an Asterisk
of its own.
"""

from __future__ import annotations

import itertools
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from devstack import servers
from devstack.agent import Agent
from shared import messages, queues
from shared.asterisk import events
from tests import databases
from tests.acceptance.pipeline import PASSWORD
from tests.acceptance.sites import APP, EVENTS, PREFIX, Product, Site, running_product
from tests.support import queued

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(folder=stack_folder, logs=all_logs / "resync", database_url=database_url) as made,
    ):
        yield made


@pytest.fixture
def site(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


# ── what was lost on the way to us ───────────────────────────────────────────────────────────────────────────────────


def test_a_caller_whose_stasis_start_was_lost_is_adopted_and_the_late_event_changes_nothing(
    product: Product, site: Site
) -> None:
    site.control.drop_events(["StasisStart"], times=1)
    leg = site.dial(caller="+49301234", called="100", args=["sales"])
    site.wait_state(leg, "connected")
    call = site.pipeline.call(leg)
    assert (call["caller_number"], call["called_number"], call["args"]) == ("+49301234", "100", ["sales"])
    assert call["entered_stamp"] is None, "no event told of it"
    before = site.facts(leg)
    (lost,) = [
        entry["event"]
        for entry in site.control.event_log("StasisStart")
        if entry["event"]["channel"]["id"] == leg and not entry["delivered"]
    ]
    late = events.parse(json.dumps(lost))
    assert late is not None
    with product.queue() as client:
        for _ in range(2):
            site.push_event(client, late)
        product.wait_idle(client)
    assert len(site.pipeline.calls(leg)) == 1, site.tell()
    assert site.facts(leg) == before, site.tell()
    assert site.runs() == 1
    assert site.is_joined(leg), site.tell()
    site.end(leg)


def test_callers_who_hang_up_while_the_listener_is_dead_are_ended(product: Product, site: Site) -> None:
    legs = site.connect(3)
    product.pipeline.kill("listener")
    try:
        for leg in legs:
            site.control.hang_up(leg)
        for leg in legs:
            site.wait_state(leg, "ended", seconds=15)
            assert (site.pipeline.call(leg)["outcome"], site.run(leg)["is_completed"]) == ("completed", True)
        site.wait_empty()
    finally:
        product.pipeline.start("listener")
    site.until(lambda: site.control.sockets(APP), seconds=15, what="a socket again")
    site.end(*site.connect())


@pytest.mark.parametrize("silently", [False, True], ids=["loudly", "silently"])
def test_a_cut_event_socket_is_opened_again_and_what_happened_meanwhile_is_found(
    postgres_server: servers.Postgres,
    database_template: str,
    stack_folder: Path,
    all_logs: Path,
    silently: bool,
) -> None:
    """The clock asks for no resync here: the new connection does."""
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(
            folder=stack_folder,
            logs=all_logs / f"resync-cut-{silently}",
            database_url=database_url,
            RESYNC_SECONDS="300",
        ) as product,
        product.site() as site,
    ):
        # Without a socket and without a channel ever, the app and its filter are gone.
        filters = site.count("PUT", "/applications/voiceai/eventFilter")
        site.control.cut_event_sockets(APP)
        site.until(
            lambda: site.count("PUT", "/applications/voiceai/eventFilter") > filters,
            seconds=15,
            what="the event filter is set again",
        )
        assert allowed(site) == set(EVENTS)
        gone, stays = site.connect(2)
        # A resync judges only what has been still for two seconds.
        site.until(
            lambda: site.pipeline.value("SELECT clock_timestamp() - max(at) > '2.1 s' FROM ari.timeline"),
            seconds=5,
            what="quiet",
        )
        lost = site.count("GET", "/applications/voiceai")
        assert site.control.cut_event_sockets(APP, silently=silently) == 1
        site.control.hang_up(gone)
        site.wait_state(gone, "ended", seconds=25)
        assert site.pipeline.call(gone)["outcome"] == "completed"
        assert site.count("GET", "/applications/voiceai") > lost, "it was the resync that found it"
        assert site.pipeline.state(stays) == "connected", site.tell()
        site.end(stays)
        site.end(*site.connect())


def allowed(site: Site) -> set[str]:
    return {entry["type"] for entry in site.rest("GET", "/applications/voiceai").json()["events_allowed"]}


def test_the_event_filter_is_set_after_the_socket_is_up_and_put_back_when_somebody_changes_it(site: Site) -> None:
    opened = min(socket["opened_at"] for socket in site.control.sockets(APP))
    assert opened <= min(r.started_at for r in site.asked("PUT", "/applications/voiceai/eventFilter"))
    assert allowed(site) == set(EVENTS)
    requests.put(
        f"{site.asterisk.url}/ari/applications/voiceai/eventFilter",
        json={"allowed": [{"type": "ChannelDtmfReceived"}]},
        auth=(APP, PASSWORD),
        timeout=5,
    ).raise_for_status()
    site.until(lambda: allowed(site) == set(EVENTS), seconds=5, what="the filter is ours again")
    site.end(*site.connect())


def test_a_media_leg_whose_stasis_start_was_lost_is_found_ready_and_joined(site: Site) -> None:
    with site.control.hold("POST", "/channels/externalMedia", "before") as gate:
        leg = site.dial()
        gate.wait_arrived()
        site.control.drop_events(["StasisStart"], times=1)
    site.wait_state(leg, "connected", seconds=6)
    delivered = [entry["delivered"] for entry in site.control.event_log("StasisStart")]
    assert delivered == [True, False], "the media leg's event was lost"
    assert site.is_joined(leg), site.tell()
    assert site.pipeline.call(leg)["attempt"] == 1, site.tell()
    site.end(leg)


def test_a_connected_call_whose_media_leg_or_caller_went_unheard_is_ended(site: Site) -> None:
    agent_gone, caller_gone, stays = site.connect(3)
    site.control.drop_events(EVENTS)
    site.control.hang_up(site.own(agent_gone, "m"))
    site.control.hang_up(caller_gone)
    site.wait_state(agent_gone, "ended")
    site.wait_state(caller_gone, "ended")
    assert site.control.channel(agent_gone) is None, "the caller was left in silence"
    assert site.pipeline.call(agent_gone)["reason"] == "agent hung up", site.tell()
    assert site.pipeline.call(caller_gone)["reason"] == "caller hung up", site.tell()
    assert site.pipeline.state(stays) == "connected", site.tell()
    site.control.hang_up(stays)
    site.wait_state(stays, "ended")
    site.wait_empty()


# ── what somebody else did ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_connected_call_whose_bridge_was_taken_apart_is_ended_with_the_reason(site: Site) -> None:
    unbridged, removed, stays = site.connect(3)
    site.rest("DELETE", f"/bridges/{site.own(unbridged, 'b')}")
    site.rest("POST", f"/bridges/{site.own(removed, 'b')}/removeChannel", channel=removed)
    site.wait_state(unbridged, "ended")
    site.wait_state(removed, "ended")
    assert site.pipeline.call(unbridged)["reason"] == "bridge lost: the bridge is gone", site.tell()
    assert site.pipeline.call(removed)["reason"].startswith("bridge lost: not in the bridge"), site.tell()
    assert removed in site.pipeline.call(removed)["reason"]
    assert {site.pipeline.call(leg)["outcome"] for leg in (unbridged, removed)} == {"failed"}
    assert site.is_joined(stays), site.tell()
    site.end(stays)


def test_leftovers_with_our_prefix_and_no_live_call_are_removed(site: Site) -> None:
    over, stays = site.connect(2)
    site.control.hang_up(over)
    site.wait_state(over, "ended")
    strange = f"{PREFIX}{uuid.uuid4().hex}"
    for leg in (f"{strange}-m1", site.own(over, "m", 2)):
        site.rest("POST", "/channels", endpoint="Local/1@elsewhere", app=APP, channelId=leg)
    for bridge in (f"{strange}-b1", site.own(over, "b", 2)):
        site.rest("POST", f"/bridges/{bridge}", type="mixing")
    site.until(
        lambda: not [b for b in site.control.bridges() if b["id"] != site.own(stays, "b")],
        seconds=10,
        what="the bridges are removed",
    )
    site.until(
        lambda: {c["id"] for c in site.control.channels()} == {stays, site.own(stays, "m")},
        seconds=5,
        what="the legs are removed",
    )
    assert any(f"{strange}-m1 had no live call: removed" in note for note in site.notes()), site.notes()
    assert site.is_joined(stays), site.tell()
    site.end(stays)


def test_legs_and_bridges_of_another_controller_are_left_alone_and_reported(product: Product) -> None:
    with (
        Agent() as their_agent,
        product.site(media_urls={"theirs": their_agent.url}) as site,
    ):
        with site.control.hold("GET", "/applications/voiceai", "before"):
            # A whole call of theirs: the caller in a bridge of theirs with a media leg of theirs. A caller's
            # StasisStart was heard by their socket, not by ours.
            site.control.drop_events(["StasisStart"], times=1)
            caller = site.dial()
            site.rest("POST", "/bridges/their-bridge", type="mixing")
            site.rest("POST", "/bridges/their-bridge/addChannel", channel=caller)
            site.rest(
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
            site.until(
                lambda: (site.control.channel("their-media") or {}).get("app") == APP, seconds=5, what="it is ready"
            )
            site.rest("POST", "/bridges/their-empty-bridge", type="mixing")
            looks = site.count("GET", "/bridges")
        site.until(lambda: site.count("GET", "/bridges") >= looks + 3, seconds=10, what="three looks at the bridges")
        assert site.control.channel("their-media") is not None
        told = [note for note in site.notes() if caller in note]
        assert told, site.tell()
        assert "in bridge their-bridge, which is not ours: left alone" in told[0]
        assert "ForeignMedia: channel their-media" in "\n".join(site.notes()), site.tell()
        site.control.hang_up("their-media")
        site.until(lambda: site.control.channel("their-media") is None, seconds=5, what="their leg is gone")
        with product.queue() as client:
            product.wait_idle(client)
        assert not site.calls(), f"a leg of theirs became a call of ours\n{site.tell()}"
        assert site.control.channel(caller) is not None
        assert {bridge["id"] for bridge in site.control.bridges()} == {"their-bridge", "their-empty-bridge"}
        assert not [r for r in site.control.requests("DELETE") if "their" in r.path or caller in r.path]


def test_a_caller_sent_on_in_the_dialplan_is_never_hung_up_and_is_a_new_call_when_it_comes_back(site: Site) -> None:
    (leg,) = site.connect()
    first_run = site.pipeline.call(leg)["workflow_run_id"]
    site.control.continue_in_dialplan(leg)
    site.wait_state(leg, "ended")
    assert [channel["id"] for channel in site.control.channels()] == [leg], site.tell()
    assert not site.count("DELETE", f"/channels/{leg}"), site.tell()
    site.control.reenter(leg, APP)
    site.until(lambda: len(site.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    site.wait_state(leg, "connected")
    first, second = site.pipeline.calls(leg)
    assert (first["entry"], second["entry"]) == (1, 2)
    assert first["state"] == "ended"
    assert second["workflow_run_id"] not in (None, first_run)
    assert site.is_joined(leg), site.tell()
    site.end(leg)


def test_a_caller_sent_on_unheard_survives_the_resync_and_is_a_new_call_when_it_comes_back_unheard(site: Site) -> None:
    (leg,) = site.connect()
    site.control.drop_events(EVENTS)
    site.control.continue_in_dialplan(leg)
    site.wait_state(leg, "ended")
    assert [channel["id"] for channel in site.control.channels()] == [leg], site.tell()
    site.control.reenter(leg, APP)
    site.until(lambda: len(site.pipeline.calls(leg)) == 2, seconds=5, what="a second call")
    site.wait_state(leg, "connected", seconds=15)
    assert not site.count("DELETE", f"/channels/{leg}"), site.tell()
    assert [call["entry"] for call in site.pipeline.calls(leg)] == [1, 2]
    assert site.runs() == 2
    site.control.clear()
    site.end(leg)


# ── what was lost on our side ────────────────────────────────────────────────────────────────────────────────────────


def test_an_emptied_redis_loses_no_call_and_touches_no_connected_one(product: Product, site: Site) -> None:
    connected = site.connect(3)
    made = site.count("POST", "/channels/externalMedia")
    with site.control.hold("POST", "/channels/externalMedia", "before") as gate, product.queue() as client:
        # No more than a tenant has threads, whoever else is about.
        in_media = [site.dial() for _ in range(2)]
        gate.wait_arrived(count=2)
        # With the worker frozen, what the listener pushes is still in Redis when it is emptied.
        product.pipeline.signal("worker", signal.SIGSTOP)
        try:
            unread = [site.dial() for _ in range(3)]
            site.until(lambda: queued.size(client, "quota") >= 2 + 3, seconds=5, what="their events are in the queue")
            client.flushall()
        finally:
            product.pipeline.signal("worker", signal.SIGCONT)
    waiting = [*in_media, *unread]
    for leg in waiting:
        site.wait_state(leg, "connected", "ended", seconds=25)
    assert [site.pipeline.state(leg) for leg in waiting] == ["connected"] * 5, site.tell()
    assert all(len(site.pipeline.calls(leg)) == 1 for leg in [*connected, *waiting]), site.tell()
    assert all(site.is_joined(leg, site.pipeline.call(leg)["attempt"]) for leg in [*connected, *waiting]), site.tell()
    assert site.runs() == 8
    assert {channel["gaps"] for channel in site.control.channels()} == {0}, "a connected caller heard a gap"
    assert all(site.facts(leg)[-1] in ("Joined", "MediaReady") for leg in connected), site.tell()
    assert site.count("POST", "/channels/externalMedia") >= made + 5
    site.end(*connected, *waiting)


def test_resyncs_of_one_connection_go_one_after_the_other_and_none_that_matters_is_left_out(
    product: Product, site: Site
) -> None:
    # One worker has one resync of a connection in hand at most; a second worker does not know of it.
    product.pipeline.start("worker.2")
    try:
        logs = [product.pipeline.logs / name for name in ("worker.log", "worker.2.log")]
        site.until(lambda: "worker started" in logs[1].read_text(), seconds=20, what="the second worker works")

        def put_off() -> int:
            return sum(log.read_text().count("resync put off") for log in logs)

        before = put_off()
        with site.control.hold("GET", "/applications/voiceai", "before") as gate:
            gate.wait_arrived()
            orders = queues.BrokerCommandQueue(queues.broker(product.redis_url))
            for _ in range(3):
                orders.send(messages.of_resync(**of_connection(site), reason="test", full=True))
            site.until(lambda: put_off() >= before + 3, seconds=20, what="some were put off, and some once more")
            assert gate.waiting() == 1, "one at a time"
            looks = site.count("GET", "/bridges")
        site.until(lambda: site.count("GET", "/bridges") >= looks + 3, seconds=20, what="each was done after all")
    finally:
        product.pipeline.stop("worker.2")


def of_connection(site: Site) -> dict[str, int]:
    connection = site.connection
    return {"connection_id": connection["connection_id"], "connection_version": connection["version"]}


def test_a_quiet_resync_asks_one_request_and_two_every_fourth_time(site: Site) -> None:
    legs = site.connect(2)
    site.until(lambda: site.count("GET", "/bridges"), seconds=10, what="a full look")
    since = site.control.requests()[-1].started_at

    def asked_since() -> list[str]:
        return [f"{r.method} {r.path}" for r in site.control.requests() if r.started_at > since]

    site.until(lambda: asked_since().count("GET /bridges") >= 3, seconds=20, what="three full looks")
    seen = asked_since()
    assert set(seen) == {"GET /applications/voiceai", "GET /bridges"}, seen
    between = [len(list(group)) for what, group in itertools.groupby(seen) if what == "GET /applications/voiceai"]
    assert between[1:3] == [4, 4], f"looks between two full ones: {between}"
    site.end(*legs)
