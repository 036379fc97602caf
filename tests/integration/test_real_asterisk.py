"""The real Asterisk of the development stack: it can be had, configured, called through, listened to and crashed."""

import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from websockets.sync.client import ClientConnection, connect

from devstack import asterisk, asterisk_config
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.endpoint import Behaviour

pytestmark = pytest.mark.asterisk

MakeAsterisk = Callable[[asterisk_config.Configuration], asterisk.RealAsterisk]
TRAPS = [
    "a b & # % + :",
    ";",
    "a;b;--c",
    "back\\slash",
    "\\;",
    "=> x=y",
    '#include "x"',
    "'q' \"q\" [s](t) ${X} $[1]",
    "ümläut",
]


@pytest.fixture
def events(switch: asterisk.Switch) -> Iterator[ClientConnection]:
    """The event socket of the app of the fixture `switch`."""
    app = next(iter(switch.configuration.contexts.values()))
    credentials = b64encode(":".join(next(iter(switch.configuration.users.items()))).encode()).decode()
    url = f"{switch.url.replace('http', 'ws', 1)}/ari/events?app={quote(app)}"
    with connect(url, additional_headers={"Authorization": f"Basic {credentials}"}) as socket:
        yield socket


def next_event(socket: ClientConnection, kind: str, channel_id: str) -> dict[str, Any]:
    """The next event of this type and channel."""
    while True:
        event: dict[str, Any] = json.loads(socket.recv(timeout=10))
        if event["type"] == kind and event["channel"]["id"] == channel_id:
            return event


def external_media(server: asterisk.Switch, client: str, channel_id: str) -> requests.Response:
    """Ask for a media leg of workflow 1, user 2, run 3."""
    return server.request(
        "POST",
        "/channels/externalMedia",
        app="voiceai",
        external_host=client,
        format="ulaw",
        transport="websocket",
        encapsulation="none",
        connection_type="client",
        direction="both",
        channelId=channel_id,
        transport_data="v(workflow_id=1,user_id=2,workflow_run_id=3)",
    )


def until(met: Callable[[], bool], *, seconds: float = 5) -> bool:
    """Whether a condition is met in time."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_call_enters_the_app_as_a_ringing_inbound_call_and_leaves_nothing(
    switch: asterisk.Switch, events: ClientConnection
) -> None:
    context, app = next(iter(switch.configuration.contexts.items()))
    leg = switch.dial(context, called="5550100", caller="+4915550001")

    start = next_event(events, "StasisStart", leg)
    assert start["application"] == app
    assert start["channel"]["state"] in ("Ring", "Ringing")
    assert start["channel"]["caller"]["number"] == "+4915550001"
    assert start["channel"]["dialplan"]["exten"] == "5550100"

    switch.hang_up_caller(leg)
    next_event(events, "StasisEnd", leg)
    assert until(lambda: not [channel for channel in switch.channels() if leg in channel["id"]])


def test_audio_flows_both_ways(asterisk: asterisk.RealAsterisk, events: ClientConnection, media_port: int) -> None:
    with Agent(port=media_port, behaviour=Behaviour(mode="tone", tone_hz=400)) as agent:
        leg = asterisk.dial(far="tone", listen=True)
        next_event(events, "StasisStart", leg)
        external_media(asterisk, "media", "media-leg").raise_for_status()
        next_event(events, "StasisStart", "media-leg")
        asterisk.request("POST", "/bridges/joint", type="mixing").raise_for_status()
        asterisk.request("POST", f"/channels/{leg}/answer").raise_for_status()
        asterisk.request("POST", "/bridges/joint/addChannel", channel=f"{leg},media-leg").raise_for_status()

        assert asterisk.heard_by_caller(leg) == pytest.approx(400, abs=5)
        session = agent.sessions[3]
        assert until(lambda: session.dominant_frequency is not None)
        assert session.dominant_frequency == pytest.approx(1004, abs=5)

        agent.close_all()
        next_event(events, "StasisEnd", "media-leg")
        assert not session.open


def test_each_password_opens_its_user_and_no_other(make_asterisk: MakeAsterisk) -> None:
    users = {f"user{number}": password for number, password in enumerate(TRAPS)}
    server = make_asterisk(asterisk_config.Configuration(users=users, prefix="/pbx/one"))
    assert server.url.endswith("/pbx/one")
    for user, password in users.items():
        for tried in users.values():
            secret = f"{user}:{tried}".encode()
            headers = {"Authorization": f"Basic {b64encode(secret).decode()}"}
            answer = requests.get(f"{server.url}/ari/asterisk/ping", headers=headers, timeout=5)
            assert answer.status_code == (200 if tried == password else 401), (user, tried)


def test_changed_configuration_is_displaced_without_a_restart(asterisk: asterisk.RealAsterisk) -> None:
    assert external_media(asterisk, "extra", "leg-1").status_code == 400
    asterisk.users["late"] = "comer"
    asterisk.configuration.contexts["second"] = "other"
    asterisk.configuration.clients["extra"] = asterisk_config.Client(uri="ws://127.0.0.1:9/")
    asterisk.reload()
    assert requests.get(f"{asterisk.url}/ari/asterisk/ping", auth=("late", "comer"), timeout=5).status_code == 200
    assert "Stasis(other)" in asterisk.cli("dialplan show second")
    assert external_media(asterisk, "extra", "leg-2").status_code == 200


def test_crashed_asterisk_comes_back_on_its_port_without_its_calls(make_asterisk: MakeAsterisk) -> None:
    first, second = (make_asterisk(asterisk_config.Configuration()) for _ in range(2))
    first.dial()
    second.dial()
    first.kill()
    assert not first.answers()
    first.start()
    assert first.channels() == []
    assert len(second.channels()) == 2


def test_every_console_command_we_name_is_one(asterisk: RealAsterisk) -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "arictl").rglob("*.py")]
    found = {name for page in pages for name in re.findall(r"asterisk -rx '([^'{]+)'", page.read_text())}
    # This Asterisk has no RTP.
    assert len(found - {"rtp set debug on"}) > 8
    said = {name: asterisk.cli(name) for name in sorted(found - {"rtp set debug on"})}
    assert {name: text for name, text in said.items() if "No such command" in text} == {}
    assert "No such command" in asterisk.cli("no such thing")
