"""The metrics server: its pages, its bounds, and what it says while servers are away."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from shared import dependencies, errors, ongoing
from shared.process import health, metric_kinds, metrics_server, readiness, settings
from shared.process.metric_kinds import Process
from shared.process.metrics_server import MetricsServer
from shared.process.readiness import Check

SETTINGS = {"redis_url": "redis://127.0.0.1:1", "secret_key": "k" * 16}


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    made = MetricsServer("127.0.0.1", 0, Process.LISTENER)
    made.start()
    yield made
    made.close()


def connected(server: MetricsServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def sent(server: MetricsServer, request: bytes) -> tuple[int, str]:
    """Send bytes; return status and body."""
    with connected(server) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, body = received.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def got(server: MetricsServer, path: str) -> tuple[int, str]:
    return sent(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_it_serves_the_metrics_of_its_process(server: MetricsServer) -> None:
    status, body = got(server, "/metrics?debug=1")
    assert status == 200
    assert "# TYPE ari_pipeline_events_total counter" in body
    assert "ari_pipeline_leader" not in body


def test_it_speaks_openmetrics_to_who_asks_for_it(server: MetricsServer) -> None:
    request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    assert sent(server, request)[1].endswith("# EOF\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01 garbage\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 10_000, 431),
    ],
)
def test_what_is_no_request_for_a_page_is_answered(server: MetricsServer, request_bytes: bytes, status: int) -> None:
    assert sent(server, request_bytes)[0] == status


def test_head_has_no_body(server: MetricsServer) -> None:
    assert sent(server, b"HEAD /metrics HTTP/1.1\r\n\r\n") == (200, "")


def test_clients_that_say_nothing_hold_up_no_other(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_CONNECTION_SECONDS", 0.5)
    with contextlib.ExitStack() as stack:
        for _ in range(metrics_server._CONNECTIONS - 1):
            stack.enter_context(connected(server))
        assert got(server, "/metrics")[0] == 200
        # Beyond the bound a connection is closed at once, and there is room again once the silent ones are over.
        one, other = stack.enter_context(connected(server)), stack.enter_context(connected(server))
        assert other.recv(1) == b""
        one.close()
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionError, IndexError):
                if got(server, "/metrics")[0] == 200:
                    break
            assert time.monotonic() < until
            time.sleep(0.05)


def test_health_is_that_of_the_liveness_file(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health._Life, "touched_at", float("-inf"))
    assert got(server, "/healthz") == (503, "starting\n")
    with ongoing.task("Postgres", bound_seconds=0.01):
        time.sleep(0.05)
        health.Liveness("").touch()
        assert got(server, "/healthz")[0] == 503, "a wait is lost"
    health.Liveness("").touch()
    assert got(server, "/healthz") == (200, "nothing under way\n")
    monkeypatch.setattr(health._Life, "touched_at", time.monotonic() - 60)
    assert got(server, "/healthz") == (503, "no sign of life for 60 s\n")


def test_readiness_names_what_is_away(server: MetricsServer) -> None:
    assert got(server, "/readyz")[0] == 503

    def refuse() -> None:
        raise ConnectionError("redis://user:secret@host")

    server.readiness = readiness.Readiness({"redis": Check(ask=refuse), "postgres": Check(ask=lambda: None)})
    status, body = got(server, "/readyz")
    assert (status, json.loads(body)) == (
        503,
        {"ready": False, "degraded": False, "dependencies": {"postgres": "ok", "redis": "ConnectionError"}},
    )
    server.readiness = readiness.Readiness({"redis": Check(ask=lambda: None)})
    assert got(server, "/readyz") == (200, '{"ready": true, "degraded": false, "dependencies": {"redis": "ok"}}\n')


def test_a_server_that_is_not_needed_is_named_and_no_reason_not_to_be_ready(server: MetricsServer) -> None:
    def refuse() -> None:
        raise ConnectionError

    checks = {"redis": Check(ask=lambda: None), "platform-redis": Check(ask=refuse, is_needed=False)}
    server.readiness = readiness.Readiness(checks)
    status, body = got(server, "/readyz")
    said = {"platform-redis": "ConnectionError", "redis": "ok"}
    assert (status, json.loads(body)) == (200, {"ready": True, "degraded": True, "dependencies": said})


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        (settings.Listener, {}, {"redis"}),
        (settings.Worker, {}, {"redis", "postgres"}),
        (settings.Scheduler, {}, {"redis", "postgres"}),
        # It tells the platform's Redis nothing.
        (settings.Web, {"platform_redis_url": "redis://h/1"}, {"redis", "postgres"}),
        (settings.Worker, {"platform_redis_url": "redis://h/1"}, {"redis", "postgres", "platform-redis"}),
        (settings.Scheduler, {"platform_redis_url": "redis://h/1"}, {"redis", "postgres", "platform-redis"}),
    ],
)
def test_each_process_depends_on_the_servers_that_it_uses(
    kind: type[settings.Base], given: dict[str, str], named: set[str]
) -> None:
    config = kind.model_validate({**SETTINGS, "database_url": "postgresql://h/d", "secret_key": "x" * 32, **given})
    checks = dependencies.of(config)
    assert checks.keys() == named
    assert {name for name, check in checks.items() if not check.is_needed} == named & {"platform-redis"}


def test_a_server_that_does_not_answer_holds_up_no_page(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(readiness, "_KEPT_SECONDS", 0.0)
    hangs, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        hangs.wait(20)

    server.readiness = readiness.Readiness({"redis": Check(ask=hang)})
    for _ in range(3):
        began = time.monotonic()
        status, body = got(server, "/readyz")
        assert status == 503
        assert json.loads(body)["dependencies"] == {"redis": "no answer in 0.3 s"}
        assert time.monotonic() - began < 5
        assert got(server, "/metrics")[0] == 200
    assert len(asked) == 1, "one question at a time, however long it hangs"
    hangs.set()


def test_many_who_ask_are_one_question(server: MetricsServer) -> None:
    asked: list[int] = []
    server.readiness = readiness.Readiness({"redis": Check(ask=lambda: asked.append(1))})
    assert {got(server, "/readyz")[0] for _ in range(5)} == {200}
    assert len(asked) == 1


def test_a_port_in_use_is_a_wrong_setting(server: MetricsServer) -> None:
    port = server.address.rpartition(":")[2]
    config = settings.Base.model_validate({**SETTINGS, "metrics_port": port})
    with pytest.raises(errors.InvalidSettings, match=rf"METRICS_PORT={port}\).*takes a free port"):
        metrics_server.start(config, Process.WORKER)
    with pytest.raises(errors.InvalidSettings, match="no such host"):
        metrics_server.start(settings.Base.model_validate({**SETTINGS, "metrics_host": ".."}), Process.WORKER)
    with pytest.raises(errors.InvalidSettings, match=r"METRICS_HOST=192\.0\.2\.1"):
        metrics_server.start(settings.Base.model_validate({**SETTINGS, "metrics_host": "192.0.2.1"}), Process.WORKER)


def test_switched_off_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_kinds._Switch, "is_on", True)
    metrics_server.start(settings.Base.model_validate({**SETTINGS, "metrics": "off"}), Process.WORKER)
    metrics_server.depends_on({"redis": Check(ask=lambda: None)})
    assert metrics_server.address() is None
    assert not metric_kinds._Switch.is_on


def test_by_default_two_processes_of_a_machine_do_not_collide() -> None:
    config = settings.Base.model_validate(SETTINGS)
    assert config.metrics_port == 0
    servers = [MetricsServer(config.metrics_host, config.metrics_port, Process.WORKER) for _ in range(2)]
    assert len({each.address for each in servers}) == 2
    for each in servers:
        each.close()
