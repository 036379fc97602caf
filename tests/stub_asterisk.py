"""A server that answers as a good, a bad or a hostile Asterisk would, and a client of it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared import errors
from shared.asterisk import address_guard, circuit_breaker, rest, tcp_connector
from shared.asterisk.endpoint import Configuration

PASSWORD = "hunter2 & # % + : ="
CHANNEL = {
    "id": "1.1",
    "name": "PJSIP/a-1",
    "state": "Up",
    "creationtime": "2026-05-01T12:00:00.123+0000",
    "caller": {"name": "", "number": "+49151"},
    "dialplan": {"context": "in", "exten": "5551234", "priority": 1, "app_name": "Stasis", "app_data": "voiceai,a=1"},
}


class RequestBudget:
    """Lets every request through within `seconds`, and remembers them."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.requests: list[rest.RequestRecord] = []

    def seconds_left(self) -> float:
        if self.seconds <= 0:
            raise errors.TransientError("out of time")
        return self.seconds

    def record_request(self, request: rest.RequestRecord) -> None:
        self.requests.append(request)


Answer = Callable[["Handler"], None]


class Stub:
    """A server on loopback with one answer for every request; remembers what was asked."""

    def __init__(self) -> None:
        self.answer: Answer = answered(204)
        self.lines: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.peers: list[Any] = []
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"stub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"
    timeout = 5

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _do(self) -> None:
        self.stub.lines.append(f"{self.command} {self.path}")
        self.stub.headers.append(dict(self.headers))
        self.stub.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.stub.peers.append(self.client_address)
        self.stub.answer(self)

    do_GET = do_POST = do_PUT = do_DELETE = _do

    def log_message(self, format: str, *args: object) -> None:
        pass


def answered(status: int, document: object = None, *, headers: dict[str, str] | None = None) -> Answer:
    body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if status != 204:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def silent(handler: Handler) -> None:
    handler.stub.stopping.wait(5)


def closing(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving() -> Iterator[Stub]:
    """A stub at work."""
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.stopping.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@contextlib.contextmanager
def asterisk(
    url: str,
    *,
    connect: float = 1.0,
    read: float = 1.0,
    at_once: int = 10,
    breaker: circuit_breaker.CircuitBreaker | None = None,
    bounds: rest.AnswerBounds | None = None,
    on_denied: Callable[[str], None] | None = None,
) -> Iterator[rest.RestClient]:
    connector = tcp_connector.TcpConnector(address_guard.AddressGuard())
    configuration = Configuration(endpoint=url, app="voiceai", user="user", password=PASSWORD)
    made = rest.RestClient(
        configuration,
        requests_at_once=at_once,
        connect_seconds=connect,
        read_seconds=read,
        connector=connector,
        breaker=breaker or circuit_breaker.AlwaysClosed(),
        bounds=bounds or rest.AnswerBounds(),
        on_denied=on_denied,
    )
    try:
        yield made
    finally:
        made.close()
