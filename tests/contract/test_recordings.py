"""Recorded events of a real Asterisk: the product reads them, and the simulator sends the same for the same call.

`UPDATE_RECORDINGS=1` records the real call anew.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.asterisk import events as ari_events
from tests.contract import switches
from tests.contract.event_sockets import CHATTER, until
from tests.contract.switches import Switch

ROOT = Path(__file__).parents[2]
INBOUND_CALL = Path(__file__).parent / "recordings" / "inbound_call.jsonl"
#: Events in random order: those of one request and those of the next.
Shape = tuple[str, str, frozenset[str], frozenset[str]]


def inbound_call(switch: Switch, number: str, path: Path) -> list[str]:
    """Record an inbound call from ring to end with `simulator.record`; return the lines."""
    app, command = f"app-{number}", [sys.executable, "-m", "simulator.record"]
    command += ["--url", switch.url, "--user", switches.USER, "--app", app]
    environment = os.environ | {"ARI_PASSWORD": switches.PASSWORD}
    with path.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out) as recorder:
        until(lambda: switch.is_connected(app))
        leg, media, bridge = switch.dial(number, channel_id=f"call-{number}"), f"{number}-media", f"{number}-bridge"
        until(lambda: "StasisStart" in path.read_text())
        switch.external_media(media, app)
        until(lambda: path.read_text().count("StasisStart") == 2)
        switch.call("POST", f"/bridges/{bridge}", type="mixing")
        switch.call("POST", f"/channels/{leg}/answer")
        switch.call("POST", f"/bridges/{bridge}/addChannel", channel=f"{leg},{media}")
        until(lambda: path.read_text().count("ChannelEnteredBridge") == 2)
        switch.hang_up_caller(leg)
        until(lambda: "StasisEnd" in path.read_text())
        switch.call("DELETE", f"/channels/{media}")
        until(lambda: "ChannelDestroyed" in path.read_text())
        switch.call("DELETE", f"/bridges/{bridge}")
        until(lambda: "BridgeDestroyed" in path.read_text())
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(5) == 0
    return path.read_text().splitlines()


def shape(line: str) -> Shape:
    """Return what an event has in common on two Asterisks: type, subject, and the fields of it and its channel."""
    event: dict[str, Any] = json.loads(line)
    channel = event.get("channel") or event.get("peer") or {}
    role = "media" if channel.get("name", "").startswith("WebSocket/") else "caller"
    return event["type"], role, frozenset(event), frozenset(channel)


def shapes(lines: list[str]) -> list[Shape]:
    return [found for found in map(shape, lines) if found[0] not in CHATTER]


@pytest.fixture(scope="module")
def recorded() -> list[str]:
    return INBOUND_CALL.read_text().splitlines()


def test_every_recorded_event_is_read(recorded: list[str]) -> None:
    read = [found for line in recorded if (found := ari_events.parse(line)) is not None]
    assert [event.type for event in read if event.leg.name.startswith("Local/")] == [
        "StasisStart",
        "ChannelHangupRequest",
        "StasisEnd",
    ]
    media = [event for event in read if event.leg.name.startswith("WebSocket/")]
    kinds = ["Dial", "Dial", "StasisStart", "ChannelHangupRequest", "StasisEnd", "ChannelDestroyed"]
    assert [event.type for event in media] == kinds
    assert [event.dial_status for event in media[:2]] == ["", "ANSWER"]
    assert (media[-1].cause, media[-1].cause_text) == (16, "Normal Clearing")
    assert all(event.application and event.stamp and event.leg.created for event in read)


def test_same_call_sends_the_recorded_events(switch: Switch, number: str, recorded: list[str], tmp_path: Path) -> None:
    lines = inbound_call(switch, number, tmp_path / "events.jsonl")
    if switch.kind == "real" and os.environ.get("UPDATE_RECORDINGS"):
        INBOUND_CALL.write_text("\n".join(lines) + "\n")
        pytest.skip("recorded anew")
    assert sorted(map(str, _sorted(lines))) == sorted(map(str, _sorted(recorded)))
    for role in ("caller", "media"):
        assert [s[0] for s in shapes(lines) if s[1] == role] == [s[0] for s in shapes(recorded) if s[1] == role]


def _sorted(lines: list[str]) -> list[tuple[str, str, list[str], list[str]]]:
    return [(kind, role, sorted(fields), sorted(channel)) for kind, role, fields, channel in shapes(lines)]
