"""Sockets that are no longer needed: closed soon, whether their Asterisk is asked again or not."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from structlog import testing

from shared.asterisk import address_guard, ari_requests, http_pool, rest, tcp_connector
from shared.call.ids import ConnectionVersion
from shared.call.limits import Limits
from shared.process import open_files
from shared.storage.connections import ConnectionDetails
from tests import stub_asterisk
from tests.stub_asterisk import RequestBudget, Stub
from workers import asterisks


class Connector(tcp_connector.TcpConnector):
    """Remembers the sockets that it opened."""

    def __init__(self) -> None:
        super().__init__(address_guard.AddressGuard())
        self.made: list[socket.socket] = []
        #: The most that were open at the same time.
        self.most_open = 0

    def connect(self, host: str, port: int, *, seconds: float) -> socket.socket:
        connected = super().connect(host, port, seconds=seconds)
        self.made.append(connected)
        self.most_open = max(self.most_open, self.open)
        return connected

    @property
    def open(self) -> int:
        return sum(made.fileno() >= 0 for made in self.made)


class Connections:
    """Knows each stub as a connection."""

    def __init__(self, stubs: list[Stub]) -> None:
        self.urls = [stub.url for stub in stubs]

    def details(self, connection: ConnectionVersion) -> ConnectionDetails:
        return ConnectionDetails(
            connection=connection, organization_id=1, endpoint=self.urls[connection.connection_id],
            app="voiceai", user="user", sealed_password="", credentials_of=connection.number,
        )  # fmt: skip


class Sealer:
    def open(self, sealed: str) -> str:
        return sealed


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stub_asterisk.serving()) for _ in range(5)]


@pytest.fixture
def connector() -> Connector:
    return Connector()


@pytest.fixture
def known(
    stubs: list[Stub], connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> Iterator[asterisks.RestAsterisks]:
    monkeypatch.setattr(asterisks, "_SWEEP_SECONDS", 0.02)
    made = asterisks.RestAsterisks(
        Connections(stubs), Sealer(), Limits(), None, requests_at_once=10, connector=connector,  # type: ignore[arg-type]
        bounds=rest.AnswerBounds(), most_sessions=lambda: 60,
    )  # fmt: skip
    yield made
    made.close()


def ask(known: asterisks.RestAsterisks, number: int, *, at_once: int = 1) -> None:
    there = known.at(ConnectionVersion(number, 1), RequestBudget())
    there.together(*[ari_requests.answer("1.1")] * at_once)


def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


def test_an_asterisk_that_is_not_asked_again_keeps_no_socket(
    known: asterisks.RestAsterisks, connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        ask(known, number, at_once=4)
    assert connector.open == len(connector.made) == 20
    monkeypatch.setattr(http_pool, "IDLE_SECONDS", 0.1)
    until(lambda: connector.open == 0)


def test_the_sockets_of_a_burst_are_closed_while_one_is_used_on(
    stubs: list[Stub], connector: Connector, known: asterisks.RestAsterisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.close()
    monkeypatch.setattr(http_pool, "IDLE_SECONDS", 0.3)
    ask(known, 0, at_once=8)
    assert connector.open == 8

    def is_one_left() -> bool:
        ask(known, 0)
        return connector.open == 1

    until(is_one_left)
    assert len(connector.made) <= 9


def test_new_credentials_leave_no_socket_of_the_old_ones(
    stubs: list[Stub], connector: Connector, known: asterisks.RestAsterisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asterisks, "_FRESH_SECONDS", 0.0)
    there = Connections(stubs)
    known._connections = there  # type: ignore[assignment]
    ask(known, 0)
    held = known._clients[ConnectionVersion(0, 1)].client
    there.urls[0] = stubs[1].url
    ask(known, 0)
    assert held is not known._clients[ConnectionVersion(0, 1)].client
    assert connector.open == 1


def test_a_401_has_the_credentials_looked_up_again_at_once(stubs: list[Stub], known: asterisks.RestAsterisks) -> None:
    there = Connections(stubs)
    known._connections = there  # type: ignore[assignment]
    ask(known, 0)
    there.urls[0] = stubs[1].url
    ask(known, 0)
    assert stubs[1].lines == [], "what was looked up is used for a while"
    stubs[0].answer = stub_asterisk.answered(401)
    ask(known, 0)
    ask(known, 0)
    assert len(stubs[1].lines) == 1


def test_twenty_tenants_of_one_asterisk_have_its_sessions_together(
    stubs: list[Stub], connector: Connector, known: asterisks.RestAsterisks
) -> None:
    """Each of them alone may have ten: an Asterisk that allows a hundred would close the others' connections."""
    known._connections = Connections(stubs[:1] * 20)  # type: ignore[assignment]
    known._most_sessions = lambda: 6
    results: list[object] = []

    def work(number: int) -> None:
        for _ in range(5):
            there = known.at(ConnectionVersion(number, 1), RequestBudget())
            results.extend(there.together(*[ari_requests.answer("1.1")] * 3))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 300
    assert connector.most_open <= 6
    # A tenant at another port has another Asterisk.
    known._connections = Connections(stubs[:2] * 20)  # type: ignore[assignment]
    ask(known, 21, at_once=6)
    assert len(known._sessions) == 2


def test_the_versions_of_one_connection_are_one_tenant(known: asterisks.RestAsterisks) -> None:
    """A tenant that changes its configuration has no second share."""
    for number in (1, 2):
        known.at(ConnectionVersion(0, number), RequestBudget()).answer("1.1")
    (sessions,) = known._sessions.values()
    assert list(sessions._pools.values()) == [0, 0]


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with testing.capture_logs() as logs:
            open_files.raise_limit(300)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
            open_files.raise_limit(200)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
            assert logs == []
            open_files.raise_limit(hard + 1)
        assert logs == [{"event": "open file limit too low", "log_level": "warning", "limit": hard, "needed": hard + 1}]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
