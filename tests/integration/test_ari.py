"""Requests to an Asterisk, against a server that answers as a good, a bad or a hostile one would."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared import errors
from shared.asterisk import address_guard, ari, circuit_breaker, http_pool, rest, tcp_connector

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


Answer = Callable[["_Handler"], None]


class Stub:
    """A server on loopback with one answer for every request; remembers what was asked."""

    def __init__(self) -> None:
        self.answer: Answer = answered(204)
        self.lines: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.peers: list[Any] = []
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
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

    def answer(handler: _Handler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if status != 204:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.stopping.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def budget() -> RequestBudget:
    return RequestBudget()


@contextlib.contextmanager
def asterisk(
    url: str,
    *,
    connect: float = 1.0,
    read: float = 1.0,
    at_once: int = 10,
    breaker: circuit_breaker.CircuitBreaker | None = None,
) -> Iterator[rest.RestClient]:
    connector = tcp_connector.TcpConnector(address_guard.AddressGuard())
    target = rest.Target(endpoint=url, app="voiceai", user="user", password=PASSWORD)
    made = rest.RestClient(
        target,
        requests_at_once=at_once,
        connect_seconds=connect,
        read_seconds=read,
        connector=connector,
        breaker=breaker or circuit_breaker.AlwaysClosed(),
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def client(stub: Stub, budget: RequestBudget) -> Iterator[ari.Ari]:
    with asterisk(stub.url) as made:
        yield ari.Ari(made, budget)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_channel_is_read(client: ari.Ari, stub: Stub, budget: RequestBudget) -> None:
    stub.answer = answered(200, CHANNEL)
    channel = client.channel("1.1")
    assert channel is not None
    assert (channel.id, channel.stasis_app, channel.caller_number) == ("1.1", "voiceai", "+49151")
    assert stub.lines == ["GET /ari/channels/1.1"]
    assert [(request.what, request.answer) for request in budget.requests] == [("GET /channels/1.1", "200")]
    assert budget.requests[0].took_ms > 0


def test_credentials_go_in_the_header_only(client: ari.Ari, stub: Stub) -> None:
    client.answer("1.1")
    assert stub.headers[0]["Authorization"] == "Basic dXNlcjpodW50ZXIyICYgIyAlICsgOiA9"
    assert "hunter2" not in stub.lines[0]


def test_a_path_prefix_is_kept(stub: Stub, budget: RequestBudget) -> None:
    with asterisk(f"{stub.url}/asterisk") as made:
        ari.Ari(made, budget).answer("1.1")
    assert stub.lines == ["POST /asterisk/ari/channels/1.1/answer"]


@pytest.mark.parametrize(
    ("channel_id", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        ("a%2Fb", "a%252Fb"),
        ("../../asterisk", "..%2F..%2Fasterisk"),
        ("a b\u00fc", "a%20b%C3%BC"),
        ("a;2", "a%3B2"),
        ("a\r\nX: y", "a%0D%0AX%3A%20y"),
    ],
)
def test_ids_chosen_by_others_stay_one_segment(client: ari.Ari, stub: Stub, channel_id: str, segment: str) -> None:
    client.answer(channel_id)
    assert stub.lines == [f"POST /ari/channels/{segment}/answer"]


def test_a_media_leg_is_asked_for_as_the_platform_wants_it(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(200, CHANNEL)
    client.create_media("aip-1-m1", client="media", parameters={"workflow_id": "1", "token": "a)b,c&d%e\n"})
    assert stub.lines == [
        "POST /ari/channels/externalMedia?app=voiceai&external_host=media&format=ulaw&transport=websocket"
        "&encapsulation=none&connection_type=client&direction=both&channelId=aip-1-m1"
        # Once for the media URL, once more for this one.
        "&transport_data=v%28workflow_id%3D1%2Ctoken%3Da%2529b%252Cc%2526d%2525e%250A%29"
    ]


def test_what_else_is_asked(client: ari.Ari, stub: Stub) -> None:
    client.create_bridge("aip-1-b1")
    client.add_legs("aip-1-b1", ["1.1", "aip-1-m1"])
    assert client.hang_up("1.1", 17)
    assert client.hang_up("1.1")
    assert client.remove_bridge("aip-1-b1")
    client.set_event_filter(["Dial", "StasisEnd"])
    assert stub.lines == [
        "POST /ari/bridges/aip-1-b1?type=mixing&name=aip-1-b1",
        "POST /ari/bridges/aip-1-b1/addChannel?channel=1.1%2Caip-1-m1",
        "DELETE /ari/channels/1.1?reason_code=17",
        "DELETE /ari/channels/1.1",
        "DELETE /ari/bridges/aip-1-b1",
        "PUT /ari/applications/voiceai/eventFilter",
    ]
    assert json.loads(stub.bodies[-1]) == {"allowed": [{"type": "Dial"}, {"type": "StasisEnd"}]}


def test_bridges_and_the_application_are_read(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(200, [{"id": "b1", "channels": ["1", "2"]}, {"id": "b2"}])
    assert client.bridges() == [
        ari.Bridge(id="b1", channels=frozenset({"1", "2"})),
        ari.Bridge(id="b2", channels=frozenset()),
    ]
    stub.answer = answered(200, {"channel_ids": ["1"], "events_allowed": [{"type": "Dial"}]})
    assert client.application() == ari.Application(channels=frozenset({"1"}), allowed=frozenset({"Dial"}))


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_gone_is_an_outcome(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(404, {"message": "Channel not found"})
    assert client.channel("1.1") is None
    assert not client.answer("1.1")
    assert not client.hang_up("1.1")
    stub.answer = answered(404, {"message": "Bridge not found"})
    assert client.bridge("b1") is None
    assert not client.remove_bridge("b1")
    stub.answer = answered(404, {"message": "Application not found"})
    assert client.application() is None


ASKS: dict[str, Callable[[ari.Ari], object]] = {
    "channel": lambda client: client.channel("1.1"),
    "bridge": lambda client: client.bridge("b1"),
    "application": lambda client: client.application(),
    "answer": lambda client: client.answer("1.1"),
    "hang_up": lambda client: client.hang_up("1.1"),
    "remove_bridge": lambda client: client.remove_bridge("b1"),
    "bridges": lambda client: client.bridges(),
}


@pytest.mark.parametrize(
    ("status", "document", "may_have_acted"),
    [
        (404, {"message": "Resource not found"}, False),
        (404, {"message": "Invalid Channel not found"}, False),
        (404, {"message": ["Channel not found"]}, False),
        (404, ["Channel not found"], False),
        (404, b"<html>Channel not found</html>", False),
        (404, None, False),
        (401, {"message": "Authentication required"}, False),
        (403, {"message": "Channel not found"}, False),
        (408, None, False),
        (429, None, False),
        (500, {"message": "Channel not found"}, True),
        (502, b"<html>", True),
        (503, None, True),
        (301, None, False),
        # Some proxy's own page: it proves nothing.
        (200, b"<html>Please log in</html>", True),
    ],
)
def test_nothing_else_is_an_outcome(
    client: ari.Ari, stub: Stub, status: int, document: object, *, may_have_acted: bool
) -> None:
    stub.answer = answered(status, document)
    for name, ask in ASKS.items():
        with pytest.raises(errors.AsteriskUnreachable) as caught:
            ask(client)
        assert caught.value.may_have_acted is may_have_acted, name


@pytest.mark.parametrize("document", [None, [], "Channel not found", 5, {}, {"id": 5}, b"null", b"[" * 100_000])
def test_an_answer_that_cannot_be_read_is_not_an_absence(client: ari.Ari, stub: Stub, document: object) -> None:
    stub.answer = answered(200, document)
    for ask in (client.channel, client.bridge):
        with pytest.raises(errors.AsteriskUnreachable):
            ask("1.1")


@pytest.mark.parametrize("names", [5, "1.1", {"a": 1}, True])
def test_lists_that_are_none_are_not_an_absence(client: ari.Ari, stub: Stub, names: object) -> None:
    stub.answer = answered(200, {"id": "b1", "channels": names, "channel_ids": names, "events_allowed": names})
    for ask in (client.application, lambda: client.bridge("b1")):
        with pytest.raises(errors.AsteriskUnreachable):
            ask()


def test_hostile_names_and_messages_can_be_logged_and_stored(
    client: ari.Ari, stub: Stub, budget: RequestBudget
) -> None:
    hostile = "a\x00\ud800\n\x1b[2J" + "x" * 100_000
    stub.answer = answered(200, {"id": hostile, "channels": [hostile], "channel_ids": [hostile]})
    bridge, application = client.bridge("b1"), client.application()
    stub.answer = answered(400, {"message": hostile})
    with pytest.raises(errors.AsteriskRefused) as caught:
        client.answer("1.1")
    assert bridge is not None
    assert application is not None
    said = [bridge.id, *bridge.channels, *application.channels, str(caught.value), budget.requests[-1].answer]
    for text in said:
        assert text.isprintable()
        assert len(text) < 300
        client_path = text.encode()
        assert client_path


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Channel not found"),
        (409, "exists"),
        (412, "Channel not in Stasis"),
        (422, "Channel not in Stasis application"),
    ],
)
def test_a_refusal_is_told_in_asterisk_s_words(client: ari.Ari, stub: Stub, status: int, message: str) -> None:
    stub.answer = answered(status, {"message": message})
    with pytest.raises(errors.AsteriskRefused) as caught:
        client.add_legs("b1", ["1.1"])
    assert (caught.value.status, caught.value.message) == (status, message)


def test_a_bridge_that_was_made_before_is_made(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(409, {"message": "Bridge with id 'b1' already exists"})
    client.create_bridge("b1")
    with pytest.raises(errors.AsteriskRefused):
        client.create_media("m1", client="media", parameters={})


def test_no_redirect_is_followed(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(302, None, headers={"Location": f"{stub.url}/elsewhere"})
    with pytest.raises(errors.AsteriskUnreachable, match="302"):
        client.channel("1.1")
    assert stub.lines == ["GET /ari/channels/1.1"]


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def silent(handler: _Handler) -> None:
    handler.stub.stopping.wait(5)


def dripping(first: bytes) -> Answer:
    """Sends one byte after the other, each well within the time-out of a single read."""

    def answer(handler: _Handler) -> None:
        handler.wfile.write(first)
        while not handler.stub.stopping.wait(0.05):
            handler.wfile.write(b" ")

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        silent,
        dripping(b"HTTP/1.1 200 OK\r\nX-Header: "),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
    ids=["silent", "headers", "short body", "long body", "endless body"],
)
def test_an_answer_takes_no_longer_than_its_time(stub: Stub, budget: RequestBudget, answer: Answer) -> None:
    stub.answer = answer
    with asterisk(stub.url, read=0.3) as made:
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable) as caught:
            ari.Ari(made, budget).channel("1.1")
        assert time.monotonic() - started < 1.0
    assert caught.value.may_have_acted
    assert len(budget.requests) == 1


def test_a_step_s_own_time_bounds_its_requests(stub: Stub) -> None:
    stub.answer = silent
    with asterisk(stub.url, read=5.0) as made:
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable):
            ari.Ari(made, RequestBudget(0.2)).channel("1.1")
        assert time.monotonic() - started < 1.0


def test_no_request_starts_after_the_step_s_time(client: ari.Ari, stub: Stub, budget: RequestBudget) -> None:
    budget.seconds = 0
    with pytest.raises(errors.TransientError, match="out of time"):
        client.answer("1.1")
    assert stub.lines == []


def test_an_answer_too_large_is_refused(client: ari.Ari, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pool, "LARGEST_ANSWER", 1000)
    stub.answer = answered(200, CHANNEL | {"padding": "x" * 2000})
    with pytest.raises(errors.AsteriskUnreachable, match="too large"):
        client.channel("1.1")


def test_only_so_many_requests_are_in_flight(stub: Stub) -> None:
    """One that finds no place was never sent: it cannot have acted."""
    stub.answer = silent
    with asterisk(stub.url, connect=0.2, read=1.0, at_once=1) as made:
        waiting = threading.Thread(target=lambda: outcome(made))
        waiting.start()
        until(lambda: stub.lines != [])
        with pytest.raises(errors.AsteriskUnreachable, match="too many requests") as caught:
            ari.Ari(made, RequestBudget()).channel("1.2")
        assert not caught.value.may_have_acted
        stub.stopping.set()
        waiting.join()
    assert len(stub.lines) == 1


def closing(handler: _Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


# ── the circuit breaker ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "opens"),
    [
        (answered(500, {"message": "x"}), True),
        (answered(503), True),
        (answered(500, {"message": "Allocation failed"}), False),
        (closing, True),
        (answered(400, {"message": "x"}), False),
        (answered(401, {"message": "Authentication required"}), False),
        (answered(403), False),
        (answered(404, {"message": "Resource not found"}), False),
        (answered(404, {"message": "Channel not found"}), False),
        (answered(422, {"message": "x"}), False),
    ],
)
def test_what_gives_no_answer_opens_the_breaker_and_a_4xx_does_not(stub: Stub, answer: Answer, *, opens: bool) -> None:
    stub.answer = answer
    with asterisk(stub.url, breaker=circuit_breaker.CircuitBreaker()) as made:
        for _ in range(circuit_breaker.FAILURES):
            outcome(made)
        assert len(stub.lines) == circuit_breaker.FAILURES
        said = outcome(made)
        assert said.startswith("circuit breaker open") is opens
        assert len(stub.lines) == circuit_breaker.FAILURES + (not opens)


def test_a_refused_connection_opens_the_breaker_and_one_answer_closes_it(stub: Stub) -> None:
    clock = 100.0
    with asterisk(stub.url, read=0.1, breaker=circuit_breaker.CircuitBreaker(clock=lambda: clock)) as made:
        stub.answer = silent
        for _ in range(circuit_breaker.FAILURES):
            assert outcome(made) == "no answer in time"
        stub.answer = answered(200, CHANNEL)
        assert outcome(made) == "circuit breaker open after 5 consecutive failures; last: no answer in time"
        clock += circuit_breaker.FIRST_PAUSE_SECONDS
        assert outcome(made) == ""
        assert outcome(made) == ""
    assert len(stub.lines) == circuit_breaker.FAILURES + 2


def test_nothing_is_told_of_a_request_that_was_not_made(stub: Stub) -> None:
    """The timeline shows what was asked; a step says why it asked nothing."""
    stub.answer = answered(500)
    budget = RequestBudget()
    with asterisk(stub.url, breaker=circuit_breaker.CircuitBreaker()) as made:
        for _ in range(circuit_breaker.FAILURES + 3):
            with pytest.raises(errors.AsteriskUnreachable):
                ari.Ari(made, budget).channel("1.1")
    assert len(budget.requests) == circuit_breaker.FAILURES


def outcome(made: rest.RestClient) -> str:
    try:
        ari.Ari(made, RequestBudget()).channel("1.1")
    except errors.PipelineError as exc:
        return str(exc)
    return ""


def until(holds: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_connections_are_kept_and_reused(client: ari.Ari, stub: Stub) -> None:
    for _ in range(3):
        client.answer("1.1")
    assert len(set(stub.peers)) == 1


def test_a_connection_idle_for_long_is_not_used_again(
    client: ari.Ari, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_pool, "IDLE_SECONDS", 0.0)
    client.answer("1.1")
    client.answer("1.1")
    assert len(set(stub.peers)) == 2


@pytest.mark.parametrize("warm", [False, True])
def test_a_post_is_never_sent_twice(client: ari.Ari, stub: Stub, budget: RequestBudget, *, warm: bool) -> None:
    """A second externalMedia with the same channel id crashes an Asterisk."""
    if warm:
        client.answer("1.1")
    stub.lines.clear()
    budget.requests.clear()
    stub.answer = closing
    with pytest.raises(errors.AsteriskUnreachable, match="connection failed") as caught:
        client.create_media("m1", client="media", parameters={})
    assert caught.value.may_have_acted
    assert len(stub.lines) == 1
    assert len(budget.requests) == 1


def test_a_refused_connection_did_nothing(budget: RequestBudget) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        asterisk(f"http://127.0.0.1:{port}") as made,
        pytest.raises(errors.AsteriskUnreachable, match="connection refused") as caught,
    ):
        ari.Ari(made, budget).answer("1.1")
    assert not caught.value.may_have_acted
    assert [request.answer for request in budget.requests] == ["connection refused"]


@pytest.mark.parametrize(
    "answer", [closing, silent, answered(500, {"message": "x"}), answered(400, None), answered(200, b"<")]
)
def test_no_error_shows_the_password(stub: Stub, budget: RequestBudget, answer: Answer) -> None:
    stub.answer = answer
    with asterisk(stub.url, read=0.2) as made:
        assert "hunter2" not in repr(made.target)
        with pytest.raises(errors.PipelineError) as caught:
            ari.Ari(made, budget).channel("1.1")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(budget.requests)
    assert "hunter2" not in shown
    assert "dXNlcjpodW50ZXIy" not in shown


@pytest.mark.parametrize("url", ["http://name.invalid", "https://127.0.0.1:1"])
def test_what_cannot_be_reached_is_unreachable(url: str, budget: RequestBudget) -> None:
    with asterisk(url) as made, pytest.raises(errors.AsteriskUnreachable):
        ari.Ari(made, budget).channel("1.1")


def test_tls_with_something_else_is_unreachable(stub: Stub, budget: RequestBudget) -> None:
    with asterisk(stub.url.replace("http", "https")) as made, pytest.raises(errors.AsteriskUnreachable, match="TLS"):
        ari.Ari(made, budget).channel("1.1")
