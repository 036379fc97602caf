"""The two Asterisks of the contract suite behind one interface: the simulated one, and a real one.

Calls come in over Local channels, so that both are driven by the same ARI requests and nothing else.
"""

import base64
import contextlib
import itertools
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from websockets.sync.client import connect

from devstack import asterisk, asterisk_config, processes
from devstack.asterisk_root import Root
from simulator import errors, settings
from simulator.testing import SimulatedAsterisk
from tests.contract.event_sockets import Events, until

USER, PASSWORD = "voiceai", "p&ss #%+:word"
OTHER_USER, OTHER_PASSWORD = "other", "secret"
READER, READER_PASSWORD = "reader", "secret"
USERS = {USER: PASSWORD, OTHER_USER: OTHER_PASSWORD, READER: READER_PASSWORD}
_ADMINISTRATOR_PASSWORD = "administrator"
#: Context → the arguments of its Stasis(). The called number decides the app, so each test has its own.
CONTEXTS = {
    "inbound": "app-${EXTEN}",
    "args": "app-${EXTEN},a=1,b=2",
    "escaped": "app-${EXTEN},a=1\\,b=2",
    "quoted": 'app-${EXTEN},"a=1,b=2"',
    "bracketed": "app-${EXTEN},(a=1,b=2),[c,d]",
    "quoted-app": '"app-${EXTEN}",a\\\\b)],c',
}
#: Context → the arguments of its StasisBroadcast().
BROADCASTS = {"broadcast": "1000,^app-${EXTEN}"}
#: Further dialplan of the real one: offered calls, and `pickup`, whose caller picks up the call marked by the number.
DIALPLAN = "".join(
    f"[{context}]\nexten => _X.,1,Ringing()\n same => n,StasisBroadcast({text})\n same => n,Hangup()\n"
    for context, text in BROADCASTS.items()
)
DIALPLAN += "[outbound]\nexten => 1001,1,Dial(Local/wait@far)\n same => n,Hangup()\nexten => 1002,1,Answer()\n"
DIALPLAN += " same => n,Wait(3600)\n"
DIALPLAN += "[pickup]\nexten => _X.,1,Pickup(${EXTEN}@PICKUPMARK)\n same => n,Hangup()\n"
#: No server listens there.
UNREACHABLE = "ws://127.0.0.1:9/"
CONNECTION_SECONDS, ATTEMPTS = 0.4, 2

_numbers = itertools.count(5550001)


@dataclass
class Switch:
    """One Asterisk, as a tenant uses it; `administrator` makes the inbound calls."""

    kind: str
    url: str
    administrator: asterisk.Switch
    real: asterisk.RealAsterisk | None = None
    simulated: SimulatedAsterisk | None = None
    session: requests.Session = field(default_factory=requests.Session)

    @staticmethod
    def number() -> str:
        """Return an unused number; calls to it enter the app `app-NUMBER`."""
        return str(next(_numbers))

    # -- REST ----------------------------------------------------------------------------------------------------------

    def call(
        self, method: str, path: str, body: object = None, *, user: str = USER, password: str = PASSWORD, **query: str
    ) -> requests.Response:
        return self.session.request(
            method, f"{self.url}/ari{path}", params=query, json=body, auth=(user, password), timeout=10
        )

    def status(self, method: str, path: str, **query: str) -> int:
        return self.call(method, path, **query).status_code

    def refusal(self, method: str, path: str, **query: str) -> tuple[int, str]:
        answer = self.call(method, path, **query)
        return answer.status_code, answer.json()["message"]

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def channel_ids(self) -> set[str]:
        return {channel["id"] for channel in self.get("/channels")}

    def external_media(self, channel_id: str, app: str, treatment: str = "", **query: str) -> requests.Response:
        """Request a media leg; `treatment` tells the agent how to treat it, as in `delay=1,tone=400`."""
        whole = {
            "app": app,
            "external_host": "media",
            "format": "ulaw",
            "transport": "websocket",
            "encapsulation": "none",
            "connection_type": "client",
            "direction": "both",
            "channelId": channel_id,
            "transport_data": f"v(leg={channel_id}{',' if treatment else ''}{treatment})",
        }
        return self.call("POST", "/channels/externalMedia", **(whole | query))

    def originate(self, endpoint: str, app: str, channel_id: str, **query: str) -> requests.Response:
        whole = {"endpoint": endpoint, "app": app, "channelId": channel_id, "formats": "ulaw"}
        return self.call("POST", "/channels", **(whole | query))

    @contextlib.contextmanager
    def events(
        self, app: str, *, user: str = USER, password: str = PASSWORD, subscribe_all: bool = False
    ) -> Iterator[Events]:
        url = f"{self.url.replace('http', 'ws', 1)}/ari/events?app={quote(app)}"
        url += "&subscribeAll=true" if subscribe_all else ""
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        with connect(url, additional_headers={"Authorization": f"Basic {secret}"}) as socket:
            # The app has the socket only a moment after the handshake.
            until(lambda: self.call("GET", f"/applications/{quote(app)}").status_code == 200)
            yield Events(socket)

    def is_connected(self, app: str) -> bool:
        """Return True if the app exists: it has a socket or a channel."""
        return self.status("GET", f"/applications/{quote(app)}") == 200

    # -- callers -------------------------------------------------------------------------------------------------------

    def dial(self, number: str, *, context: str = "inbound", far: str = "wait", **options: Any) -> str:
        """Start an inbound call, whose caller does what `far` says once answered; return the leg in the dialplan."""
        return self.administrator.dial(context, called=number, far=far, listen=far != "wait", **options)

    def hang_up_caller(self, leg: str) -> None:
        self.administrator.hang_up_caller(leg)

    def heard_by_caller(self, leg: str) -> float | None:
        """Return the frequency that a caller dialled with another `far` than `wait` hears."""
        if self.real is not None:
            return self.real.heard_by_caller(leg)
        assert self.simulated is not None
        control = self.simulated.control
        return float(until(lambda: control.heard(leg).dominant_hz))

    def ring(self, events: Events, number: str, **options: Any) -> str:
        """Start a call and wait until it rings in its app; return its leg."""
        leg = self.dial(number, **options)
        events.next("StasisStart", leg)
        return leg

    def pick_up(self, events: Events, number: str) -> tuple[str, str]:
        """Let another party pick up a call that rings in its app; return the ids of both channels."""
        leg, other = f"{number}-ringing", f"{number}-other"
        if self.simulated is not None:
            self.simulated.control.dial(f"app-{number}", channel_id=leg)
            created = events.next("StasisStart", leg)["channel"]["creationtime"]
            # Two channels of the same millisecond would have the same creationtime.
            until(lambda: self.get("/asterisk/ping")["timestamp"] > created)
            self.simulated.control.pick_up(leg, new_channel_id=other)
            return leg, other
        whole = {"endpoint": "Local/ring@far", "app": f"app-{number}", "channelId": leg, "formats": "ulaw"}
        self.call("POST", "/channels/create", {"variables": {"PICKUPMARK": number}}, **whole)
        events.next("StasisStart", leg)
        assert self.status("POST", f"/channels/{leg}/dial") == 204
        while events.next("Dial", leg)["dialstatus"] != "RINGING":
            pass
        self.administrator.dial("pickup", called=number, channel_id=other)
        return leg, other

    def transfer(self, leg: str, context: str = "outbound") -> None:
        """Let the party of a leg transfer the others of its bridge, to a telephone that answers."""
        if self.simulated is not None:
            self.simulated.control.transfer(leg)
        else:
            self.act("BlindTransfer", channel=self.name(leg), context=context, exten="1001")

    def act(self, action: str, **fields: str) -> None:
        """Carry out an AMI action of the real one."""
        assert self.real is not None
        self.real.act(action, **fields)

    def name(self, leg: str) -> str:
        return str(self.get(f"/channels/{leg}")["name"])

    def join(self, events: Events, number: str, treatment: str = "", **options: Any) -> tuple[str, str, str]:
        """Join a caller and a media leg in a bridge, answered; return the ids of the three."""
        leg, media, bridge = self.ring(events, number, **options), f"{number}-media", f"{number}-bridge"
        assert self.external_media(media, f"app-{number}", treatment).status_code == 200
        events.next("StasisStart", media)
        assert self.status("POST", f"/bridges/{bridge}", type="mixing") == 200
        assert self.status("POST", f"/channels/{leg}/answer") == 204
        assert self.status("POST", f"/bridges/{bridge}/addChannel", channel=f"{leg},{media}") == 204
        events.rest()
        return leg, media, bridge

    # -- the whole Asterisk --------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """End all calls."""
        if not self.administrator.answers():
            return
        for channel in self.administrator.channels():
            self.administrator.hang_up(channel["id"])
        for bridge in self.administrator.bridges():
            self.administrator.request("DELETE", f"/bridges/{quote(bridge['id'], safe='')}")
        until(lambda: not self.administrator.channels())

    def unload_channels(self) -> None:
        """Unload the module that answers `/channels`."""
        if self.real is not None:
            self.real.cli("module unload res_ari_channels.so")
        if self.simulated is not None:
            self.simulated.control.fault("*", "/channels*", status=404, message="Resource not found")

    def has_crashed(self) -> bool:
        """Return True if it has crashed; the simulated one reports it itself."""
        if self.simulated is not None:
            return self.simulated.control.crashes == 1 and not self.simulated.control.is_running
        return not self.administrator.answers()


def media_clients(agent_url: str) -> dict[str, str]:
    """Return name → URL of the websocket clients."""
    return {"media": agent_url, "unreachable": UNREACHABLE}


@contextlib.contextmanager
def simulated(
    agent_url: str, *, session_limit: int = 100, keep_alive_seconds: float = 15.0, attempts: int = ATTEMPTS
) -> Iterator[Switch]:
    """Start a simulated Asterisk, configured like the real one."""
    configured = settings.Settings(
        users={**USERS, asterisk_config.ADMINISTRATOR: _ADMINISTRATOR_PASSWORD},
        read_only_users={READER},
        media_urls=media_clients(agent_url),
        media_connection_timeout_seconds=CONNECTION_SECONDS,
        media_connection_attempts=attempts,
        contexts=CONTEXTS,
        broadcasts=BROADCASTS,
        session_limit=session_limit,
        keep_alive_seconds=keep_alive_seconds,
    )
    with SimulatedAsterisk(configured) as running, contextlib.ExitStack() as closing:
        administrator = asterisk.Switch(
            running.url, asterisk_config.ADMINISTRATOR, _ADMINISTRATOR_PASSWORD, asterisk_config.Configuration()
        )
        closing.callback(administrator.close)
        switch = Switch("simulated", running.url, administrator, simulated=running)
        closing.callback(switch.session.close)
        yield switch
        with contextlib.suppress(errors.ControlError):
            running.control.clear()


@contextlib.contextmanager
def real(
    agent_url: str,
    root: Root,
    folder: Path,
    *,
    session_limit: int = 100,
    keep_alive_seconds: float = 15.0,
    attempts: int = ATTEMPTS,
) -> Iterator[Switch]:
    """Start a real Asterisk."""
    clients = {
        name: asterisk_config.Client(
            uri=url,
            connection_timeout=round(CONNECTION_SECONDS * 1000),
            reconnect_interval=round(CONNECTION_SECONDS * 1000),
            reconnect_attempts=attempts,
        )
        for name, url in media_clients(agent_url).items()
    }
    configuration = asterisk_config.Configuration(
        contexts=CONTEXTS,
        users=dict(USERS),
        read_only={READER},
        clients=clients,
        session_limit=session_limit,
        keep_alive_seconds=keep_alive_seconds,
        dialplan=DIALPLAN,
        manager_port=processes.free_port(),
    )
    own = folder / f"contract-{uuid.uuid4().hex[:8]}"
    with asterisk.RealAsterisk(root, own, configuration) as running, contextlib.ExitStack() as closing:
        switch = Switch("real", running.url, running, real=running)
        closing.callback(switch.session.close)
        yield switch
    shutil.rmtree(own, ignore_errors=True)
