"""Requests and event sockets over TLS, against every certificate a PBX owner may have: trusted, or refused and why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from listener import websocket
from listener.backoff import Cause
from listener.websocket import SocketBroken
from shared import errors
from shared.asterisk import address_guard, ari, ari_requests, circuit_breaker, rest, tcp_connector, tls
from shared.asterisk.endpoint import Configuration
from simulator.testing import SimulatedAsterisk
from tests import certificates
from tests.certificates import Issued, Proxy
from tests.support import event_streams

PASSWORD = "pass word & # % + : ="

AUTHORITY = certificates.issue("private authority", authority=True)
BETWEEN = certificates.issue("intermediate authority", AUTHORITY, authority=True)
STRANGER = certificates.issue("another authority", authority=True)
GOOD = certificates.issue("pbx", AUTHORITY, hosts=certificates.LOOPBACK)
BELOW = certificates.issue("pbx", BETWEEN, hosts=certificates.LOOPBACK)
ALONE = certificates.issue("pbx", hosts=certificates.LOOPBACK)
OLD_AUTHORITY = certificates.issue("old authority", authority=True, starts_days=-20, ends_days=-1)

#: What the Asterisk shows, whom we trust, the host in the endpoint.
TRUSTED = {
    "a private authority": (GOOD, AUTHORITY.pem, "localhost"),
    "an address": (GOOD, AUTHORITY.pem, "127.0.0.1"),
    "self-signed": (ALONE, ALONE.pem, "localhost"),
    "an intermediate that is sent along": (BELOW, AUTHORITY.pem, "localhost"),
    "an intermediate that alone is trusted": (BELOW, BETWEEN.pem, "localhost"),
    "the Asterisk's own certificate alone": (GOOD, GOOD.pem, "localhost"),
    "a host name as older tools write it": (certificates.issue("localhost", AUTHORITY), AUTHORITY.pem, "localhost"),
    "two authorities": (GOOD, STRANGER.pem + AUTHORITY.pem, "localhost"),
}
#: The same, and the words.
REFUSED = {
    "private, no bundle": (GOOD, None, "localhost", "not signed by an authority of this system.*CA bundle"),
    "self-signed, no bundle": (ALONE, None, "localhost", "not signed by an authority of this system.*CA bundle"),
    "another authority": (GOOD, STRANGER.pem, "localhost", "not signed by a certificate of the CA bundle"),
    "another self-signed": (
        certificates.issue("pbx", hosts=certificates.LOOPBACK),
        ALONE.pem,
        "localhost",
        "not signed by a certificate of the CA bundle",
    ),
    "another host name": (
        certificates.issue("localhost", AUTHORITY, hosts=("pbx.example",)),
        AUTHORITY.pem,
        "localhost",
        "another host name",
    ),
    "another address": (
        certificates.issue("127.0.0.1", AUTHORITY, hosts=("localhost",)),
        AUTHORITY.pem,
        "127.0.0.1",
        "another address",
    ),
    "expired": (
        certificates.issue("pbx", AUTHORITY, hosts=certificates.LOOPBACK, starts_days=-20, ends_days=-1),
        AUTHORITY.pem,
        "localhost",
        "expired",
    ),
    "not valid yet": (
        certificates.issue("pbx", AUTHORITY, hosts=certificates.LOOPBACK, starts_days=2),
        AUTHORITY.pem,
        "localhost",
        "not valid yet",
    ),
    "an expired authority": (
        certificates.issue("pbx", OLD_AUTHORITY, hosts=certificates.LOOPBACK),
        OLD_AUTHORITY.pem,
        "localhost",
        "expired",
    ),
}


class RequestBudget:
    """Lets every request through, and remembers what was answered."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def seconds_left(self) -> float:
        return 5.0

    def record_request(self, request: rest.RequestRecord) -> None:
        self.answers.append(request.answer)


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedAsterisk]:
    with SimulatedAsterisk(users={"voiceai": PASSWORD}, path_prefix="/a/prefix") as made:
        yield made


@contextlib.contextmanager
def client(endpoint: str, bundle: str | None) -> Iterator[rest.RestClient]:
    configuration = Configuration(endpoint=endpoint, app="voiceai", user="voiceai", password=PASSWORD, ca_bundle=bundle)
    made = rest.RestClient(
        configuration,
        requests_at_once=3,
        connect_seconds=2,
        read_seconds=3,
        connector=tcp_connector.TcpConnector(address_guard.AddressGuard()),
        breaker=circuit_breaker.AlwaysClosed(),
    )
    try:
        yield made
    finally:
        made.close()


def request(endpoint: str, bundle: str | None) -> None:
    """A request over a connection that is kept, and another one over it."""
    with client(endpoint, bundle) as asterisk:
        for _ in range(2):
            assert ari.Ari(asterisk, RequestBudget()).bridges() == []


def open_socket(endpoint: str, bundle: str | None) -> None:
    """An event socket, opened and closed."""

    async def scene() -> None:
        header = websocket.authorization("voiceai", PASSWORD)
        url = websocket.socket_url(endpoint, "voiceai")
        stream = await event_streams.connect(url, header, bundle, rule=address_guard.AddressGuard())
        await stream.close()

    asyncio.run(asyncio.wait_for(scene(), 10))


Way = Callable[[str, str | None], None]
WAYS: list[Any] = [pytest.param(request, id="request"), pytest.param(open_socket, id="socket")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", TRUSTED)
def test_who_is_in_the_bundle_is_trusted(simulated: SimulatedAsterisk, case: str, way: Way) -> None:
    shown, bundle, host = TRUSTED[case]
    with certificates.in_front_of(simulated.url, shown) as proxy:
        way(proxy.url(host), bundle)
        assert proxy.accepted == 1


def test_requests_at_the_same_time_have_a_connection_each(simulated: SimulatedAsterisk) -> None:
    with certificates.in_front_of(simulated.url, GOOD) as proxy, client(proxy.url(), AUTHORITY.pem) as asterisk:
        for _ in range(2):
            looks = [ari_requests.bridge(name) for name in ("1", "2", "3")]
            assert ari.Ari(asterisk, RequestBudget()).together(*looks) == [None, None, None]
        assert proxy.accepted == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", REFUSED)
def test_who_is_not_to_be_trusted_is_refused_in_plain_words(simulated: SimulatedAsterisk, case: str, way: Way) -> None:
    shown, bundle, host, words = REFUSED[case]
    with certificates.in_front_of(simulated.url, shown) as proxy:
        with pytest.raises((errors.AsteriskUnreachable, SocketBroken), match=words) as caught:
            way(proxy.url(host), bundle)
        assert PASSWORD not in str(caught.value)
        if isinstance(caught.value, errors.AsteriskUnreachable):
            assert not caught.value.may_have_acted


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_asterisk_behind_https_is_told_so(simulated: SimulatedAsterisk, way: Way) -> None:
    endpoint = simulated.url.replace("http:", "https:")
    with pytest.raises((errors.AsteriskUnreachable, SocketBroken), match="does not speak TLS: is the endpoint http://"):
        way(endpoint, AUTHORITY.pem)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_bundle_the_system_s_authorities_count(
    simulated: SimulatedAsterisk, way: Way, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "system.pem").write_text(AUTHORITY.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    tls.context.cache_clear()
    try:
        with certificates.in_front_of(simulated.url, GOOD) as proxy:
            way(proxy.url(), None)
            # A bundle is instead of the system's, not on top of it.
            with pytest.raises((errors.AsteriskUnreachable, SocketBroken), match="CA bundle"):
                way(proxy.url(), STRANGER.pem)
    finally:
        tls.context.cache_clear()


def test_a_context_is_made_once_and_stays_as_it_was_made(simulated: SimulatedAsterisk) -> None:
    with certificates.in_front_of(simulated.url, GOOD) as proxy:
        made = tls.context(AUTHORITY.pem)
        for way in (request, open_socket):
            way(proxy.url(), AUTHORITY.pem)
    assert tls.context(AUTHORITY.pem) is made
    # The libraries have added no other authorities.
    assert made.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    assert made.check_hostname
    assert tls.context(None) is not made


def test_a_connection_that_is_cut_after_the_request_may_have_acted(simulated: SimulatedAsterisk) -> None:
    with certificates.in_front_of(simulated.url, GOOD) as proxy:
        proxy.cuts = True
        with pytest.raises(errors.AsteriskUnreachable) as caught:
            request(proxy.url(), AUTHORITY.pem)
    assert caught.value.may_have_acted


def test_a_renewed_certificate_of_the_same_authority_needs_no_change(simulated: SimulatedAsterisk) -> None:
    with certificates.in_front_of(simulated.url, GOOD) as proxy:
        for shown in (GOOD, certificates.issue("pbx", AUTHORITY, hosts=certificates.LOOPBACK)):
            proxy.show(shown)
            request(proxy.url(), AUTHORITY.pem)
            open_socket(proxy.url(), AUTHORITY.pem)


@pytest.mark.parametrize("damage", [lambda pem: pem[:36] + "AAAA" + pem[40:], lambda _: Issued.__name__])
def test_what_is_no_certificate_is_refused(damage: Callable[[str], str]) -> None:
    with pytest.raises(errors.InvalidConfiguration, match="cannot be read"):
        tls.check(damage(AUTHORITY.pem))
    tls.check(None)
    tls.check(AUTHORITY.pem)


def test_a_bundle_that_cannot_be_read_is_a_lasting_fault_of_the_socket() -> None:
    with pytest.raises(SocketBroken, match="cannot be read") as caught:
        open_socket("https://localhost:1", "no certificate")
    assert caught.value.cause is Cause.PERMANENT


def test_the_proxy_is_what_is_talked_to(simulated: SimulatedAsterisk) -> None:
    with Proxy(simulated.url, GOOD) as proxy:
        assert proxy.url().startswith("https://localhost:")
        assert proxy.url().endswith("/a/prefix")
