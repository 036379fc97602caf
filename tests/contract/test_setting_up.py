"""The set-up of a call."""

import base64
import contextlib
import functools
import socket
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.contract import switches
from tests.contract.agent import Agent
from tests.contract.conftest import ONLY_REAL, ONLY_REAL_OWN, MakeSwitch
from tests.contract.event_sockets import Events, until
from tests.contract.switches import Switch
from tests.support.odd_ids import ODD_IDS


def test_the_data_of_external_media_are_the_args_of_its_stasis_start(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        assert switch.external_media(number, app, data="a1b2c3d4").status_code == 200
        assert events.next("StasisStart", number)["args"] == ["a1b2c3d4"]


def test_external_media_answers_before_the_agent_accepts(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        answer = switch.external_media(number, app, "delay=2")
        assert (answer.status_code, answer.json()["state"]) == (200, "Down")
        assert switch.get(f"/channels/{number}")["state"] == "Down"
        assert "StasisStart" not in events.types(seconds=0.1)


def test_media_leg_is_ready_with_its_own_stasis_start(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.external_media(number, app, "delay=0.2")
        start = events.next("StasisStart", number)
        assert (start["args"], start["channel"]["state"]) == ([], "Up")
        dials = [event["dialstatus"] for event in events.seen if event["type"] == "Dial"]
        assert dials == ["", "ANSWER"]
        switch.call("POST", f"/bridges/{number}", type="mixing")
        assert switch.status("POST", f"/bridges/{number}/addChannel", channel=number) == 204


def test_add_channel_with_a_leg_outside_stasis_adds_none(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        switch.call("POST", f"/bridges/{number}", type="mixing")
        for media in (f"{number}m{attempt}" for attempt in range(_TRIES)):
            switch.external_media(media, app, "delay=5")
            orders = (f"{leg},{media}", f"{media},{leg}")
            answers = [switch.call("POST", f"/bridges/{number}/addChannel", channel=order) for order in orders]
            if switch.get(f"/channels/{media}")["state"] == "Down":
                break
            # It has connected meanwhile: the machine is busy, or Asterisk made a request wait for it (see below).
            for added in (leg, media):
                switch.call("POST", f"/bridges/{number}/removeChannel", channel=added)
        refusals = [(answer.status_code, answer.json()["message"]) for answer in answers]
        assert refusals == [(422, "Channel not in Stasis application")] * 2
        assert switch.get(f"/bridges/{number}")["channels"] == []


@pytest.mark.parametrize("treatment", ["unreachable", "refuse=403"])
def test_unreachable_media_ends_in_channel_destroyed_alone(
    switch: Switch, number: str, app: str, treatment: str
) -> None:
    with switch.events(app) as events:
        if treatment.startswith("refuse"):
            assert switch.external_media(number, app, treatment).status_code == 200
        else:
            assert switch.external_media(number, app, external_host="unreachable").status_code == 200
        destroyed = events.next("ChannelDestroyed", number)
        assert (destroyed["cause"], destroyed["cause_txt"]) == (3, "No route to destination")
        assert events.types(number) == ["ChannelDestroyed"]


#: A channel whose id Asterisk chooses, as that of a SIP caller.
CALLER = {"endpoint": "Local/wait@far", "context": "far", "extension": "wait", "priority": "1", "formats": "ulaw"}


#: A connecting media leg is tried with so often: on a busy machine it may have connected before what is asked beside it
#: arrives; and in some 2 of 250 tries Asterisk compares ids for a reason of its own, so that what should not wait does.
_TRIES = 4


def _connecting_leg(switch: Switch, events: Events, number: str, app: str, agent: Agent) -> str:
    """Return a media leg that connects for seconds, beside which Asterisk created a channel under an id of its own.

    Such a channel does not wait.
    """
    for attempt in range(_TRIES):
        media = f"{number}-media-{attempt}"
        switch.external_media(media, app, "delay=4")
        until(functools.partial(agent.of, media))
        assert switch.call("POST", "/channels", **CALLER).status_code == 200
        if switch.get(f"/channels/{media}")["state"] == "Down":
            return media
    pytest.fail(f"{_TRIES} times a channel under an id of Asterisk's own waited for a connecting media leg")


def _waiting(switch: Switch, pool: ThreadPoolExecutor, what: str, name: str, app: str) -> Future[requests.Response]:
    match what:
        case "media leg":
            return pool.submit(switch.external_media, name, app)
        case "caller":
            return pool.submit(switch.originate, "Local/wait@far", app, name)
        case _:
            return pool.submit(switch.call, "DELETE", "/channels/gone")


@ONLY_REAL
@pytest.mark.parametrize("what", ["media leg", "caller", "delete"])
def test_while_a_media_leg_connects_what_compares_ids_of_channels_waits(
    switch: Switch, number: str, app: str, agent: Agent, what: str
) -> None:
    with switch.events(app) as events, ThreadPoolExecutor() as pool:
        leg = switch.ring(events, number)
        for attempt in range(_TRIES):
            media = _connecting_leg(switch, events, f"{number}-{attempt}", app, agent)
            waiting = _waiting(switch, pool, what, f"other-{number}-{attempt}", app)
            if not futures.wait([waiting], timeout=0.5).done:
                break
            assert switch.get(f"/channels/{media}")["state"] == "Up", "it did not wait"
        # While it waits, no channel at all can be created.
        caller = pool.submit(switch.call, "POST", "/channels", **CALLER)
        assert futures.wait([waiting, caller], timeout=0.5).done == set()
        # All else is answered.
        assert switch.get(f"/channels/{media}")["state"] == "Down"
        assert switch.status("POST", f"/bridges/{number}", type="mixing") == 200
        assert switch.status("POST", f"/channels/{leg}/answer") == 204
        assert not waiting.done()
        events.find("StasisStart", media)
        assert waiting.result().status_code == (404 if what == "delete" else 200)
        assert caller.result().status_code == 200


@ONLY_REAL_OWN
@pytest.mark.parametrize("attempts", [1, 2])
def test_a_refused_media_leg_lets_others_wait_for_all_its_attempts(
    make_switch: MakeSwitch, agent: Agent, attempts: int
) -> None:
    switch, leg = make_switch(attempts=attempts), f"refused-{attempts}"
    with switch.events("app-1") as events:
        switch.external_media(leg, "app-1", "delay=0.2,refuse=409")
        until(lambda: agent.of(leg))
        assert switch.external_media(f"other-{attempts}", "app-1").status_code == 200
        assert len(agent.of(leg)) == attempts
        # In either order: the one leg is destroyed while the other one enters the app.
        assert events.find("ChannelDestroyed", leg)["cause"] == 3
        events.find("StasisStart", f"other-{attempts}")


@ONLY_REAL
def test_the_connection_timeout_does_not_bound_the_agents_answer(
    switch: Switch, number: str, app: str, agent: Agent
) -> None:
    with switch.events(app) as events:
        switch.external_media(number, app, f"delay={3 * switches.CONNECTION_SECONDS}")
        events.next("StasisStart", number)
        assert len(agent.of(number)) == 1


def test_leg_whose_client_went_away_without_its_answer_lives_on(switch: Switch, number: str, app: str) -> None:
    parts = urlsplit(switch.url)
    secret = base64.b64encode(f"{switches.USER}:{switches.PASSWORD}".encode()).decode()
    query = f"app={app}&external_host=media&format=ulaw&transport=websocket&encapsulation=none&connection_type=client"
    data = quote(f"v(leg={number},delay=0.3)")
    with switch.events(app) as events:
        with socket.create_connection((parts.hostname, parts.port)) as client:
            path = f"/ari/channels/externalMedia?{query}&channelId={number}&transport_data={data}"
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\n"
            client.sendall(f"{head}Authorization: Basic {secret}\r\nContent-Length: 0\r\n\r\n".encode())
            until(lambda: number in switch.channel_ids())
        events.next("StasisStart", number)


@pytest.mark.parametrize("second", ["q-m10", "q-m1"])
def test_second_external_media_with_an_id_or_a_prefix_of_it_crashes_asterisk(
    make_switch: MakeSwitch, second: str
) -> None:
    switch = make_switch()
    with switch.events("app-1") as events:
        switch.external_media("q-m10", "app-1")
        events.next("StasisStart", "q-m10")
        # The answer may still come; the crash follows soon.
        with contextlib.suppress(requests.ConnectionError):
            switch.external_media(second, "app-1")
    until(switch.has_crashed)


def test_unknown_websocket_client_is_refused(switch: Switch, number: str, app: str) -> None:
    answer = switch.external_media(number, app, external_host="stranger")
    assert answer.status_code == 400
    assert answer.json()["message"] == "external_host must be a valid websocket_client connection id."


def test_external_media_for_an_unknown_app_is_200_and_then_nothing(switch: Switch, number: str, agent: Agent) -> None:
    assert switch.external_media(number, f"never-{number}").status_code == 200
    until(lambda: agent.of(number))
    until(lambda: number not in switch.channel_ids())
    assert switch.refusal("GET", f"/applications/never-{number}") == (404, "Application not found")


def test_used_channel_id_is_a_conflict(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        assert switch.originate("Local/wait@far", app, number).status_code == 200
        events.next("StasisStart", number)
        again = switch.originate("Local/wait@far", app, number)
        assert (again.status_code, again.json()["message"]) == (409, "Channel with given unique ID already exists")
        assert events.types(number).count("StasisStart") == 1


@ONLY_REAL
def test_a_conflict_may_come_from_an_earlier_request_of_the_connection(switch: Switch, number: str, app: str) -> None:
    with switch.events(app):
        unknown = {"endpoint": "Nosuch/technology", "app": app}
        with requests.Session() as fresh:
            address, credentials = f"{switch.url}/ari/channels", (switches.USER, switches.PASSWORD)
            answer = fresh.post(address, params=unknown, auth=credentials, timeout=5)
            assert (answer.status_code, answer.json()) == (500, {"error": "Allocation failed"})
            for status in (200, 409):
                used = {"endpoint": "Local/wait@far", "app": app, "channelId": number}
                assert fresh.post(address, params=used, auth=credentials, timeout=5).status_code == status
            # No channel was created and no id was given: the error belongs to the previous request.
            assert fresh.post(address, params=unknown, auth=credentials, timeout=5).status_code == 409


def test_a_prefix_of_a_live_channels_id_is_a_conflict(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        switch.external_media(f"{number}-m10", app)
        events.next("StasisStart", f"{number}-m10")
        assert switch.originate("Local/wait@far", app, f"{number}-m1").status_code == 409
        assert switch.originate("Local/wait@far", app, "x-1", otherChannelId=f"{number}-m1").status_code == 409
        assert switch.originate("Local/wait@far", app, f"{number}-m100").status_code == 200
        assert switch.status("GET", f"/channels/{number}-m1") == 404


def test_used_bridge_id_is_a_conflict_and_a_prefix_of_it_is_free(switch: Switch, number: str) -> None:
    assert switch.status("POST", f"/bridges/{number}10", type="mixing") == 200
    refused = (409, f"Bridge with id '{number}10' already exists")
    assert switch.refusal("POST", f"/bridges/{number}10", type="mixing") == refused
    assert switch.refusal("POST", "/bridges", type="mixing", bridgeId=f"{number}10") == refused
    assert switch.status("POST", f"/bridges/{number}1", type="mixing") == 200


def test_leg_added_again_leaves_and_comes_back(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        assert switch.status("POST", f"/bridges/{bridge}/addChannel", channel=leg) == 204
        assert events.types() == ["ChannelLeftBridge", "ChannelEnteredBridge"]
        assert set(switch.get(f"/bridges/{bridge}")["channels"]) == {leg, media}


@pytest.mark.parametrize("odd", ODD_IDS)
def test_any_id_works_in_each_request_and_in_a_json_list(switch: Switch, number: str, app: str, odd: str) -> None:
    leg, bridge, listed = f"{number}{odd}", f"{number}-bridge", f"/channels/{quote(number + odd, safe='')}"
    with switch.events(app) as events:
        switch.dial(number, channel_id=leg)
        assert events.next("StasisStart")["channel"]["id"] == leg
        assert switch.status("POST", f"/bridges/{bridge}", type="mixing") == 200
        in_query = switch.status("POST", f"/bridges/{bridge}/addChannel", channel=leg)
        assert in_query == (400 if set(odd) & set(',"\\') else 204)
        if in_query == 204:
            assert switch.status("POST", f"/bridges/{bridge}/removeChannel", channel=leg) == 204
        assert switch.call("POST", f"/bridges/{bridge}/addChannel", {"channel": [leg]}).status_code == 204
        assert switch.get(f"/bridges/{bridge}")["channels"] == [leg]
        assert switch.get(f"/applications/{app}")["channel_ids"] == [leg]
        assert (switch.get(listed)["id"], switch.status("POST", f"{listed}/answer")) == (leg, 204)
        assert switch.status("POST", f"{listed}/variable", variable="A", value="1") == 204
        assert switch.status("DELETE", listed) == 204


def test_answer_and_add_channel_may_run_in_parallel(switch: Switch, number: str, app: str, agent: Agent) -> None:
    media, bridge = f"{number}-media", f"{number}-bridge"
    with switch.events(app) as events, ThreadPoolExecutor() as pool:
        leg = switch.ring(events, number, far="play700")
        switch.external_media(media, app, "tone=400")
        events.next("StasisStart", media)
        switch.call("POST", f"/bridges/{bridge}", type="mixing")
        answering = pool.submit(switch.status, "POST", f"/channels/{leg}/answer")
        adding = pool.submit(switch.status, "POST", f"/bridges/{bridge}/addChannel", channel=f"{leg},{media}")
        assert (answering.result(), adding.result()) == (204, 204)
        assert set(switch.get(f"/bridges/{bridge}")["channels"]) == {leg, media}
        assert switch.heard_by_caller(leg) == pytest.approx(400, abs=5)
        until(lambda: agent.of(media)[0].dominant_hz == 700)


def test_callers_echo_reaches_the_agent_as_a_tone(switch: Switch, number: str, app: str, agent: Agent) -> None:
    with switch.events(app) as events:
        _, media, _ = switch.join(events, number, "tone=400", far="echo")
        until(lambda: agent.of(media)[0].dominant_hz == 400)


def test_a_second_answer_changes_nothing(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg = switch.ring(events, number)
        assert switch.status("POST", f"/channels/{leg}/answer") == 204
        assert switch.status("POST", f"/channels/{leg}/answer") == 204
        assert events.types(leg) == ["StasisStart", "ChannelStateChange"]
        assert switch.get(f"/channels/{leg}")["state"] == "Up"


@pytest.mark.parametrize(
    ("transport_data", "query"),
    [
        ("v(leg={},a=1,b=2)", "?leg={}&a=1&b=2"),
        ("v(leg={}),c(slin16)", "?leg={}"),
        # A raw comma or bracket in a value is read as syntax.
        ("v(leg={},b=evil)x),c=3)", "?leg={}&b=evil"),
        ("v(leg={},a=x%2Cy%29,n=J%C3%BCrgen,s=-_.+)", "?leg={}&a=x%2Cy%29&n=J%C3%BCrgen&s=-_.+"),
    ],
)
def test_transport_data_becomes_the_query_of_the_media_url(
    switch: Switch, number: str, agent: Agent, *, transport_data: str, query: str
) -> None:
    app = f"app-{number}"
    with switch.events(app) as events:
        assert switch.external_media(number, app, transport_data=transport_data.format(number)).status_code == 200
        events.next("StasisStart", number)
        leg = agent.of(number)[-1]
        assert leg.path == f"/ws/ari{query.format(number)}"
        assert leg.socket.subprotocol == "media"


def test_the_first_message_to_the_agent_names_the_channel(switch: Switch, number: str, app: str, agent: Agent) -> None:
    with switch.events(app) as events:
        switch.external_media(number, app)
        events.next("StasisStart", number)
        text = until(lambda: agent.of(number)[-1].texts)[0]
        assert text.startswith("MEDIA_START connection_id:media channel:WebSocket/media/")
        assert text.endswith(f"channel_id:{number} format:ulaw optimal_frame_size:160 ptime:20")


def test_unencoded_value_in_transport_data_is_refused(switch: Switch, number: str, app: str) -> None:
    answer = switch.external_media(number, app, transport_data="v(a=1 2)")
    assert answer.status_code == 500
    assert number not in switch.channel_ids()


def test_two_party_bridge_is_simple_and_stays_when_empty(switch: Switch, number: str, app: str) -> None:
    with switch.events(app) as events:
        leg, media, bridge = switch.join(events, number)
        found = switch.get(f"/bridges/{bridge}")
        assert (found["technology"], found["bridge_type"], found["bridge_class"]) == (
            "simple_bridge",
            "mixing",
            "stasis",
        )
        for channel in (leg, media):
            assert switch.status("DELETE", f"/channels/{channel}") == 204
        events.next("StasisEnd", media)
        time.sleep(0.2)
        assert switch.get(f"/bridges/{bridge}")["channels"] == []
