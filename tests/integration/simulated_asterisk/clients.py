"""What the tests of the simulator use against it: a voice agent, a client of ARI with its event socket."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from simulator import audio
from simulator.testing import SimulatedAsterisk

USER, PASSWORD = "demo", "p&ss #%+:word"
AGENT_HZ = 1000
CALLER_HZ = 700
JSONObject = dict[str, Any]


def until(condition: Callable[[], Any], seconds: float = 3.0) -> Any:
    """Polls until the condition holds and returns its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
    return found


class Agent:
    """A media server that says one tone and records what it hears, by the path of the media URL."""

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
        # Before the handshake is answered, so that a test that has seen the leg's StasisStart finds it here.
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
    """A client of ARI: REST and event sockets."""

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
    """An event socket that records its events."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[JSONObject] = []

    def next(self, kind: str, channel_id: str | None = None, seconds: float = 3.0) -> JSONObject:
        """Reads to the next event of this type (and channel)."""
        deadline = time.monotonic() + seconds
        while True:
            event: JSONObject = json.loads(self.socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            self.seen.append(event)
            if event["type"] == kind and channel_id in (None, event.get("channel", {}).get("id")):
                return event

    def rest(self, seconds: float = 0.1) -> list[str]:
        """Reads until nothing comes, and returns the types of all events since the last call."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.seen.append(json.loads(self.socket.recv(timeout=seconds)))
        types = [event["type"] for event in self.seen]
        self.seen.clear()
        return types


def joined_call(ari: Ari, events: Events, asterisk: SimulatedAsterisk) -> tuple[str, str, str]:
    """Joins a caller and an agent in a bridge."""
    caller = asterisk.control.dial("app")
    leg, bridge = f"{caller}-m", f"{caller}-b"
    events.next("StasisStart", caller)
    assert ari.external_media(leg).status_code == 200
    events.next("StasisStart", leg)
    assert ari.status("POST", f"/bridges/{bridge}", type="mixing") == 200
    assert ari.status("POST", f"/channels/{caller}/answer") == 204
    assert ari.status("POST", f"/bridges/{bridge}/addChannel", channel=f"{caller},{leg}") == 204
    return caller, leg, bridge
