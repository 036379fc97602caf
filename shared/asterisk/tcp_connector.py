"""Ways to an endpoint: its host is resolved, the guard judges every address, and what was judged is connected to.

Between the two nothing is resolved again: a name that changes its mind leads nowhere else.
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

#: Addresses of one host that are tried.
_TRIED = 4
#: Host names being looked up at once; one that hangs holds a thread until the system's resolver gives up.
_LOOKUPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One address of a host, as `socket.connect` takes it."""

    family: int
    place: tuple[Any, ...]


def lookup(
    rule: address_guard.AddressGuard, host: str, port: int, resolve: Resolve = socket.getaddrinfo
) -> list[Address]:
    """The addresses of a host that may be connected to. Takes as long as the system's resolver does.

    Raises:
        EndpointRefused: One of them must not be connected to.
        AsteriskUnreachable: There is none.
    """
    try:
        found = resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise errors.AsteriskUnreachable("the host name is not found", may_have_acted=False) from exc
    usable = [
        Address(family=entry[0], place=entry[4]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)
    ]
    if not usable:
        raise errors.AsteriskUnreachable("the host name has no address", may_have_acted=False)
    rule.check(host, [str(address.place[0]) for address in usable])
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
        """A connected socket, its time-out set to `seconds`.

        Args:
            seconds: For all of it, looking up and every address included.

        Raises:
            EndpointRefused: The host leads to an address that must not be connected to.
            AsteriskUnreachable: No connection; nothing was sent.
        """
        ends_at = time.monotonic() + seconds
        addresses = self._addresses(host, port, seconds)
        reason: OSError = TimeoutError()
        for number, address in enumerate(addresses):
            # Each has an even share of what is left: one that swallows packets leaves the others theirs.
            share = max(0.0, ends_at - time.monotonic()) / (len(addresses) - number)
            try:
                return _opened(address, share, seconds)
            except OSError as exc:
                reason = exc
        raise errors.AsteriskUnreachable(_complaint(reason), may_have_acted=False) from reason

    def _addresses(self, host: str, port: int, seconds: float) -> list[Address]:
        if _is_literal(host):
            return lookup(self._rule, host, port, self._resolve)
        try:
            return self._looked_up(host, port).result(seconds)
        except futures.TimeoutError:
            raise errors.AsteriskUnreachable("looking up the host name took too long", may_have_acted=False) from None

    def _looked_up(self, host: str, port: int) -> futures.Future[list[Address]]:
        """The lookup of this name that is under way, or a new one: a name that hangs holds one thread, not many."""
        with self._lock:
            running = self._lookups.get((host, port))
            if running is not None:
                return running
            if len(self._lookups) >= _LOOKUPS:
                raise errors.AsteriskUnreachable("too many host names are being looked up", may_have_acted=False)
            made: futures.Future[list[Address]] = futures.Future()
            # Of no pool, whose threads an ending process would wait for.
            threading.Thread(target=self._look_up, args=(host, port, made), name="lookup", daemon=True).start()
            self._lookups[host, port] = made
            return made

    def _look_up(self, host: str, port: int, made: futures.Future[list[Address]]) -> None:
        try:
            found = lookup(self._rule, host, port, self._resolve)
        except BaseException as exc:  # noqa: BLE001 - raised again in the threads that wait for it
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


def _opened(address: Address, share_seconds: float, seconds: float) -> socket.socket:
    if share_seconds <= 0:
        raise TimeoutError
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.settimeout(share_seconds)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.connect(address.place)
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
