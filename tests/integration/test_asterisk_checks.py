"""The doctor's look at one Asterisk and at its media URL: each finding provoked, and no secret in any."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote, unquote

import pytest

from devstack.asterisk import RealAsterisk
from shared.asterisk import address_guard, tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.operator.checks import asterisk_checks, media_checks
from shared.operator.checks.findings import Level
from simulator import settings as simulator_settings
from simulator.testing import SimulatedAsterisk
from tests.canned_asterisk import CLIENT_PATH, PASSWORD, Canned, client


@pytest.fixture
def canned() -> Iterator[Canned]:
    with Canned() as made:
        yield made


def examined(endpoint: str, name: str | None = "media", password: str = PASSWORD) -> dict[str, tuple[Level, str]]:
    """What was looked at → the worst that was found, and what was seen."""
    configuration = Configuration(endpoint=endpoint, app="voiceai", user="voiceai", password=password)
    found: dict[str, tuple[Level, str]] = {}
    for one in asterisk_checks.check(
        configuration,
        name,
        socket_state="connected",
        connector=tcp_connector.TcpConnector(address_guard.AddressGuard()),
    ):
        assert "hunter2" not in f"{one}"
        assert bool(one.todo) == (one.level is not Level.OK)
        if one.what not in found or one.level is Level.WRONG:
            found[one.what] = (one.level, one.seen)
    return found


@pytest.mark.parametrize(
    ("status", "message", "what", "seen"),
    [
        (401, "Authentication required", "credentials", "answered 401"),
        (403, "", "credentials", "answered 403"),
        (404, "Resource not found", "reachable", "answered 404 Resource not found"),
        (503, "", "reachable", "answered 503"),
    ],
)
def test_an_asterisk_that_gives_no_usable_answer(
    canned: Canned, status: int, message: str, what: str, seen: str
) -> None:
    canned.answers["GET /applications/voiceai"] = (status, {"message": message})
    assert list(examined(canned.url)) == [what]
    level, text = examined(canned.url)[what]
    assert (level, seen in text) == (Level.WRONG, True)


def test_an_asterisk_that_cannot_be_reached_or_hangs(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert examined(f"http://127.0.0.1:{port}")["reachable"][1].endswith("connection refused")
    monkeypatch.setattr(asterisk_checks, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(asterisk_checks, "_CONNECT_SECONDS", 0.2)
    canned.pause_seconds = 1.0
    started = time.monotonic()
    assert examined(canned.url)["reachable"][0] is Level.WRONG
    assert time.monotonic() - started < 1
    with socket.create_server(("127.0.0.1", 0)) as plain:
        assert examined(f"https://127.0.0.1:{plain.getsockname()[1]}")["reachable"][0] is Level.WRONG


def test_an_asterisk_that_hangs_half_way_keeps_what_was_found(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asterisk_checks, "_READ_SECONDS", 0.5)
    canned.answers["POST /channels/*/answer"] = (500, {"message": "hunting"})
    found = examined(canned.url)
    assert found["credentials"][0] is Level.OK
    assert found["Asterisk"] == (Level.WRONG, "answered 500 hunting")


def test_a_user_that_may_only_read_and_absent_modules_are_found(canned: Canned) -> None:
    canned.answers["POST /channels/*/answer"] = (403, {"message": "Write access denied"})
    assert examined(canned.url)["rights"][0] is Level.WRONG
    del canned.answers["POST /channels/*/answer"]
    assert examined(canned.url)["channels"][0] is Level.WRONG
    canned.answers["POST /channels/*/answer"] = (404, {"message": "Channel not found"})
    canned.answers["DELETE /channels/*"] = (403, {"message": "Write access denied"})
    assert "DELETE answered 403" in examined(canned.url)["rights"][1]
    canned.answers["DELETE /channels/*"] = (405, {})
    assert examined(canned.url)["rights"] == (Level.WRONG, "DELETE: 405 ")
    modules = [{"name": "app_stasis.so", "status": "Not Running"}]
    canned.answers["GET /asterisk/modules"] = (200, modules)
    level, seen = examined(canned.url)["modules"]
    assert (level, "app_stasis (Not Running)" in seen) == (Level.WRONG, True)
    assert "chan_websocket (not loaded)" in seen
    del canned.answers["GET /asterisk/modules"]
    assert examined(canned.url)["modules"][0] is Level.WARNING
    del canned.answers["GET /asterisk/info"]
    assert examined(canned.url)["version, modules, websocket client"][0] is Level.WARNING


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda path: quote(unquote(path), safe="/+?#"),
        lambda path: quote(unquote(path), safe=""),
        lambda path: path.replace("+", " ").replace("%2B", "%20"),
        lambda path: path.replace("%2F%2F", "%2F"),
        lambda path: path.replace("%2F..", ""),
        lambda path: path.replace("%3B", ";").partition(";")[0],
        lambda path: path.replace("%C3%A9", "%E9"),
        unquote,
    ],
    ids=["decoded as nginx does", "encoded twice", "plus", "slashes", "dots", "semicolon", "latin-1", "decoded"],
)
def test_a_proxy_that_changes_paths_is_found(canned: Canned, rewrite: Callable[[str], str]) -> None:
    assert examined(canned.url)["paths"][0] is Level.OK
    canned.rewrite = lambda path: rewrite(path) if "doctor%2B" in path else path
    assert examined(canned.url)["paths"][0] is Level.WRONG


def test_the_websocket_client_is_looked_up(canned: Canned) -> None:
    assert examined(canned.url)["websocket client"] == (Level.OK, "[media] exists")
    canned.answers["GET " + CLIENT_PATH] = client("ws://127.0.0.1:9", protocols="", connection_type="persistent")
    assert examined(canned.url)["websocket client"][0] is Level.WRONG
    canned.answers["GET " + CLIENT_PATH] = (404, {"message": "Object with id 'media' not found"})
    assert examined(canned.url)["websocket client"] == (Level.WRONG, "websocket_client.conf has no [media]")
    canned.answers["GET " + CLIENT_PATH] = (404, {"message": "configClass 'res_websocket_client' not found"})
    assert examined(canned.url)["websocket client"][0] is Level.WARNING
    assert "websocket client" not in examined(canned.url, None)


@pytest.mark.parametrize(
    ("uri", "level"),
    [
        ("http://h/", Level.WRONG), ("ws://h:hunter2/", Level.WRONG), ("ws://[h/", Level.WRONG), ("", Level.WRONG),
        ("ws://u:hunter2@127.0.0.1:9/hunter2?t=hunter2", Level.WARNING), ("wss://no-such-host.invalid/", Level.WARNING),
    ],
)  # fmt: skip
def test_the_media_url_is_tried_as_far_as_it_can_be(uri: str, level: Level) -> None:
    found = media_checks.reach(uri)
    assert found.level is level
    assert "hunter2" not in f"{found}"


def test_a_simulated_asterisk_is_looked_at() -> None:
    lacking = tuple(name for name in simulator_settings.Settings().modules if name != "bridge_simple")
    with (
        SimulatedAsterisk(users={"voiceai": PASSWORD}, media_url="ws://127.0.0.1:9/") as there,
        SimulatedAsterisk(simulator_settings.Settings(modules=lacking), users={"voiceai": PASSWORD}) as poorer,
    ):
        found = examined(there.url)
        for what in ("reachable", "credentials", "rights", "paths", "version", "modules", "websocket client"):
            assert found[what][0] is Level.OK, what
        assert examined(there.url, "other")["websocket client"][0] is Level.WRONG
        assert examined(there.url, password="hunter2 wrong")["credentials"][0] is Level.WRONG
        assert examined(poorer.url)["modules"] == (Level.WRONG, "bridge_simple (not loaded)")


@pytest.mark.asterisk
def test_a_real_asterisk_is_looked_at(asterisk: RealAsterisk) -> None:
    password = asterisk.users["voiceai"]
    found = examined(asterisk.url, password=password)
    for what in ("reachable", "credentials", "rights", "paths", "version", "modules", "websocket client"):
        assert found[what][0] is Level.OK, what
    assert found["media URL"][0] is Level.WARNING
    assert found["Stasis app"][0] is Level.WRONG
    assert examined(asterisk.url, "other", password)["websocket client"][0] is Level.WRONG
    assert examined(asterisk.url, "a/b ?#%'", password)["websocket client"][0] is Level.WRONG
    assert "answered 401" in examined(asterisk.url)["credentials"][1]
    assert examined(asterisk.url + "/prefix", password=password)["reachable"][0] is Level.WRONG
    asterisk.cli("module unload bridge_simple.so")
    assert examined(asterisk.url, password=password)["modules"] == (Level.WRONG, "bridge_simple (not loaded)")
    assert asterisk.channels() == []
