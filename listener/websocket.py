"""One websocket to an Asterisk: opened, read, closed, each in bounded time. The only module that knows websockets.

What goes wrong is told in plain words, and never in the peer's: it may send our credentials back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import urllib.parse

from websockets import exceptions
from websockets.asyncio import client
from websockets.frames import CloseCode

from listener.errors import SocketBroken
from shared import errors
from shared.asterisk import address_guard, tcp_connector, tls

_OPEN_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_PING_SECONDS = 5.0
_MAX_BYTES = 2**20
#: Frames read ahead before the transport is paused; one read of it brings some hundred small ones.
_READ_AHEAD = 1024

_LASTING = {
    401: "wrong ARI user or password (401)",
    403: "the ARI user may not do this (403)",
    404: "no ARI at this address: wrong port or prefix, or ARI is not enabled (404)",
}

#: Never below this level, whatever the settings say: websockets' debug lines hold the Authorization header.
_log = logging.getLogger("websockets.event_sockets")
_log.setLevel(logging.ERROR)


class _Connect(client.connect):
    """Follows no redirect: the address was checked, that one would not be."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class Wire:
    """An open websocket."""

    def __init__(self, connection: client.ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes:
        """The next message, as the bytes that came.

        Raises:
            SocketBroken: The websocket is closed.
        """
        try:
            return await self._connection.recv(decode=False)
        except exceptions.ConnectionClosed as exc:
            raise _closed(exc) from None

    async def close(self) -> None:
        """Says good-bye, and hangs up on a peer that does not answer."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS + 1):
                await self._connection.close()
        except (TimeoutError, OSError, exceptions.WebSocketException):
            with contextlib.suppress(OSError):
                self._connection.transport.abort()


async def open_wire(
    url: str,
    authorization: str,
    ca_bundle: str | None,
    *,
    rule: address_guard.AddressGuard,
    resolve: tcp_connector.Resolve = socket.getaddrinfo,
) -> Wire:
    """Opens a websocket, in _OPEN_SECONDS.

    Args:
        ca_bundle: For wss, whom to trust; None for the system's authorities.
        rule: Judges the very address that is connected to.
        resolve: A parameter for tests.

    Raises:
        SocketBroken: It could not be opened.
    """
    try:
        trust = tls.context(ca_bundle) if url.startswith("wss:") else None
        async with asyncio.timeout(_OPEN_SECONDS):
            connection = await _Connect(
                url,
                additional_headers={"Authorization": authorization},
                user_agent_header="ari-pipeline",
                compression=None,
                open_timeout=None,
                close_timeout=_CLOSE_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PING_SECONDS,
                max_size=_MAX_BYTES,
                max_queue=_READ_AHEAD,
                logger=_log,
                ssl=trust,
                # Given a socket, it looks up no name, and asks no proxy.
                sock=await _reached(url, rule, resolve),
            )
    except (errors.InvalidConfiguration, errors.EndpointRefused) as exc:
        raise SocketBroken(str(exc), lasting=True) from None
    except errors.AsteriskUnreachable as exc:
        raise SocketBroken(str(exc)) from None
    except (OSError, ValueError, exceptions.WebSocketException) as exc:
        raise _refused(exc, ca_bundle) from None
    return Wire(connection)


async def _reached(url: str, rule: address_guard.AddressGuard, resolve: tcp_connector.Resolve) -> socket.socket:
    """Connects to the first address of the host that answers; each has an even share of the remaining time.

    The async twin of `tcp_connector.TcpConnector.connect`.
    """
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _OPEN_SECONDS
    addresses = await loop.run_in_executor(None, tcp_connector.lookup, rule, host, port, resolve)
    reason: OSError = TimeoutError()
    for number, address in enumerate(addresses):
        share = max(0.0, ends_at - loop.time()) / (len(addresses) - number)
        made = socket.socket(address.family, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            async with asyncio.timeout(share):
                await loop.sock_connect(made, address.sockaddr)
        except OSError as exc:
            made.close()
            reason = exc
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise reason


def _refused(exc: Exception, ca_bundle: str | None) -> SocketBroken:  # noqa: PLR0911 - one line a cause
    match exc:
        case exceptions.InvalidStatus():
            status = exc.response.status_code
            if words := _LASTING.get(status):
                return SocketBroken(words, lasting=True, starting=status == 404)
            return SocketBroken(f"the Asterisk answered HTTP {status} instead of opening a websocket")
        case exceptions.InvalidURI() | UnicodeError():
            return SocketBroken("the endpoint is not an address", lasting=True)
        case exceptions.WebSocketException():
            return SocketBroken("what answered does not speak websocket")
        case TimeoutError():
            return SocketBroken(f"no answer within {_OPEN_SECONDS:.0f} s")
        case ssl.SSLError():
            return SocketBroken(tls.complaint(exc, with_bundle=ca_bundle is not None))
        case ConnectionRefusedError():
            return SocketBroken("connection refused")
        case OSError():
            return SocketBroken(f"no connection: {exc}")
    return SocketBroken("the endpoint is not an address", lasting=True)


def _closed(exc: exceptions.ConnectionClosed) -> SocketBroken:
    sent, received = exc.sent, exc.rcvd
    if sent is not None and not exc.rcvd_then_sent:
        if sent.code == CloseCode.MESSAGE_TOO_BIG:
            return SocketBroken(f"it sent a message larger than {_MAX_BYTES} bytes (1009)", unreadable=True)
        if sent.code == CloseCode.INTERNAL_ERROR:
            return SocketBroken(f"no answer to a ping within {_PING_SECONDS:.0f} s")
        if sent.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA):
            return SocketBroken(f"it broke the websocket protocol ({sent.code:d})", unreadable=True)
    if received is not None:
        return SocketBroken(f"the Asterisk closed the socket ({received.code:d})")
    return SocketBroken("the connection was cut")
