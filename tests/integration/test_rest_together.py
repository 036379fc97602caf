"""Several requests at the same time from one thread: what is written before what, and what one failure spoils."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared import errors
from shared.asterisk import address_guard, ari, ari_requests, circuit_breaker, http_pool, rest, tcp_connector
from shared.asterisk.endpoint import Configuration
from tests import stub_asterisk
from tests.stub_asterisk import Answer, Handler, RequestBudget, Stub, answered, asterisk, closing, silent

GOOD = answered(200, {"id": "b", "channels": []})


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_asterisk.serving() as made:
        yield made


def bridges(*names: str) -> list[rest.Request[Any]]:
    return [ari_requests.bridge(name) for name in names]


def by_name(**answers: Answer) -> Answer:
    """Answer each request by the last segment of its path; what is not named is good."""

    def answer(handler: Handler) -> None:
        answers.get(handler.path.rpartition("/")[2], GOOD)(handler)

    return answer


def all_at_once(count: int) -> Answer:
    """Answer no request before so many have arrived."""
    arrived = threading.Barrier(count)

    def answer(handler: Handler) -> None:
        arrived.wait(5)
        GOOD(handler)

    return answer


def raw(data: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(data)

    return answer


# ── written, then read ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_request_is_written_before_an_answer_is_read(stub: Stub) -> None:
    stub.answer = all_at_once(4)
    budget = RequestBudget()
    with asterisk(stub.url) as made:
        results = ari.Ari(made, budget).together(*bridges("1", "2", "3", "4"))
        assert all(isinstance(result, ari_requests.Bridge) for result in results)
        assert len(set(stub.peers)) == 4
        # The connections are kept, and used again.
        stub.answer = all_at_once(4)
        ari.Ari(made, budget).together(*bridges("1", "2", "3", "4"))
        assert len(set(stub.peers)) == 4
    assert [record.what for record in budget.requests] == [f"GET /bridges/{n}" for n in (1, 2, 3, 4)] * 2


def test_results_come_in_the_order_of_the_requests(stub: Stub) -> None:
    stub.answer = by_name(
        first=answered(200, {"id": "first"}), second=answered(404, {"message": "Bridge not found"}),
        third=answered(200, {"id": "third"}), fourth=answered(400, {"message": "x"}),
    )  # fmt: skip
    with asterisk(stub.url) as made:
        first, second, third, fourth = ari.Ari(made, RequestBudget()).together(
            *bridges("first", "second", "third", "fourth")
        )
    assert (first, third) == tuple(ari_requests.Bridge(id=name, channels=frozenset()) for name in ("first", "third"))
    assert second is None
    assert isinstance(fourth, errors.AsteriskRefused)


def test_no_request_starts_a_thread(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    starters: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        starters.append(threading.current_thread())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    with asterisk(stub.url) as made:
        ari.Ari(made, RequestBudget()).together(*bridges("1", "2", "3"))
    # The stub has a thread for each connection.
    assert starters
    assert threading.current_thread() not in starters


def test_a_request_is_one_write() -> None:
    """Head and body in one segment: Asterisk has nothing to wait for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        received: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with asterisk(f"http://127.0.0.1:{server.getsockname()[1]}") as made:
            ari.Ari(made, RequestBudget()).set_event_filter(["Dial"])
        thread.join()
        port = server.getsockname()[1]
    body = b'{"allowed": [{"type": "Dial"}]}'
    head = (
        f"PUT /ari/applications/voiceai/eventFilter HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept-Encoding: identity\r\n"
        "Authorization: Basic dXNlcjpodW50ZXIyICYgIyAlICsgOiA9\r\nAccept: application/json\r\n"
        f"User-Agent: ari-pipeline\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert received == [head.encode() + body]


# ── one fails ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("position", ["1", "2", "3"])
@pytest.mark.parametrize(
    ("answer", "said", "may_have_acted"),
    [
        (closing, "connection failed: ConnectionResetError", True),
        (silent, "no answer in time", True),
        (answered(500, {"message": "x"}), "answered 500 x", True),
        (answered(401), "answered 401", False),
    ],
    ids=["closed", "silent", "500", "401"],
)
def test_a_failure_spoils_no_other_request(
    stub: Stub, position: str, answer: Answer, said: str, *, may_have_acted: bool
) -> None:
    stub.answer = by_name(**{position: answer})
    budget = RequestBudget()
    with asterisk(stub.url, read=0.3, at_once=3) as made:
        results = dict(zip("123", ari.Ari(made, budget).together(*bridges(*"123")), strict=True))
        failure = results.pop(position)
        assert isinstance(failure, errors.AsteriskUnreachable)
        assert (str(failure), failure.may_have_acted) == (said, may_have_acted)
        assert all(isinstance(result, ari_requests.Bridge) for result in results.values())
        assert [record.answer for record in budget.requests] == [said if n == position else "200" for n in "123"]
        # Every permit is back, and no connection has the answer of another request.
        stub.answer = all_at_once(3)
        again = ari.Ari(made, RequestBudget()).together(*bridges(*"123"))
        assert all(isinstance(result, ari_requests.Bridge) for result in again)
    assert sorted(stub.lines) == sorted([f"GET /ari/bridges/{n}" for n in "123"] * 2)


class Flaky(tcp_connector.TcpConnector):
    """Fails to connect at some of the tries."""

    def __init__(self, *fail: int, reason: errors.AsteriskUnreachable) -> None:
        super().__init__(address_guard.AddressGuard())
        self._fail = fail
        self._reason = reason
        self.tries = 0

    def connect(self, host: str, port: int, *, seconds: float) -> socket.socket:
        self.tries += 1
        if self.tries in self._fail:
            raise self._reason
        return super().connect(host, port, seconds=seconds)


def flaky_client(url: str, connector: tcp_connector.TcpConnector, *, read: float = 1.0) -> rest.RestClient:
    return rest.RestClient(
        Configuration(endpoint=url, app="voiceai", user="user", password="secret"),
        requests_at_once=10,
        connect_seconds=1.0,
        read_seconds=read,
        connector=connector,
        breaker=circuit_breaker.AlwaysClosed(),
    )


@pytest.mark.parametrize("fail", [1, 2, 3])
def test_a_connection_that_fails_keeps_no_other_request_from_being_sent(stub: Stub, fail: int) -> None:
    stub.answer = GOOD
    reason = errors.AsteriskUnreachable("connection refused", may_have_acted=False)
    made = flaky_client(stub.url, Flaky(fail, reason=reason))
    results = ari.Ari(made, RequestBudget()).together(*bridges(*"123"))
    made.close()
    assert results[fail - 1] is reason
    assert len(stub.lines) == 2
    assert sum(isinstance(result, ari_requests.Bridge) for result in results) == 2


def test_a_refused_endpoint_is_told_as_such(stub: Stub) -> None:
    reason = errors.EndpointRefused("resolves to 169.254.169.254")
    made = flaky_client(stub.url, Flaky(1, 2, reason=reason))
    assert ari.Ari(made, RequestBudget()).together(*bridges("1", "2")) == [reason, reason]
    made.close()
    assert stub.lines == []


def test_a_connection_closed_while_idle_is_not_used(stub: Stub) -> None:
    def then_close(handler: Handler) -> None:
        GOOD(handler)
        handler.close_connection = True

    stub.answer = then_close
    with asterisk(stub.url) as made:
        ari.Ari(made, RequestBudget()).together(*bridges(*"123"))
        deadline = time.monotonic() + 5
        while any(thread.name.startswith("Thread") and "process_request" in thread.name for thread in
                  threading.enumerate()):  # fmt: skip
            assert time.monotonic() < deadline
            time.sleep(0.005)
        stub.answer = GOOD
        results = ari.Ari(made, RequestBudget()).together(*bridges(*"123"))
    assert all(isinstance(result, ari_requests.Bridge) for result in results)
    assert len(set(stub.peers)) == 6


def test_a_connection_whose_answer_was_not_read_is_closed(stub: Stub) -> None:
    """The next request would get that answer."""

    class Broken(RequestBudget):
        def record_request(self, request: rest.RequestRecord) -> None:
            raise RuntimeError("a mistake")

    stub.answer = by_name(second=answered(200, {"id": "second"}), third=answered(200, {"id": "third"}))
    with asterisk(stub.url, at_once=2) as made:
        with pytest.raises(RuntimeError):
            ari.Ari(made, Broken()).together(*bridges("first", "second"))
        for _ in range(2):
            (third, other) = ari.Ari(made, RequestBudget()).together(*bridges("third", "other"))
            assert (third, other) == tuple(
                ari_requests.Bridge(id=name, channels=frozenset()) for name in ("third", "b")
            )


def test_what_follows_an_answer_unasked_is_not_taken_for_the_next(stub: Stub) -> None:
    good, bad = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"id": "b"}', b"HTTP/1.1 204 No Content\r\n\r\n"
    stub.answer = raw(good + bad)
    with asterisk(stub.url) as made:
        for _ in range(5):
            assert ari.Ari(made, RequestBudget()).bridge("1") is not None


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_answers_of_a_round_share_one_time(stub: Stub) -> None:
    stub.answer = silent
    with asterisk(stub.url, read=0.4) as made:
        started = time.monotonic()
        results = ari.Ari(made, RequestBudget()).together(*bridges(*"12345"))
        assert time.monotonic() - started < 1.5
    assert [str(result) for result in results] == ["no answer in time"] * 5


def test_an_answer_in_time_is_read_though_another_takes_all_of_it(stub: Stub) -> None:
    stub.answer = by_name(first=silent)
    with asterisk(stub.url, read=0.3) as made:
        first, second = ari.Ari(made, RequestBudget()).together(*bridges("first", "second"))
    assert str(first) == "no answer in time"
    assert isinstance(second, ari_requests.Bridge)


def test_an_answer_that_keeps_coming_ends_in_time(stub: Stub) -> None:
    def flooding(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        while not handler.stub.stopping.is_set():
            handler.wfile.write(b" ")

    stub.answer = flooding
    with asterisk(stub.url, read=0.3, bounds=rest.AnswerBounds(bytes={rest.AnswerKind.ONE: 20_000_000})) as made:
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable, match="no answer in time"):
            ari.Ari(made, RequestBudget()).bridge("1")
        assert time.monotonic() - started < 2.0


def test_connections_that_take_too_long_share_one_time() -> None:
    """A full backlog says nothing: as a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with asterisk(f"http://127.0.0.1:{port}", connect=0.4) as made:
            started = time.monotonic()
            results = ari.Ari(made, RequestBudget()).together(*bridges(*"12345"))
            assert time.monotonic() - started < 1.5
        for one in held:
            one.close()
    assert [str(result) for result in results] == ["connecting took too long"] * 5
    assert not any(isinstance(result, errors.AsteriskUnreachable) and result.may_have_acted for result in results)


def test_only_so_many_requests_of_a_round_are_in_flight(stub: Stub) -> None:
    lock, flying, most = threading.Lock(), 0, 0

    def answer(handler: Handler) -> None:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.02)
        with lock:
            flying -= 1
        GOOD(handler)

    stub.answer = answer
    with asterisk(stub.url, at_once=2) as made:
        results = ari.Ari(made, RequestBudget()).together(*bridges(*"12345"))
    assert all(isinstance(result, ari_requests.Bridge) for result in results)
    assert most == 2


def test_steps_that_want_more_than_there_are_do_not_wait_for_each_other(stub: Stub) -> None:
    stub.answer = GOOD
    results: list[object] = []
    with asterisk(stub.url, at_once=3, connect=5.0) as made:

        def step() -> None:
            for _ in range(10):
                results.extend(ari.Ari(made, RequestBudget()).together(*bridges(*"12345")))

        threads = [threading.Thread(target=step) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 200
    assert all(isinstance(result, ari_requests.Bridge) for result in results)


def test_a_round_without_a_permit_was_not_sent(stub: Stub) -> None:
    stub.answer = silent
    with asterisk(stub.url, connect=0.2, read=1.0, at_once=2) as made:
        busy = threading.Thread(target=lambda: ari.Ari(made, RequestBudget()).together(*bridges("1", "2")))
        busy.start()
        until(lambda: len(stub.lines) == 2)
        results = ari.Ari(made, RequestBudget()).together(*bridges("3", "4"))
        stub.stopping.set()
        busy.join()
    for result in results:
        assert isinstance(result, errors.AsteriskUnreachable)
        assert str(result) == "too many requests in flight to this Asterisk"
        assert not result.may_have_acted
    assert len(stub.lines) == 2


def test_a_step_out_of_time_sends_nothing(stub: Stub) -> None:
    with asterisk(stub.url) as made:
        results = ari.Ari(made, RequestBudget(0)).together(*bridges("1", "2"))
    assert [str(result) for result in results] == ["out of time"] * 2
    assert stub.lines == []


def test_a_round_of_no_requests_is_none(stub: Stub) -> None:
    with asterisk(stub.url) as made:
        assert ari.Ari(made, RequestBudget()).together() == []
    assert stub.peers == []


# ── the circuit breaker ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_request_of_a_round_counts_for_the_breaker(stub: Stub) -> None:
    clock = 100.0
    stub.answer = answered(503)
    with asterisk(stub.url, breaker=circuit_breaker.CircuitBreaker(clock=lambda: clock)) as made:
        ari.Ari(made, RequestBudget()).together(*bridges(*"12345"))
        budget = RequestBudget()
        results = ari.Ari(made, budget).together(*bridges(*"12"))
        assert all(str(result).startswith("circuit breaker open after 5") for result in results)
        assert len(stub.lines) == 5
        assert budget.requests == []
        # The probing step sends all of its round.
        clock += circuit_breaker.FIRST_PAUSE_SECONDS
        stub.answer = all_at_once(2)
        assert None not in ari.Ari(made, budget).together(*bridges(*"12"))
        stub.answer = GOOD
        assert ari.Ari(made, RequestBudget()).bridge("3") is not None


def test_only_the_probing_step_sends_while_the_breaker_is_half_open(stub: Stub) -> None:
    breaker = circuit_breaker.CircuitBreaker(clock=lambda: clock)
    clock = 100.0
    open_breaker(breaker)
    said: list[str] = []
    with asterisk(stub.url, breaker=breaker) as made:

        def answer(handler: Handler) -> None:
            (result,) = ari.Ari(made, RequestBudget()).together(*bridges("other"))
            said.append(str(result))
            GOOD(handler)

        stub.answer = answer
        clock += circuit_breaker.FIRST_PAUSE_SECONDS
        (probe,) = ari.Ari(made, RequestBudget()).together(*bridges("1"))
    assert isinstance(probe, ari_requests.Bridge)
    assert [text.partition(" after")[0] for text in said] == ["circuit breaker open"]


def test_an_open_breaker_is_told_without_waiting_for_a_permit(stub: Stub) -> None:
    breaker = circuit_breaker.CircuitBreaker()
    stub.answer = silent
    with asterisk(stub.url, connect=0.2, at_once=1, breaker=breaker) as made:
        busy = threading.Thread(target=lambda: ari.Ari(made, RequestBudget()).together(*bridges("1")))
        busy.start()
        until(lambda: len(stub.lines) == 1)
        open_breaker(breaker)
        (result,) = ari.Ari(made, RequestBudget()).together(*bridges("2"))
        stub.stopping.set()
        busy.join()
    assert str(result).startswith("circuit breaker open")


def open_breaker(breaker: circuit_breaker.CircuitBreaker) -> None:
    for _ in range(circuit_breaker.FAILURES):
        breaker.unanswered(object(), "no answer in time")


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "connections"),
    [
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"id": "\r\n3;x\r\nb"}\r\n0\r\nX: y\r\n\r\n', 1),
        (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"id": "b"}', 1),
        (b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{"id": "b"}', 3),
        (b'HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\n{"id": "b"}', 3),
    ],
    ids=["chunked by a proxy", "interim", "closing", "1.0"],
)
def test_answers_of_every_form_are_read(stub: Stub, data: bytes, connections: int) -> None:
    stub.answer = raw(data)
    with asterisk(stub.url) as made:
        for _ in range(3):
            assert ari.Ari(made, RequestBudget()).bridge("b") == ari_requests.Bridge(id="b", channels=frozenset())
    assert len(set(stub.peers)) == connections


@pytest.mark.parametrize("seconds", [0.02, 0.0])
def test_the_time_out_of_a_socket_follows_the_time_that_is_left(
    stub: Stub, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short time of one step must not cut short another's answer on the same connection, nor a long one last."""
    monkeypatch.setattr(http_pool, "_SLACK_SECONDS", seconds)
    with asterisk(stub.url, read=3.0) as made:
        stub.answer = GOOD
        assert ari.Ari(made, RequestBudget(0.3)).bridge("b")

        def late(handler: Handler) -> None:
            time.sleep(0.6)
            GOOD(handler)

        stub.answer = late
        assert ari.Ari(made, RequestBudget()).bridge("b")
        stub.answer = silent
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable, match="no answer in time"):
            ari.Ari(made, RequestBudget(0.2)).bridge("b")
        assert time.monotonic() - started < 2.0
    assert len(set(stub.peers)) == 1


def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
