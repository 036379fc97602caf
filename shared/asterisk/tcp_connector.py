"""Connects to an endpoint: resolves its host, lets the guard check every address, connects to a checked address.

The name is not resolved again in between, so DNS rebinding leads nowhere. `listener/websocket.py` has the async twin.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.asterisk import address_guard

#: As `socket.getaddrinfo`.
Resolve = Callable[..., Sequence[tuple[Any, ...]]]

#: How many addresses of one host are tried.
_TRIED = 4
#: Host names resolved at the same time; one that hangs occupies a thread until the system's resolver gives up.
_LOOKUPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of a host."""

    family: int
    #: As `socket.connect` takes it.
    sockaddr: tuple[Any, ...]


def lookup(
    rule: address_guard.AddressGuard, host: str, port: int, resolve: Resolve = socket.getaddrinfo
) -> list[Address]:
    """Return the addresses of a host that may be connected to. Takes as long as the system's resolver does.

    Raises:
        EndpointRefused: One of them must not be connected to.
        AsteriskUnreachable: The host has no address.
    """
    try:
        found = resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise errors.AsteriskUnreachable("the host name is not found", may_have_acted=False) from exc
    usable = [
        Address(family=entry[0], sockaddr=entry[4]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)
    ]
    if not usable:
        raise errors.AsteriskUnreachable("the host name has no address", may_have_acted=False)
    rule.check(host, [str(address.sockaddr[0]) for address in usable])
    return usable[:_TRIED]


class TcpConnector:
    """Connects to endpoints, in bounded time, for all threads of a process.

    Args:
        resolve: A parameter for tests.
    """

    def __init__(self, rule: address_guard.AddressGuard, resolve: Resolve = socket.getaddrinfo) -> None:
        self._rule = rule
        self._resolve = resolve
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], futures.Future[list[Address]]] = {}

    def connect(self, host: str, port: int, *, seconds: float) -> socket.socket:
        """Return a connected socket, its time-out set to `seconds`.

        Args:
            seconds: For the whole: resolving the name and trying every address.

        Raises:
            EndpointRefused: The host resolves to an address that must not be connected to.
            AsteriskUnreachable: No connection; nothing was sent.
        """
        ends_at = time.monotonic() + seconds
        addresses = self._addresses(host, port, seconds)
        reason: OSError = TimeoutError()
        for number, address in enumerate(addresses):
            # An even share of the remaining time: an address that drops packets leaves time for the others.
            share = max(0.0, ends_at - time.monotonic()) / (len(addresses) - number)
            try:
                return _open(address, share, seconds)
            except OSError as exc:
                reason = exc
        raise errors.AsteriskUnreachable(_complaint(reason), may_have_acted=False) from reason

    def _addresses(self, host: str, port: int, seconds: float) -> list[Address]:
        if _is_literal(host):
            return lookup(self._rule, host, port, self._resolve)
        try:
            return self._lookup(host, port).result(seconds)
        except futures.TimeoutError:
            raise errors.AsteriskUnreachable("resolving the host name took too long", may_have_acted=False) from None

    def _lookup(self, host: str, port: int) -> futures.Future[list[Address]]:
        """Return the lookup of this name that is running, or start one: a name that hangs occupies one thread only."""
        with self._lock:
            running = self._lookups.get((host, port))
            if running is not None:
                return running
            if len(self._lookups) >= _LOOKUPS:
                raise errors.AsteriskUnreachable("too many host names are being resolved", may_have_acted=False)
            made: futures.Future[list[Address]] = futures.Future()
            # Not in a pool: a process that ends would wait for the pool's threads.
            threading.Thread(target=self._look_up, args=(host, port, made), name="lookup", daemon=True).start()
            self._lookups[host, port] = made
            return made

    def _look_up(self, host: str, port: int, made: futures.Future[list[Address]]) -> None:
        try:
            found = lookup(self._rule, host, port, self._resolve)
        except BaseException as exc:  # noqa: BLE001 - raised again in the waiting threads
            self._forget(host, port)
            made.set_exception(exc)
        else:
            self._forget(host, port)
            made.set_result(found)

    def _forget(self, host: str, port: int) -> None:
        with self._lock:
            self._lookups.pop((host, port), None)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _open(address: Address, share_seconds: float, seconds: float) -> socket.socket:
    if share_seconds <= 0:
        raise TimeoutError
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.settimeout(share_seconds)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.connect(address.sockaddr)
        made.settimeout(seconds)
    except BaseException:
        with contextlib.suppress(OSError):
            made.close()
        raise
    return made


def _complaint(exc: OSError) -> str:
    if isinstance(exc, TimeoutError):
        return "connecting took too long"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    return f"connection failed: {exc.strerror or type(exc).__name__}"
