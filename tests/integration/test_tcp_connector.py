"""Connections to endpoints whose names are rebound, hang, or resolve to forbidden addresses; real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from listener import websocket
from listener.backoff import Cause
from listener.websocket import SocketBroken
from shared import errors
from shared.asterisk import address_guard, ari, circuit_breaker, http_pool, rest, tcp_connector
from shared.asterisk.endpoint import Configuration
from simulator.testing import SimulatedAsterisk
from tests.support import event_streams

PASSWORD = "pass word & # % + : ="
METADATA = "169.254.169.254"
OPEN = address_guard.AddressGuard()


class Names:
    """A name server: gives each name the answers listed, one after the other, the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        #: A lookup waits for it.
        self.answering = threading.Event()
        self.answering.set()

    def __call__(self, host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        assert self.answering.wait(10)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, type, 0, "", (one, port, 0, 0))
            if ":" in one
            else (socket.AF_INET, type, 0, "", (one, port))
            for one in answer
        ]


class RequestBudget:
    def seconds_left(self) -> float:
        return 10.0

    def record_request(self, request: rest.RequestRecord) -> None:
        pass


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedAsterisk]:
    with SimulatedAsterisk(users={"voiceai": PASSWORD}) as made:
        yield made


def named(simulated: SimulatedAsterisk) -> str:
    """The simulator's endpoint by a name that only our name servers know."""
    return simulated.url.replace("127.0.0.1", "pbx.example")


@contextlib.contextmanager
def asterisk(endpoint: str, names: Names, rule: address_guard.AddressGuard = OPEN) -> Iterator[ari.Ari]:
    configuration = Configuration(endpoint=endpoint, app="voiceai", user="voiceai", password=PASSWORD)
    connector = tcp_connector.TcpConnector(rule, names)
    made = rest.RestClient(
        configuration,
        requests_at_once=4,
        connect_seconds=1.0,
        read_seconds=3.0,
        connector=connector,
        breaker=circuit_breaker.AlwaysClosed(),
    )
    try:
        yield ari.Ari(made, RequestBudget())
    finally:
        made.close()


async def opened(endpoint: str, names: Names, rule: address_guard.AddressGuard = OPEN) -> None:
    """An event socket, opened and closed."""
    url, header = websocket.socket_url(endpoint, "voiceai"), websocket.authorization("voiceai", PASSWORD)
    stream = await event_streams.connect(url, header, None, rule=rule, resolve=names)
    await stream.close()


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_changes_its_mind_leads_nowhere_else(
    simulated: SimulatedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first lookup is harmless, the second is not. Each connection has its own, and one only."""
    monkeypatch.setattr(http_pool, "IDLE_SECONDS", 0.0)
    names = Names(["127.0.0.1"], [METADATA])
    with asterisk(named(simulated), names) as there:
        assert there.bridges() == []
        assert len(names.asked) == 1
        with pytest.raises(
            errors.EndpointRefused, match=f"resolves to {METADATA}, a cloud's metadata service"
        ) as caught:
            there.bridges()
    assert not caught.value.may_have_acted
    assert len(names.asked) == 2


def test_a_kept_connection_needs_no_second_lookup(simulated: SimulatedAsterisk) -> None:
    names = Names(["127.0.0.1"], [METADATA])
    with asterisk(named(simulated), names) as there:
        there.bridges()
        there.bridges()
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [["127.0.0.1", METADATA], [METADATA, "127.0.0.1"], ["::ffff:169.254.169.254"], ["64:ff9b::a9fe:a9fe"], ["fe80::1"]],
)
def test_one_bad_address_among_good_ones_refuses_the_name(simulated: SimulatedAsterisk, answer: list[str]) -> None:
    before = len(simulated.control.requests())
    with asterisk(named(simulated), Names(answer)) as there, pytest.raises(errors.EndpointRefused):
        there.bridges()
    with pytest.raises(SocketBroken) as caught:
        asyncio.run(opened(named(simulated), Names(answer)))
    assert caught.value.cause is Cause.PERMANENT
    assert len(simulated.control.requests()) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "localhost"])
def test_a_strict_guard_knows_loopback_however_it_is_written(simulated: SimulatedAsterisk, host: str) -> None:
    endpoint = simulated.url.replace("127.0.0.1", host)
    strict = address_guard.AddressGuard(strict=True)
    configuration = Configuration(endpoint=endpoint, app="voiceai", user="voiceai", password=PASSWORD)
    made = rest.RestClient(
        configuration,
        requests_at_once=2,
        connect_seconds=1.0,
        read_seconds=3.0,
        connector=tcp_connector.TcpConnector(strict),
        breaker=circuit_breaker.AlwaysClosed(),
    )
    with contextlib.closing(made), pytest.raises(errors.EndpointRefused, match="loopback"):
        ari.Ari(made, RequestBudget()).bridges()


def test_the_first_address_that_answers_is_used(simulated: SimulatedAsterisk) -> None:
    names = Names(["127.0.0.2", "127.0.0.1"])
    with asterisk(named(simulated), names) as there:
        assert there.bridges() == []
    asyncio.run(opened(named(simulated), names))


def test_addresses_that_swallow_packets_are_bounded_in_sum() -> None:
    """A full backlog takes no further connection and says nothing: as a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as held:
        port = full.getsockname()[1]
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        connector = tcp_connector.TcpConnector(OPEN, Names(["127.0.0.1"] * 10))
        started = time.monotonic()
        with pytest.raises(errors.AsteriskUnreachable, match="connecting took too long") as caught:
            connector.connect("pbx.example", port, seconds=0.4)
        assert time.monotonic() - started < 1.0
    assert not caught.value.may_have_acted


def test_a_name_that_hangs_is_waited_for_in_bounded_time_and_by_one_thread() -> None:
    names = Names(["127.0.0.1"])
    names.answering.clear()
    connector = tcp_connector.TcpConnector(OPEN, names)
    try:
        for _ in range(3):
            with pytest.raises(errors.AsteriskUnreachable, match="resolving the host name took too long") as caught:
                connector.connect("pbx.example", 9, seconds=0.05)
            assert not caught.value.may_have_acted
        assert names.asked == ["pbx.example"]
    finally:
        names.answering.set()
    # Once it is through, the name is resolved again.
    deadline = time.monotonic() + 5
    while len(names.asked) < 2:
        assert time.monotonic() < deadline
        with pytest.raises(errors.AsteriskUnreachable):
            connector.connect("pbx.example", 9, seconds=1)


def test_names_that_hang_do_not_hold_up_others(simulated: SimulatedAsterisk) -> None:
    hanging, good = Names(["127.0.0.1"]), Names(["127.0.0.1"])
    hanging.answering.clear()

    def resolve(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        return (good if host == "pbx.example" else hanging)(host, port, type=type)

    connector = tcp_connector.TcpConnector(OPEN, resolve)
    try:
        for number in range(20):
            with pytest.raises(errors.AsteriskUnreachable):
                connector.connect(f"{number}.example", 9, seconds=0.01)
        connector.connect("pbx.example", simulated.port, seconds=2).close()
    finally:
        hanging.answering.set()


def test_an_unknown_name_is_an_error(simulated: SimulatedAsterisk) -> None:
    with (
        asterisk(named(simulated), Names([])) as there,
        pytest.raises(errors.AsteriskUnreachable, match="the host name is not found") as caught,
    ):
        there.bridges()
    assert not caught.value.may_have_acted


# ── event sockets ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_socket_is_opened_by_the_address_that_was_checked(simulated: SimulatedAsterisk) -> None:
    async def scene() -> None:
        names = Names(["127.0.0.1"], [METADATA])
        await opened(named(simulated), names)
        assert len(names.asked) == 1
        with pytest.raises(SocketBroken, match="a cloud's metadata service") as caught:
            await opened(named(simulated), names)
        assert caught.value.cause is Cause.PERMANENT

    asyncio.run(scene())


def test_an_event_socket_whose_name_hangs_is_given_up(
    simulated: SimulatedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_OPEN_SECONDS", 0.1)
    names = Names(["127.0.0.1"])
    names.answering.clear()

    async def scene() -> None:
        with pytest.raises(SocketBroken, match="no answer within") as caught:
            await opened(named(simulated), names)
        assert caught.value.cause is Cause.PASSING
        names.answering.set()

    asyncio.run(scene())


def test_an_event_socket_to_an_unknown_name_is_an_error(simulated: SimulatedAsterisk) -> None:
    for answer, words in (([], "the host name is not found"), (["127.0.0.2"], "connection refused")):
        with pytest.raises(SocketBroken, match=words) as caught:
            asyncio.run(opened(named(simulated), Names(answer)))
        assert caught.value.cause is Cause.PASSING
