"""Which requests reach a page: those for the console's own address, over TLS unless they come from this host."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from console import main
from console.guard import POLICY, Front, Guard
from shared import errors
from shared.asterisk import address_guard
from shared.process import settings

BEHIND = Front(host="console.example.net", proxies=address_guard.parse_networks("10.0.0.0/24"))
OVER_TLS = {"host": "console.example.net", "x-forwarded-proto": "https"}


async def told(request: Request) -> Response:
    assert request.client is not None
    return JSONResponse({"client": request.client.host, "scheme": request.url.scheme})


def get(front: Front, headers: Mapping[str, str], *, peer: str = "127.0.0.1") -> Response:
    app = Guard(Starlette(routes=[Route("/", told)]), front)
    answer = TestClient(app, client=(peer, 5)).get("/", headers=dict(headers))
    return answer  # type: ignore[return-value]


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost:9000", "localhost", "[::1]:8090", "LOCALHOST"])
def test_without_a_url_loopback_names_are_served(host: str) -> None:
    assert get(Front(), {"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "", "10.0.0.9:8090"])
def test_a_name_that_leads_here_from_elsewhere_is_refused(host: str) -> None:
    assert get(Front(), {"host": host}).status_code == 421


def test_behind_a_proxy_only_its_name_over_tls_is_served() -> None:
    answer = get(BEHIND, OVER_TLS | {"x-forwarded-for": "203.0.113.7"}, peer="10.0.0.5")
    assert answer.json() == {"client": "203.0.113.7", "scheme": "https"}  # type: ignore[attr-defined]
    assert "strict-transport-security" in answer.headers
    assert get(BEHIND, OVER_TLS | {"host": "localhost"}, peer="10.0.0.5").status_code == 421
    assert get(BEHIND, OVER_TLS | {"x-forwarded-proto": "http"}, peer="10.0.0.5").status_code == 403


def test_only_a_proxy_is_believed() -> None:
    """Anyone could claim TLS, or to ask from another address than the one that is locked."""
    assert get(BEHIND, OVER_TLS, peer="10.0.1.5").status_code == 403
    answer = get(Front(), {"host": "localhost", "x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"})
    assert answer.json() == {"client": "127.0.0.1", "scheme": "http"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        # What the browser has claimed stands in front of what the proxy has added.
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.0.0.6", "203.0.113.7"),
        ("203.0.113.7:5123", "203.0.113.7"),
        ("203.0.113.7, 10.0.0.6:443", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        # What is no address is not believed, nor what stands in front of it.
        ("unknown", "10.0.0.5"),
        ("", "10.0.0.5"),
        ("203.0.113.7, _hidden", "10.0.0.5"),
        ("203.0.113.7:", "10.0.0.5"),
        ("203.0.113.7:port", "10.0.0.5"),
        ("203.0.113.7:123456", "10.0.0.5"),
        ("203.0.113.999", "10.0.0.5"),
        ("[2001:db8::1", "10.0.0.5"),
        ("2001:db8::1%eth0", "10.0.0.5"),
        ("\N{FULLWIDTH DIGIT TWO}03.0.113.7", "10.0.0.5"),
    ],
)
def test_the_client_is_the_last_address_that_no_proxy_of_ours_has(forwarded: str, client: str) -> None:
    assert BEHIND.client("10.0.0.5", [forwarded]) == client


def test_every_answer_has_the_security_headers_refusals_too() -> None:
    for headers in ({"host": "localhost"}, {"host": "evil.example"}):
        answer = get(Front(), headers)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
    assert POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in POLICY


# ── what it does not start with ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "REDIS_URL": "redis://redis",
        "DATABASE_URL": "postgresql://p",
        "SECRET_KEY": "a key of sixteen characters",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "console.example"])
def test_it_does_not_start_open_to_a_network(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("CONSOLE_HOST", host)
    with pytest.raises(errors.InvalidSettings, match=r"CONSOLE_PROXIES: CONSOLE_HOST=.* is not loopback"):
        settings.load(settings.Web)
    environment.setenv("CONSOLE_PROXIES", "10.0.0.2")
    with pytest.raises(errors.InvalidSettings, match="is not loopback"):
        settings.load(settings.Web)
    environment.setenv("CONSOLE_URL", "https://console.example/")
    assert Front.of(settings.load(settings.Web)).host == "console.example"


def test_a_published_port_is_reached_from_the_host_alone(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CONSOLE_HOST", "0.0.0.0")
    environment.setenv("CONSOLE_URL", "http://localhost:8090")
    with pytest.raises(errors.InvalidSettings, match="is not loopback"):
        settings.load(settings.Web)
    for networks in ("172.30.90.0/24", "0.0.0.0/0", "172.30.90.1,::/0"):
        environment.setenv("CONSOLE_PROXIES", networks)
        with pytest.raises(errors.InvalidSettings, match="single addresses"):
            settings.load(settings.Web)
    environment.setenv("CONSOLE_PROXIES", "172.30.90.1")
    front = Front.of(settings.load(settings.Web))
    claimed = {"host": "127.0.0.1:8090", "x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
    for peer in ("172.30.90.1", "127.0.0.1"):
        answer = get(front, claimed, peer=peer)
        assert answer.json() == {"client": peer, "scheme": "http"}  # type: ignore[attr-defined]
    assert get(front, claimed, peer="172.30.90.5").status_code == 403, "another container"
    assert get(front, {"host": "192.0.2.1:8090"}, peer="172.30.90.1").status_code == 421


def test_a_port_that_is_taken_is_said_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(errors.InvalidSettings, match=rf"cannot listen on 127.0.0.1:{port}: .*CONSOLE_PORT=0"):
            main._listen("127.0.0.1", port)


@pytest.mark.parametrize("url", ["http://console.example", "https://console.example/path", "console.example"])
def test_the_url_is_one_of_tls(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("CONSOLE_URL", url)
    with pytest.raises(errors.InvalidSettings, match="CONSOLE_URL: must be https"):
        settings.load(settings.Web)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_on_loopback_it_needs_nothing(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("CONSOLE_HOST", host)
    assert not Front.of(settings.load(settings.Web)).needs_tls


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CONSOLE_TRACE_URL", "https://jaeger.example/trace/"),
        ("CONSOLE_TRACE_URL", "javascript:alert('{trace_id}')"),
        ("CONSOLE_TRACE_URL", "https://me:secret@jaeger.example/trace/{trace_id}"),
        ("CONSOLE_TRACE_URL", "https://{trace_id}.example/"),
        ("CONSOLE_TRACE_URL", "https://jaeger.example/{run_id}/{trace_id}"),
        ("CONSOLE_TRACE_URL", "https://jaeger.example/ {trace_id}"),
        ("CONSOLE_RUN_URL", "https://app.example/workflow/{workflow_id}"),
        ("CONSOLE_RUN_URL", "https://app.example/run/{run_id!r}"),
    ],
)
def test_a_link_to_another_program_is_a_url_with_its_placeholders(
    environment: pytest.MonkeyPatch, name: str, url: str
) -> None:
    environment.setenv(name, url)
    with pytest.raises(errors.InvalidSettings, match=name) as raised:
        settings.load(settings.Web)
    assert "secret" not in str(raised.value)


def test_a_link_to_another_program_may_have_a_query_or_a_fragment(environment: pytest.MonkeyPatch) -> None:
    for url in ("http://traces.example:16686/#/trace/{trace_id}", "https://traces.example?id={trace_id}"):
        environment.setenv("CONSOLE_TRACE_URL", url)
        assert settings.load(settings.Web).console_trace_url == url
