"""Which names are looked up while name servers do not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared import errors
from shared.asterisk import address_guard
from shared.asterisk.name_lookups import NameLookups

DEAD = 600


class NameServers:
    """Answers for `good`, not for `missing`, and for every other name not before the test ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = threading.Event()

    def __call__(self, host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host == "missing.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if not host.startswith("good"):
            self.ended.wait(30)
        return [(socket.AF_INET, type, 0, "", ("192.0.2.1", port))]


@pytest.fixture
def servers() -> Iterator[NameServers]:
    made = NameServers()
    yield made
    made.ended.set()


def lookups(servers: NameServers, **options: Any) -> NameLookups:
    return NameLookups(address_guard.AddressGuard(), resolve=servers, **options)


def test_six_hundred_dead_names_hold_up_no_name_that_answered_before(servers: NameServers) -> None:
    tried = lookups(servers)
    assert tried.start("good.example", 8088).result(5)
    refused = 0
    for number in range(DEAD):
        try:
            tried.start(f"{number}.dead.example", 8088)
        except errors.AsteriskUnreachable:
            refused += 1
    assert refused == DEAD - 1024 // 4
    for _ in range(100):
        assert tried.start("good.example", 8088).result(5)


def test_a_name_that_answered_before_and_hangs_occupies_one_thread(servers: NameServers) -> None:
    tried = lookups(servers)
    assert len({tried.start("slow.example", 8088) for _ in range(50)}) == 1
    assert servers.asked == ["slow.example"]


def test_a_name_that_is_not_found_is_not_looked_up_again_at_once(servers: NameServers) -> None:
    now = [100.0]
    tried = lookups(servers, monotonic=lambda: now[0])
    for _ in range(3):
        with pytest.raises(errors.AsteriskUnreachable, match="the host name is not found"):
            tried.start("missing.example", 8088).result(5)
    assert servers.asked == ["missing.example"]
    now[0] += 11
    with pytest.raises(errors.AsteriskUnreachable, match="the host name is not found"):
        tried.start("missing.example", 8088).result(5)
    assert servers.asked == ["missing.example"] * 2


def test_a_name_that_was_slow_is_no_longer_one_that_answers(servers: NameServers) -> None:
    now = [100.0]
    tried = lookups(servers, threads=4, monotonic=lambda: now[0])
    running = tried.start("slow.example", 8088)
    now[0] += 5
    servers.ended.set()
    assert running.result(5)
    servers.ended.clear()
    tried.start("dead.example", 8088)
    with pytest.raises(errors.AsteriskUnreachable, match="too many host names"):
        tried.start("slow.example", 8088)


def test_an_address_needs_no_thread() -> None:
    assert NameLookups(address_guard.AddressGuard()).start("192.0.2.7", 8088).done()
