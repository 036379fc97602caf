"""A REST client: bounds, circuit breaker, connections, and errors without the password."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

from shared import errors
from shared.asterisk import ari, ari_requests, circuit_breaker, http_pool, rest, tcp_connector
from tests import stub_asterisk
from tests.stub_asterisk import CHANNEL, Answer, Handler, RequestBudget, Stub, answered, asterisk, closing, silent


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_asterisk.serving() as made:
        yield made


@pytest.fixture
def budget() -> RequestBudget:
    return RequestBudget()


@pytest.fixture
def client(stub: Stub, budget: RequestBudget) -> Iterator[ari.Ari]:
    with asterisk(stub.url) as made:
        yield ari.Ari(made, budget)


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def dripping(first: bytes) -> Answer:
    """Sends one byte after the other, each well within the time-out of a single read."""

    def answer(handler: Handler) -> None:
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


def test_that_requests_are_denied_is_told_now_and_then(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with asterisk(stub.url, on_denied=told.append) as made:
        client = ari.Ari(made, RequestBudget())
        for status, message in ((404, "Channel not found"), (401, "x"), (403, "Write access denied"), (403, "again")):
            stub.answer = answered(status, {"message": message})
            client.together(ari_requests.answer("1.1"))
        assert told == ["403 Write access denied"]
        monkeypatch.setattr(rest, "DENIED_SECONDS", 0.0)
        client.together(ari_requests.hang_up("1.1"))
    assert told == ["403 Write access denied", "403 again"]


def test_no_request_starts_after_the_step_s_time(client: ari.Ari, stub: Stub, budget: RequestBudget) -> None:
    budget.seconds = 0
    with pytest.raises(errors.TransientError, match="out of time"):
        client.answer("1.1")
    assert stub.lines == []


def test_an_answer_too_large_for_its_kind_is_refused(stub: Stub) -> None:
    """What grows with the number of calls may be larger than what is said about one."""
    # On a busy machine they would cost more than their share of its processor.
    with asterisk(stub.url, bounds=rest.AnswerBounds(processor_share=1.0)) as made:
        client = ari.Ari(made, RequestBudget())
        largest = rest.AnswerBounds().bytes
        stub.answer = answered(200, CHANNEL | {"padding": "x" * largest[rest.AnswerKind.ONE]})
        with pytest.raises(errors.AsteriskUnreachable, match="too large"):
            client.channel("1.1")
        stub.answer = answered(200, {"channel_ids": [f"1764404335.{number}" for number in range(10_000)]})
        application = client.application()
        assert application is not None
        assert len(application.channels) == 10_000
        stub.answer = answered(200, {"channel_ids": [], "padding": "x" * largest[rest.AnswerKind.APP]})
        with pytest.raises(errors.AsteriskUnreachable, match="too large"):
            client.application()
        bridges = [{"id": f"b{number}", "channels": [], "padding": "x" * 250} for number in range(6000)]
        stub.answer = answered(200, bridges)
        assert [bridge.id for bridge in client.bridges()] == [bridge["id"] for bridge in bridges]
        stub.answer = answered(200, bridges + bridges)
        with pytest.raises(errors.AsteriskUnreachable, match="too large"):
            client.bridges()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[" + b",".join([b"[]"] * 300_000) + b"]", "too many values"),
        (b"[" + b",".join([b'"a"'] * 300_000) + b"]", "too many values"),
        (b"[" + b",".join([b'"aaaaaaaaaaaaa"'] * 100_000) + b"]", "too many entries"),
        (b'[{"id": "' + b"x" * 1_000_000 + b'"}]', "not JSON"),
        (b"[" * 300_000, "too many values"),
        (b"[" * 4_000, "nested too deeply"),
        (b'[{"a": "' + b" " * 60_000 + b'", "b": ' + b"[" * 4_000, "nested too deeply"),
    ],
    ids=["empty lists", "short texts", "short entries", "a long entry", "deep", "deep and small", "deep and sparse"],
)
def test_an_answer_that_is_costly_to_parse_is_refused(client: ari.Ari, stub: Stub, body: bytes, complaint: str) -> None:
    stub.answer = answered(200, body)
    with pytest.raises(errors.AsteriskUnreachable, match=complaint):
        client.bridges()


def test_who_gives_costly_answers_waits_and_is_then_not_asked(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that waits for so long makes its tenant slow to the broker, so that others keep their threads."""
    used = iter(range(100))
    monkeypatch.setattr(time, "thread_time", lambda: next(used) * 0.3)
    stub.answer = answered(200, CHANNEL)
    with asterisk(stub.url, connect=0.6, bounds=rest.AnswerBounds(processor_share=0.1)) as made:
        there = ari.Ari(made, RequestBudget())
        assert there.channel("1.1")
        # 0.3 s are used, 0.25 may be at once: what is above that is paid for in half a second.
        started = time.monotonic()
        assert there.channel("1.1")
        assert 0.4 < time.monotonic() - started < 1.0
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable, match="too much processor time") as caught:
            there.channel("1.1")
        assert not caught.value.may_have_acted
        assert time.monotonic() - started < 0.2
        assert len(stub.lines) == 2


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


def test_a_step_that_is_out_of_time_once_it_is_connected_sends_nothing(
    stub: Stub, budget: RequestBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process stood still while it connected."""
    connect = tcp_connector.TcpConnector.connect

    def stand_still(connector: tcp_connector.TcpConnector, host: str, port: int, *, seconds: float) -> socket.socket:
        budget.seconds = 0
        return connect(connector, host, port, seconds=seconds)

    monkeypatch.setattr(tcp_connector.TcpConnector, "connect", stand_still)
    with asterisk(stub.url) as made:
        assert [str(each) for each in ari.Ari(made, budget).together(ari_requests.bridge("1"))] == ["out of time"]
    assert stub.lines == []


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
        client.ask(ari_requests.create_media("m1", app="voiceai", client="media", parameters={}, args=""))
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
        assert "hunter2" not in repr(made.configuration)
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
