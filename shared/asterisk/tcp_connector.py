"""Connects to an endpoint: resolves its host, lets the guard check every address, connects to a checked address.

The name is not resolved again in between, so DNS rebinding leads nowhere. `listener/websocket.py` has the async twin.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from concurrent import futures

from shared import errors
from shared.asterisk import address_guard, name_lookups


class TcpConnector:
    """Connects to endpoints, in bounded time, for all threads of a process.

    Args:
        resolve: A parameter for tests.
        lookups: Most host names looked up at the same time.
    """

    def __init__(
        self,
        rule: address_guard.AddressGuard,
        resolve: name_lookups.Resolve = socket.getaddrinfo,
        *,
        lookups: int = name_lookups.LOOKUPS,
    ) -> None:
        self._lookups = name_lookups.NameLookups(rule, threads=lookups, resolve=resolve)

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

    def _addresses(self, host: str, port: int, seconds: float) -> Sequence[name_lookups.Address]:
        try:
            return self._lookups.start(host, port).result(seconds)
        except futures.TimeoutError:
            raise errors.AsteriskUnreachable("resolving the host name took too long", may_have_acted=False) from None


def _open(address: name_lookups.Address, share_seconds: float, seconds: float) -> socket.socket:
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
