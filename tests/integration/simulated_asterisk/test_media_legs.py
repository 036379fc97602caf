"""The simulated Asterisk connects media legs, and passes audio, as a real one was measured to do."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from websockets.exceptions import ConnectionClosed

from simulator import audio
from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    AGENT_HZ,
    CALLER_HZ,
    PASSWORD,
    USER,
    Agent,
    Ari,
    joined_call,
    until,
)

_ids = itertools.count(1)


def test_external_media_answers_before_its_leg_is_up(agent: Agent, asterisk: SimulatedAsterisk, ari: Ari) -> None:
    asterisk.control.delay_media(0.2)
    with ari.events() as events:
        answer = ari.external_media("m1", transport_data="v(run=1,name=J%C3%BCrgen)")
        assert (answer.status_code, answer.json()["state"]) == (200, "Down")
        assert ari.get("/applications/app")["channel_ids"] == ["m1"]
        start = events.next("StasisStart", "m1")
        assert (start["args"], start["channel"]["state"]) == ([], "Up")
        assert agent.paths[-1] == "/ws/ari?run=1&name=J%C3%BCrgen"
        assert agent.sockets[-1].subprotocol == "media"


@pytest.mark.parametrize(
    ("transport_data", "query"),
    [
        ("v(a=1,b=2)", "?a=1&b=2"),
        ("v(a=1),c(slin16)", "?a=1"),
        # A raw comma or bracket in a value is read as Asterisk's own.
        ("v(a=1,b=evil)x),c=3)", "?a=1&b=evil"),
        ("v(a=x%2Cy%29)", "?a=x%2Cy%29"),
        ("", ""),
    ],
)
def test_transport_data_becomes_the_query(agent: Agent, ari: Ari, transport_data: str, query: str) -> None:
    with ari.events() as events:
        leg = f"query-{next(_ids)}"
        ari.external_media(leg, transport_data=transport_data)
        events.next("StasisStart", leg)
        assert agent.paths[-1] == f"/ws/ari{query}"


def test_unencoded_value_is_refused(ari: Ari) -> None:
    assert ari.external_media("bad", transport_data="v(a=1 2)").status_code == 500
    assert ari.get("/channels") == []


def test_unknown_media_client_is_400(ari: Ari) -> None:
    assert ari.external_media("m2", external_host="unknown").status_code == 400


def test_media_for_an_unknown_app_is_200_and_then_nothing(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    assert ari.external_media("m3", app="unknown").status_code == 200
    until(lambda: not asterisk.control.channels())
    assert ari.status("GET", "/applications/unknown") == 404
    assert not [entry for entry in asterisk.control.event_log() if entry["event"]["application"] == "unknown"]


@pytest.mark.parametrize("host", ["unreachable", "media"])
def test_unreachable_media_ends_in_channel_destroyed_only(asterisk: SimulatedAsterisk, ari: Ari, host: str) -> None:
    with ari.events() as events:
        if host == "media":
            asterisk.control.refuse_media()
        assert ari.external_media("m4", external_host=host).status_code == 200
        destroyed = events.next("ChannelDestroyed", "m4")
        assert (destroyed["cause"], destroyed["cause_txt"]) == (3, "No route to destination")
        assert "cause" not in destroyed["channel"]
        assert not {"StasisStart", "StasisEnd"} & set(events.rest())


def test_audio_goes_both_ways_through_a_bridge(agent: Agent, asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller, leg, _ = joined_call(ari, events, asterisk)
        until(lambda: asterisk.control.heard(caller).dominant_hz == AGENT_HZ)
        heard_by_agent = agent.heard[f"/ws/ari?leg={leg}"]
        until(lambda: audio.dominant_hz(bytes(heard_by_agent[-640:])) == CALLER_HZ)
        assert asterisk.control.heard(leg).dominant_hz == CALLER_HZ
        assert asterisk.control.heard(caller).heard_bytes > 0
        asterisk.control.hang_up(caller)
        events.next("StasisEnd", caller)
        assert asterisk.control.heard(caller).dominant_hz == AGENT_HZ


def test_unanswered_caller_hears_nothing(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        ari.external_media("m5")
        events.next("StasisStart", "m5")
        ari.call("POST", "/bridges/b5", type="mixing")
        ari.call("POST", "/bridges/b5/addChannel", channel=f"{caller},m5")
        time.sleep(0.1)
        assert asterisk.control.heard(caller).heard_bytes == 0


def test_caller_hangs_up_and_the_agent_stays(agent: Agent, asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller, leg, bridge = joined_call(ari, events, asterisk)
        asterisk.control.hang_up(caller)
        events.next("StasisEnd", caller)
        assert ari.get(f"/bridges/{bridge}")["channels"] == [leg]
        assert ari.get(f"/channels/{leg}")["state"] == "Up"
        assert agent.sockets[-1].state.name == "OPEN"
        assert ari.status("DELETE", f"/channels/{leg}") == 204
        events.next("StasisEnd", leg)
        assert events.next("ChannelDestroyed", leg)["cause"] == 16
        until(lambda: agent.sockets[-1].state.name == "CLOSED")


def test_agent_closes_and_the_caller_stays_in_silence(agent: Agent, asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller, leg, bridge = joined_call(ari, events, asterisk)
        agent.sockets[-1].close()
        events.next("StasisEnd", leg)
        assert events.next("ChannelDestroyed", leg)["cause_txt"]
        assert ari.get(f"/bridges/{bridge}")["channels"] == [caller]


def test_delete_of_a_connecting_leg_blocks_and_its_socket_opens(
    agent: Agent, asterisk: SimulatedAsterisk, ari: Ari
) -> None:
    asterisk.control.delay_media(0.1)
    with ari.events() as events:
        ari.external_media("m6")
        started = time.monotonic()
        assert ari.status("DELETE", "/channels/m6") == 204
        assert time.monotonic() - started >= 0.09
        events.next("ChannelDestroyed", "m6")
        assert events.rest()[-4:] == ["StasisStart", "ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"]
        assert agent.paths[-1] == "/ws/ari?leg=m6"


def test_second_external_media_with_one_id_crashes_everything(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    crashes = asterisk.control.crashes
    with ari.events() as events:
        joined_call(ari, events, asterisk)
        ari.external_media("twice")
        with pytest.raises(requests.ConnectionError):
            ari.external_media("twice")
        with pytest.raises(ConnectionClosed):
            events.next("never")
        with pytest.raises(requests.ConnectionError):
            ari.get("/channels")
    assert (asterisk.control.crashes, asterisk.control.is_running) == (crashes + 1, False)
    asterisk.control.restart()
    assert ari.get("/channels") == ari.get("/bridges") == []
    assert ari.status("GET", "/applications/app") == 404


def test_two_concurrent_external_media_crash_although_both_looked_first(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with asterisk.control.hold("POST", "/channels/externalMedia") as point, ThreadPoolExecutor() as pool:
        assert ari.status("GET", "/channels/same") == 404
        posts = [pool.submit(ari.external_media, "same") for _ in range(2)]
        point.wait_arrived(count=2)
        point.release()
        outcomes = [type(post.exception()) for post in posts]
    assert requests.ConnectionError in outcomes
    assert not asterisk.control.is_running


def test_post_whose_client_went_away_still_makes_the_leg(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events, asterisk.control.hold("POST", "/channels/externalMedia") as point:
        query = "app=app&external_host=media&format=ulaw&transport=websocket&encapsulation=none&channelId=late"
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{ari.url}/channels/externalMedia?{query}", auth=(USER, PASSWORD), timeout=0.1)
        point.wait_arrived()
        point.release()
        events.next("StasisStart", "late")
