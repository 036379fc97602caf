"""REST on the simulated Asterisk: sign-in, addresses, ids and bridges, as a real one was measured to do."""

import contextlib
from urllib.parse import quote

import pytest
import requests
from websockets.exceptions import InvalidStatus

from simulator import settings
from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    USER,
    Ari,
    joined_call,
    until,
)


def test_wrong_password_is_401_on_rest_and_on_the_websocket(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    intruder = Ari(asterisk.url, USER, "wrong")
    assert intruder.status("GET", "/asterisk/ping") == 401
    assert requests.get(f"{ari.url}/channels", timeout=5).status_code == 401
    with pytest.raises(InvalidStatus) as refused, intruder.events():
        pass
    assert refused.value.response.status_code == 401
    assert Ari(asterisk.url, "other", "secret").get("/asterisk/ping")["ping"] == "pong"
    assert ari.get("/asterisk/info")["system"]["version"] == "22.10.1"


def test_404_says_what_is_missing(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    assert ari.refusal("GET", "/channels/none") == (404, "Channel not found")
    assert ari.refusal("POST", "/channels/none/answer") == (404, "Channel not found")
    assert ari.refusal("DELETE", "/channels/none") == (404, "Channel not found")
    assert ari.refusal("GET", "/bridges/none") == (404, "Bridge not found")
    assert ari.refusal("DELETE", "/bridges/none") == (404, "Bridge not found")
    assert ari.refusal("GET", "/applications/none") == (404, "Application not found")
    assert ari.refusal("GET", "/recordings/live/none") == (404, "Resource not found")
    assert Ari(f"{asterisk.url}/wrong").refusal("GET", "/channels") == (404, "Resource not found")


def test_path_prefix_goes_before_rest_and_events() -> None:
    with SimulatedAsterisk(path_prefix="/asterisk") as prefixed:
        ari = Ari(prefixed.url, "demo", "demo")
        assert prefixed.url.endswith("/asterisk")
        with ari.events() as events:
            caller = prefixed.control.dial("app")
            events.next("StasisStart", caller)
        assert Ari(f"http://127.0.0.1:{prefixed.port}", "demo", "demo").status("GET", "/channels") == 404


def test_ids_with_slashes_and_percent_signs_are_one_path_segment(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        wild = "a/b?c#d%2F%e"
        asterisk.control.dial("app", channel_id=wild)
        assert events.next("StasisStart")["channel"]["id"] == wild
        assert ari.get(f"/channels/{quote(wild, safe='')}")["id"] == wild
        assert ari.status("DELETE", f"/channels/{quote(wild, safe='')}") == 204


def test_connections_above_the_session_limit_are_closed() -> None:
    with SimulatedAsterisk(settings.Settings(session_limit=2)) as small, contextlib.ExitStack() as held:
        ari = Ari(small.url, "demo", "demo")
        held.enter_context(ari.events("a"))
        second = held.enter_context(ari.events("b"))
        with pytest.raises(requests.ConnectionError):
            ari.get("/channels")
        second.socket.close()
        until(lambda: not small.control.sockets("b"))
        assert ari.get("/channels") == []


def test_bridge_is_made_once_and_stays_when_empty(ari: Ari) -> None:
    made = ari.call("POST", "/bridges/b1", type="mixing", name="n").json()
    assert (made["id"], made["bridge_type"], made["bridge_class"], made["name"]) == ("b1", "mixing", "stasis", "n")
    status, message = ari.refusal("POST", "/bridges/b1", type="mixing")
    assert status == 409
    assert "already exists" in message
    assert ari.status("POST", "/bridges", bridgeId="b1") == 409
    unnamed = ari.call("POST", "/bridges", type="mixing").json()["id"]
    assert {bridge["id"] for bridge in ari.get("/bridges")} == {"b1", unnamed}
    assert ari.status("DELETE", "/bridges/b1") == 204
    assert ari.status("DELETE", "/bridges/b1") == 404


def test_add_channel_adds_all_or_none(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    asterisk.control.delay_media(0.3)
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        ari.call("POST", "/bridges/b2", type="mixing")
        ari.external_media("early")
        refused = (422, "Channel not in Stasis application")
        assert ari.refusal("POST", "/bridges/b2/addChannel", channel=f"{caller},early") == refused
        assert ari.get("/bridges/b2")["channels"] == []
        gone = (400, "Channel not found")
        assert ari.refusal("POST", "/bridges/b2/addChannel", channel=f"{caller},none") == gone
        assert ari.get("/bridges/b2")["channels"] == []
        events.next("StasisStart", "early")
        assert ari.status("POST", "/bridges/b2/addChannel", channel=f"{caller},early") == 204
        assert ari.get("/bridges/b2")["channels"] == [caller, "early"]
        assert ari.get("/bridges/b2")["technology"] == "simple_bridge"
        assert ari.refusal("POST", "/bridges/none/addChannel", channel=caller) == (404, "Bridge not found")


def test_adding_a_leg_again_makes_it_leave_and_come_back(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller, _, bridge = joined_call(ari, events, asterisk)
        assert asterisk.control.heard(caller).gaps == 0
        events.rest()
        assert ari.status("POST", f"/bridges/{bridge}/addChannel", channel=caller) == 204
        assert events.rest() == ["ChannelLeftBridge", "ChannelEnteredBridge"]
        assert asterisk.control.heard(caller).gaps == 1


def test_deleted_bridge_lets_its_channels_live(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller, leg, bridge = joined_call(ari, events, asterisk)
        assert ari.status("DELETE", f"/bridges/{bridge}") == 204
        assert {channel["id"] for channel in ari.get("/channels")} == {caller, leg}
        assert ari.get("/applications/app")["bridge_ids"] == []
