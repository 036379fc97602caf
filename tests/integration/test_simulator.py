"""The simulated Asterisk does what a real one was measured to do: over HTTP and websocket, as a client sees it."""

import base64
import contextlib
import gc
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pydantic
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from simulator import audio, control, errors, scenarios, settings
from simulator.testing import SimulatedAsterisk

USER, PASSWORD = "demo", "p&ss #%+:word"
AGENT_HZ = 1000
CALLER_HZ = 700
JSONObject = dict[str, Any]

_ids = itertools.count(1)


def until(condition: Callable[[], Any], seconds: float = 3.0) -> Any:
    """Polls until the condition holds and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
    return found


class Agent:
    """A media server that says one tone and keeps what it hears, by the media URL's query."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.heard: dict[str, bytearray] = {}
        self.sockets: list[ServerConnection] = []
        self._server = serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=self._meet,
            subprotocols=[Subprotocol("media")],
            compression=None,
        )
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/ws/ari"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _meet(self, socket: ServerConnection, request: Request) -> None:
        # Before the handshake is answered: whoever sees the leg's StasisStart finds it here.
        self.paths.append(request.path)
        self.sockets.append(socket)
        self.heard.setdefault(request.path, bytearray())

    def _talk(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        heard = self.heard[socket.request.path]
        with contextlib.suppress(ConnectionClosed):
            for message in socket:
                if isinstance(message, bytes):
                    assert len(message) == audio.FRAME_BYTES
                    heard += message
                    socket.send(audio.tone(AGENT_HZ))


class Ari:
    """A client of ARI: REST, and an event socket that keeps what it hears."""

    def __init__(self, url: str, user: str = USER, password: str = PASSWORD) -> None:
        self.url = f"{url}/ari"
        self._auth = (user, password)
        self._header = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}

    def call(self, method: str, path: str, body: object = None, **query: str) -> requests.Response:
        return requests.request(method, self.url + path, params=query, json=body, auth=self._auth, timeout=10)

    def status(self, method: str, path: str, **query: str) -> int:
        return self.call(method, path, **query).status_code

    def refusal(self, method: str, path: str, **query: str) -> tuple[int, str]:
        answer = self.call(method, path, **query)
        return answer.status_code, answer.json()["message"]

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def external_media(self, channel_id: str, app: str = "app", **query: str) -> requests.Response:
        whole = {
            "app": app,
            "external_host": "media",
            "format": "ulaw",
            "transport": "websocket",
            "encapsulation": "none",
            "connection_type": "client",
            "direction": "both",
            "channelId": channel_id,
            "transport_data": f"v(leg={channel_id})",
        }
        return self.call("POST", "/channels/externalMedia", **(whole | query))

    @contextlib.contextmanager
    def events(self, app: str = "app", extra: str = "") -> Iterator["Events"]:
        url = f"{self.url.replace('http', 'ws', 1)}/events?app={app}{extra}"
        with connect(url, additional_headers=self._header) as socket:
            yield Events(socket)


class Events:
    """An event socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[JSONObject] = []

    def next(self, kind: str, channel_id: str | None = None, seconds: float = 3.0) -> JSONObject:
        """Reads on to the next event of this type (and channel)."""
        deadline = time.monotonic() + seconds
        while True:
            event: JSONObject = json.loads(self.socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            self.seen.append(event)
            if event["type"] == kind and channel_id in (None, event.get("channel", {}).get("id")):
                return event

    def rest(self, seconds: float = 0.1) -> list[str]:
        """The types of all that still comes."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.seen.append(json.loads(self.socket.recv(timeout=seconds)))
        types = [event["type"] for event in self.seen]
        self.seen.clear()
        return types


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    running = Agent()
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared_asterisk(agent: Agent) -> Iterator[SimulatedAsterisk]:
    configured = settings.Settings(
        users={USER: PASSWORD, "other": "secret"},
        media_urls={"media": agent.url, "nobody": "ws://127.0.0.1:9/"},
        media_connection_timeout_seconds=0.1,
        media_connection_attempts=2,
        caller_tone_hz=CALLER_HZ,
        inbound_app="app",
    )
    with SimulatedAsterisk(configured) as running:
        yield running


@pytest.fixture
def asterisk(shared_asterisk: SimulatedAsterisk) -> Iterator[SimulatedAsterisk]:
    """An empty one without faults."""
    yield shared_asterisk
    shared_asterisk.control.clear()
    shared_asterisk.control.restart()


@pytest.fixture
def ari(asterisk: SimulatedAsterisk) -> Ari:
    return Ari(asterisk.url)


def joined_call(ari: Ari, events: Events, asterisk: SimulatedAsterisk) -> tuple[str, str, str]:
    """A caller and an agent in a bridge."""
    caller = asterisk.control.dial("app")
    leg, bridge = f"{caller}-m", f"{caller}-b"
    events.next("StasisStart", caller)
    assert ari.external_media(leg).status_code == 200
    events.next("StasisStart", leg)
    assert ari.status("POST", f"/bridges/{bridge}", type="mixing") == 200
    assert ari.status("POST", f"/channels/{caller}/answer") == 204
    assert ari.status("POST", f"/bridges/{bridge}/addChannel", channel=f"{caller},{leg}") == 204
    return caller, leg, bridge


# -- sign-in and addresses ---------------------------------------------------------------------------------------------


def test_wrong_password_is_401_on_rest_and_on_the_websocket(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    stranger = Ari(asterisk.url, USER, "wrong")
    assert stranger.status("GET", "/asterisk/ping") == 401
    assert requests.get(f"{ari.url}/channels", timeout=5).status_code == 401
    with pytest.raises(InvalidStatus) as refused, stranger.events():
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


# -- a call comes in ---------------------------------------------------------------------------------------------------


def test_caller_rings_and_enters_the_app_with_its_arguments(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app", caller="+4930", called="200", args=["a=1", "b=2"])
        start = events.next("StasisStart", caller)
        channel = start["channel"]
        assert (start["application"], start["args"]) == ("app", ["a=1", "b=2"])
        assert channel["state"] == "Ring"
        assert channel["caller"]["number"] == "+4930"
        assert channel["dialplan"] == {
            "context": "inbound",
            "exten": "200",
            "priority": 1,
            "app_name": "Stasis",
            "app_data": "app,a=1,b=2",
        }
        assert ari.get(f"/channels/{caller}") == channel
        assert [found["id"] for found in ari.get("/channels")] == [caller]
        assert time.strptime(channel["creationtime"][:19], "%Y-%m-%dT%H:%M:%S")
        assert channel["creationtime"].endswith("+0000")


def test_answer_twice_is_fine(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        assert ari.status("POST", f"/channels/{caller}/answer") == 204
        assert events.next("ChannelStateChange", caller)["channel"]["state"] == "Up"
        assert ari.status("POST", f"/channels/{caller}/answer") == 204
        assert events.rest() == ["StasisStart", "ChannelStateChange"]


def test_hang_up_tells_the_cause_first_and_then_the_end(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        events.seen.clear()
        asterisk.control.hang_up(caller, cause=17)
        request = events.next("ChannelHangupRequest", caller)
        assert next(iter(request)) == "cause"
        assert request["cause"] == 17
        assert "cause" not in events.next("StasisEnd", caller)
        assert events.rest() == ["ChannelHangupRequest", "StasisEnd"]
        assert ari.refusal("GET", f"/channels/{caller}") == (404, "Channel not found")


def test_deleted_caller_is_gone_and_leaves_the_app(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        assert ari.status("DELETE", f"/channels/{caller}", reason="nonsense") == 400
        assert ari.status("DELETE", f"/channels/{caller}", reason="congestion") == 204
        request = events.next("ChannelHangupRequest", caller)
        assert (request["cause"], request["soft"]) == (32, True)
        events.next("StasisEnd", caller)
        assert ari.status("DELETE", f"/channels/{caller}") == 404


def test_caller_who_continues_lives_on_and_may_come_back(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app")
        first = events.next("StasisStart", caller)
        assert ari.status("POST", f"/channels/{caller}/continue", context="far", extension="wait") == 204
        events.next("StasisEnd", caller)
        outside = ari.get(f"/channels/{caller}")
        assert outside["dialplan"]["app_name"] == "Wait"
        assert ari.get("/applications/app")["channel_ids"] == []
        assert ari.refusal("POST", f"/channels/{caller}/answer") == (409, "Channel not in Stasis application")
        asterisk.control.reenter(caller, "app", ["again"])
        second = events.next("StasisStart", caller)
        assert second["args"] == ["again"]
        assert second["channel"]["creationtime"] == first["channel"]["creationtime"]
        asterisk.control.continue_in_dialplan(caller)
        events.next("StasisEnd", caller)
        assert ari.status("DELETE", f"/channels/{caller}") == 204
        assert events.rest() == ["StasisStart", "StasisEnd", "StasisStart", "StasisEnd"]
        assert ari.status("GET", f"/channels/{caller}") == 404


# -- bridges -----------------------------------------------------------------------------------------------------------


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


# -- external media ----------------------------------------------------------------------------------------------------


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
    assert ari.external_media("m2", external_host="stranger").status_code == 400


def test_media_for_an_unknown_app_is_200_and_then_nothing(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    assert ari.external_media("m3", app="unknown").status_code == 200
    until(lambda: not asterisk.control.channels())
    assert ari.status("GET", "/applications/unknown") == 404
    assert not [entry for entry in asterisk.control.event_log() if entry["event"]["application"] == "unknown"]


@pytest.mark.parametrize("host", ["nobody", "media"])
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
    with asterisk.control.hold("POST", "/channels/externalMedia") as gate, ThreadPoolExecutor() as pool:
        assert ari.status("GET", "/channels/same") == 404
        posts = [pool.submit(ari.external_media, "same") for _ in range(2)]
        gate.wait_arrived(count=2)
        gate.release()
        outcomes = [type(post.exception()) for post in posts]
    assert requests.ConnectionError in outcomes
    assert not asterisk.control.is_running


def test_post_whose_client_went_away_still_makes_the_leg(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events, asterisk.control.hold("POST", "/channels/externalMedia") as gate:
        query = "app=app&external_host=media&format=ulaw&transport=websocket&encapsulation=none&channelId=late"
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{ari.url}/channels/externalMedia?{query}", auth=(USER, PASSWORD), timeout=0.1)
        gate.wait_arrived()
        gate.release()
        events.next("StasisStart", "late")


# -- originates --------------------------------------------------------------------------------------------------------


def test_local_originate_brings_an_inbound_call(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        made = ari.call(
            "POST",
            "/channels",
            endpoint="Local/5551234@inbound",
            context="far",
            extension="wait",
            priority="1",
            channelId="X",
            otherChannelId="Y",
        )
        assert made.json()["id"] == "X"
        start = events.next("StasisStart")
        assert (start["channel"]["id"], start["channel"]["state"]) == ("Y", "Ring")
        assert start["channel"]["dialplan"]["exten"] == "5551234"
        assert ari.status("DELETE", "/channels/X") == 204
        events.next("StasisEnd", "Y")
        assert asterisk.control.channels() == []


def test_answered_originate_enters_stasis_and_tells_all_of_its_end(ari: Ari) -> None:
    with ari.events() as events:
        query = {"endpoint": "PJSIP/100", "app": "app", "appArgs": "k=v,l=w"}
        assert ari.status("POST", "/channels", channelId="o1", **query) == 200
        assert ari.status("POST", "/channels", channelId="o1", **query) == 409
        assert ari.get("/applications/app")["channel_ids"] == ["o1"]
        start = events.next("StasisStart", "o1")
        assert start["args"] == ["k=v", "l=w"]
        assert [e["dialstatus"] for e in events.seen if e["type"] == "Dial"] == ["", "RINGING", "ANSWER"]
        events.seen.clear()
        assert ari.status("DELETE", "/channels/o1") == 204
        events.next("ChannelDestroyed", "o1")
        assert events.rest() == ["ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"]


@pytest.mark.parametrize(
    ("extension", "status", "cause"), [("busy", "BUSY", 0), ("congestion", "CONGESTION", 0), ("ring", "RINGING", 19)]
)
def test_unanswered_originate_never_enters_stasis(ari: Ari, extension: str, status: str, cause: int) -> None:
    with ari.events() as events:
        ari.call("POST", "/channels", endpoint=f"Local/{extension}@far", app="app", channelId="o2", timeout="0.1")
        destroyed = events.next("ChannelDestroyed", "o2")
        dials = [event for event in events.seen if event["type"] == "Dial"]
        assert (dials[-1]["dialstatus"], dials[-1]["peer"]["id"]) == (status, "o2")
        assert destroyed["cause"] == cause
        assert "StasisStart" not in events.rest()


# -- event sockets -----------------------------------------------------------------------------------------------------


def test_newer_socket_replaces_the_older_without_a_gap(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as older, Ari(asterisk.url, "other", "secret").events() as newer:
        assert older.next("ApplicationReplaced")["application"] == "app"
        caller = asterisk.control.dial("app")
        newer.next("StasisStart", caller)
        older.seen.clear()
        assert older.rest() == []
        assert older.socket.ping().wait(2)
        assert [socket["is_hearing"] for socket in asterisk.control.sockets("app")] == [False, True]


def test_socket_serves_several_apps(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events("a,b") as events:
        for app in ("a", "b"):
            assert events.next("StasisStart", asterisk.control.dial(app))["application"] == app


def test_without_a_socket_calls_stay_and_events_are_lost(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        stays, goes = asterisk.control.dial("app"), asterisk.control.dial("app")
        events.next("StasisStart", stays)
        events.next("StasisStart", goes)
    until(lambda: not asterisk.control.sockets("app"))
    asterisk.control.hang_up(goes)
    assert ari.status("POST", f"/channels/{stays}/answer") == 204
    assert ari.get("/applications/app")["channel_ids"] == [stays]
    with ari.events() as events:
        assert events.rest() == []
        asterisk.control.hang_up(stays)
        events.next("StasisEnd", stays)


def test_patient_dialplan_waits_for_the_app_and_the_plain_one_hangs_up(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    patient = asterisk.control.dial("app")
    plain = asterisk.control.dial("app", dialplan="plain")
    until(lambda: asterisk.control.channel(plain) is None)
    waiting = until(lambda: asterisk.control.channel(patient))
    assert (waiting["state"], waiting["app"]) == ("Ring", None)
    with ari.events() as events:
        assert events.next("StasisStart", patient)["channel"]["state"] == "Ring"
        assert [channel["id"] for channel in ari.get("/channels")] == [patient]


def test_application_lives_as_long_as_it_has_a_socket_or_a_channel(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        assert ari.get("/applications/app")["channel_ids"] == []
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
    until(lambda: not asterisk.control.sockets("app"))
    assert ari.get("/applications/app")["channel_ids"] == [caller]
    asterisk.control.hang_up(caller)
    assert ari.refusal("GET", "/applications/app") == (404, "Application not found")


def test_application_lists_what_it_is_subscribed_to(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        ari.call("POST", "/bridges/empty", type="mixing")
        assert ari.get("/applications/app")["bridge_ids"] == []
        caller, leg, bridge = joined_call(ari, events, asterisk)
        listed = ari.get("/applications/app")
        assert (set(listed["channel_ids"]), listed["bridge_ids"]) == ({caller, leg}, [bridge])
        assert ari.status("POST", f"/bridges/{bridge}/removeChannel", channel=f"{caller},{leg}") == 204
        assert ari.get(f"/bridges/{bridge}")["channels"] == []
        assert ari.get("/applications/app")["bridge_ids"] == []
        assert ari.status("POST", f"/bridges/{bridge}/removeChannel", channel=caller) == 422


def test_event_filter_holds_while_the_app_lives(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    allowed = [{"type": "StasisStart"}, {"type": "StasisEnd"}]
    with ari.events() as events:
        answer = ari.call("PUT", "/applications/app/eventFilter", {"allowed": allowed})
        assert (answer.status_code, answer.json()["events_allowed"]) == (200, allowed)
        caller = asterisk.control.dial("app")
        events.next("StasisStart", caller)
        ari.call("POST", f"/channels/{caller}/answer")
        assert events.rest() == ["StasisStart"]
    with ari.events() as hidden, ari.events():
        assert ari.get("/applications/app")["events_allowed"] == allowed
        assert hidden.rest() == []
    assert ari.status("DELETE", f"/channels/{caller}") == 204
    until(lambda: ari.status("GET", "/applications/app") == 404)
    with ari.events():
        assert ari.get("/applications/app")["events_allowed"] == []
        assert ari.call("PUT", "/applications/app/eventFilter", {"allowed": 1}).status_code == 400
    assert ari.call("PUT", "/applications/none/eventFilter", {"allowed": []}).status_code == 404


# -- faults and orders -------------------------------------------------------------------------------------------------


def test_gate_after_the_effect_holds_only_the_answer(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ThreadPoolExecutor() as pool, asterisk.control.hold("POST", "/bridges/*", "after") as gate:
        post = pool.submit(ari.status, "POST", "/bridges/held", type="mixing")
        gate.wait_arrived()
        assert [bridge["id"] for bridge in asterisk.control.bridges()] == ["held"]
        assert (gate.waiting(), post.done()) == (1, False)
        gate.release()
        assert post.result() == 200
    with asterisk.control.hold("GET", "/nothing") as idle, pytest.raises(TimeoutError):
        idle.wait_arrived(0.01)


def test_faults_strike_before_or_after_the_effect(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    fault = asterisk.control.fault("POST", "/bridges/*", status=503, times=1)
    assert ari.status("POST", "/bridges/f1", type="mixing") == 503
    assert ari.status("GET", "/bridges/f1") == 404
    assert ari.status("POST", "/bridges/f1", type="mixing") == 200
    assert fault.hits() == 1
    with asterisk.control.fault("POST", "/bridges/*", "after", abort=True), pytest.raises(requests.ConnectionError):
        ari.status("POST", "/bridges/f2", type="mixing")
    assert ari.status("GET", "/bridges/f2") == 200
    with asterisk.control.fault("GET", "/bridges", delay_seconds=0.1):
        started = time.monotonic()
        ari.get("/bridges")
        assert time.monotonic() - started >= 0.1
    with pytest.raises(errors.ControlError, match="400"):
        asterisk.control.fault("GET", "/bridges", status=99)


def test_requests_and_events_are_remembered(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        asterisk.control.drop_events(["StasisStart"], times=1)
        lost, heard = asterisk.control.dial("app"), asterisk.control.dial("app")
        assert events.next("StasisStart")["channel"]["id"] == heard
        log = asterisk.control.event_log("StasisStart")[-2:]
        assert [(entry["delivered"], entry["event"]["channel"]["id"]) for entry in log] == [
            (False, lost),
            (True, heard),
        ]
        before = time.monotonic()
        ari.call("POST", f"/channels/{heard}/answer", note="x")
        logged = asterisk.control.requests("POST", f"/channels/{heard}/answer")[-1]
        assert (logged.status, logged.query) == (204, {"note": "x"})
        assert before <= logged.started_at <= time.monotonic()


def test_event_sockets_are_cut_or_go_dead(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        assert asterisk.control.cut_event_sockets("app") == 1
        with pytest.raises(ConnectionClosed):
            events.next("never")
    with ari.events() as events:
        assert asterisk.control.cut_event_sockets(silently=True) == 1
        assert not events.socket.ping().wait(0.1)
        assert ari.status("GET", "/applications/app") == 404
        asterisk.control.restart()
        with pytest.raises(ConnectionClosed):
            events.next("never")


def test_restart_after_a_while(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    asterisk.control.restart(down_seconds=0.1)
    with pytest.raises(requests.ConnectionError):
        ari.get("/channels")
    until(lambda: asterisk.control.is_running)
    assert ari.get("/channels") == []


def test_caller_hangs_up_by_himself(asterisk: SimulatedAsterisk, ari: Ari) -> None:
    with ari.events() as events:
        caller = asterisk.control.dial("app", hang_up_after=0.05)
        events.next("StasisStart", caller)
        assert events.next("ChannelHangupRequest", caller)["cause"] == 16


# -- scenarios and the process -----------------------------------------------------------------------------------------


def test_scenario_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps({"callers": [{"app": "demo", "rate_per_second": 0, "talk": 1}], "faults": [{}]}))
    with pytest.raises(errors.ScenarioError) as refused:
        scenarios.load(path)
    assert all(part in str(refused.value) for part in ("callers.0.rate_per_second", "callers.0.talk", "faults.0.path"))
    with pytest.raises(errors.ScenarioError, match="No such file"):
        scenarios.load(tmp_path / "none.json")


def test_troubles_of_a_scenario_come_when_they_are_due() -> None:
    troubles = [
        {"at_seconds": 0.05, "media": {"refuse": True}},
        {"at_seconds": 0.05, "fault": {"path": "/bridges", "status": 503}},
        {"at_seconds": 0.05, "gate": {"path": "/channels"}},
        {"at_seconds": 0.6, "clear": {}},
        {"at_seconds": 0.9, "cut_sockets": {}},
        {"at_seconds": 1.2, "crash": {}},
    ]
    scenario = scenarios.Scenario.model_validate({"troubles": troubles})
    with SimulatedAsterisk(scenario=scenario) as asterisk, requests.Session() as session:
        session.auth = ("demo", "demo")
        until(lambda: session.get(f"{asterisk.url}/ari/bridges", timeout=5).status_code == 503)
        began = time.monotonic()
        # Hangs until the gate is cleared.
        assert session.get(f"{asterisk.url}/ari/channels", timeout=5).status_code == 200
        assert time.monotonic() - began > 0.2
        assert session.get(f"{asterisk.url}/ari/bridges", timeout=5).status_code == 200
        until(lambda: not asterisk.control.is_running)
        assert asterisk.control.crashes == 1


@pytest.mark.parametrize("trouble", [{"at_seconds": 1}, {"crash": {}, "clear": {}}, {"explode": {}}])
def test_a_trouble_is_one_order_that_is_known(trouble: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        scenarios.Scenario.model_validate({"troubles": [trouble]})


def test_process_plays_a_scenario_and_ends_on_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    callers = {"app": "demo", "rate_per_second": 50, "hang_up_within_ms": 1, "count": 3, "caller_numbers": ["+1"]}
    fault = {"method": "GET", "path": "/bridges", "status": 500}
    path.write_text(json.dumps({"callers": [callers], "faults": [fault]}))
    command = [sys.executable, "-m", "simulator", "--port", "0", "--user", USER, "--password", PASSWORD]
    command += ["--scenario", str(path), "--path-prefix", "/asterisk", "--media-url", "media=ws://127.0.0.1:9/?a=b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].removesuffix("/ari")
        ari = Ari(url)
        assert ari.status("GET", "/bridges") == 500
        with ari.events("demo") as events:
            driver = control.Control(url)
            caller = driver.dial("demo")
            events.next("StasisStart", caller)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0


def test_hundreds_of_asterisks_run_in_one_process() -> None:
    count = 300
    command = [sys.executable, "-m", "simulator", "--port", "0", "--count", str(count), "--no-audio"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        urls = [process.stdout.readline().split()[-1].removesuffix("/ari") for _ in range(count)]
        assert len(set(urls)) == count
        farm = [control.Control(url) for url in urls]
        with contextlib.ExitStack() as sockets:
            for url in urls:
                sockets.enter_context(
                    connect(
                        f"{url.replace('http', 'ws', 1)}/ari/events?app=voiceai",
                        additional_headers={"Authorization": "Basic " + base64.b64encode(b"demo:demo").decode()},
                        proxy=None,
                    )
                )
            for one in farm[::30]:
                one.dial("voiceai")
            assert [len(one.channels()) for one in farm[:31]] == [1, *([0] * 29), 1], "each is one by itself"
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "")


def test_whoever_comes_in_while_it_stops_is_cut_off() -> None:
    """A connection that nobody closes would be a ResourceWarning, and so an error."""
    for _ in range(10):
        ended = threading.Event()
        with contextlib.ExitStack() as clients:
            asterisk = SimulatedAsterisk().start()

            def knock(asterisk: SimulatedAsterisk, ended: threading.Event, clients: contextlib.ExitStack) -> None:
                while not ended.wait(0.0002):
                    with contextlib.suppress(OSError):
                        clients.enter_context(socket.create_connection(("127.0.0.1", asterisk.port), timeout=1))

            knocking = threading.Thread(target=knock, args=(asterisk, ended, clients))
            knocking.start()
            time.sleep(0.02)
            asterisk.stop()
            ended.set()
            knocking.join()
        gc.collect()
