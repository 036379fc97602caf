"""The websocket to an Asterisk: its address, and opening, reading and closing it, each in bounded time.

With `bounded_connection` the only module that imports websockets. An error never quotes the peer: it may send our
credentials back.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import logging
import socket
import ssl
import urllib.parse
from collections.abc import Callable
from typing import Any, cast

from websockets import exceptions
from websockets.asyncio import client
from websockets.frames import CloseCode

from listener.backoff import Cause
from listener.bounded_connection import BoundedConnection, Flooded, ReadLimits
from listener.read_turns import ReadTurns
from shared import errors, socket_errors
from shared.asterisk import name_lookups, tls

_OPEN_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_PING_SECONDS = 5.0

_SCHEMES = {"http": "ws", "https": "wss"}
_FIRST_PRINTABLE = "!"

#: An Asterisk that is just starting answers 404 for some 150 ms before ARI is loaded, then 503 (measured, 22).
_LASTING = {401: Cause.DENIED, 403: Cause.DENIED, 404: Cause.PERMANENT}

#: Never below this level, whatever the settings say: websockets' debug lines contain the Authorization header.
_log = logging.getLogger("websockets.event_sockets")
_log.setLevel(logging.ERROR)


class SocketBroken(errors.TransientError):
    """An event socket could not be opened, or was closed. The text is for operators and contains no secret.

    Args:
        reason: For the report and the log.
        cause: Decides when the next attempt is made.
        unreadable: The peer sent something the listener refuses to read.
    """

    def __init__(self, reason: str, *, cause: Cause = Cause.PASSING, unreadable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.unreadable = unreadable


def socket_url(endpoint: str, app: str) -> str:
    """Return the URL of the app's event socket, without credentials.

    Raises:
        InvalidConfiguration: The endpoint is not http(s)://host[:port][/prefix].
    """
    # urlsplit would silently drop some of these.
    if any(char < _FIRST_PRINTABLE or char == "\x7f" for char in endpoint):
        raise errors.InvalidConfiguration("the endpoint contains a blank or control character")
    try:
        parts = urllib.parse.urlsplit(endpoint)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise errors.InvalidConfiguration("the endpoint is not a URL") from None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not host:
        raise errors.InvalidConfiguration("the endpoint is not http(s)://host[:port][/prefix]")
    if parts.username is not None or parts.query or parts.fragment:
        raise errors.InvalidConfiguration("the endpoint contains more than http(s)://host[:port][/prefix]")
    query = f"app={urllib.parse.quote(app, safe='')}&subscribeAll=false"
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/ari/events?{query}"


def authorization(user: str, password: str) -> str:
    """Return the value of the Authorization header (RFC 7617, UTF-8), the only place the password goes to.

    Raises:
        InvalidConfiguration: HTTP basic authentication cannot carry this user or password.
    """
    if ":" in user:
        raise errors.InvalidConfiguration("the ARI user contains a colon")
    try:
        credentials = f"{user}:{password}".encode()
    except UnicodeEncodeError:
        # Not chained: its text would show the password.
        raise errors.InvalidConfiguration("the ARI user or password contains a character that is not text") from None
    return "Basic " + base64.b64encode(credentials).decode("ascii")


class _Connect(client.connect):
    """A connect that follows no redirect: the address was checked, the new one would not be."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class EventStream:
    """An open websocket."""

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection

    async def pass_messages(self, take: Callable[[bytes], bool]) -> None:
        """Pass each message, undecoded, to `take`, until it returns False.

        Raises:
            SocketBroken: The websocket is closed.
        """
        try:
            await self._connection.pass_messages(take)
        except Flooded as exc:
            raise SocketBroken(f"closed by us: Asterisk sent {exc}", cause=Cause.FLOODED, unreadable=True) from None
        except exceptions.ConnectionClosed as exc:
            raise _closed(exc) from None

    async def close(self) -> None:
        """Do the closing handshake; cut the connection of a peer that does not answer it."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS + 1):
                await self._connection.close()
        except (TimeoutError, OSError, exceptions.WebSocketException):
            with contextlib.suppress(OSError):
                self._connection.transport.abort()


async def connect(
    url: str,
    authorization: str,
    ca_bundle: str | None,
    name: str,
    *,
    lookups: name_lookups.NameLookups,
    turns: ReadTurns,
    limits: ReadLimits,
) -> EventStream:
    """Open a websocket, within _OPEN_SECONDS.

    Args:
        ca_bundle: For wss, the certificates to trust; None for the system's authorities.
        name: Of the socket, for `turns`.
        lookups: Checks the very address that is connected to.

    Raises:
        SocketBroken: It could not be opened.
    """
    try:
        trust = tls.context(ca_bundle) if url.startswith("wss:") else None
        async with asyncio.timeout(_OPEN_SECONDS):
            connection: Any = await _Connect(
                url,
                additional_headers={"Authorization": authorization},
                user_agent_header="ari-pipeline",
                compression=None,
                open_timeout=None,
                close_timeout=_CLOSE_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PING_SECONDS,
                max_size=limits.message_bytes,
                logger=_log,
                ssl=trust,
                create_connection=cast(
                    Any, functools.partial(BoundedConnection, name=name, turns=turns, limits=limits)
                ),
                # Given a socket, websockets resolves no name and uses no proxy.
                sock=await _connected_socket(url, lookups),
            )
    except (errors.InvalidConfiguration, errors.EndpointRefused) as exc:
        raise SocketBroken(str(exc), cause=Cause.PERMANENT) from None
    except errors.AsteriskUnreachable as exc:
        raise SocketBroken(str(exc)) from None
    except (OSError, ValueError, exceptions.WebSocketException) as exc:
        raise _refused(exc, ca_bundle) from None
    return EventStream(connection)


async def _connected_socket(url: str, lookups: name_lookups.NameLookups) -> socket.socket:
    """Connect to the first address of the host that accepts; each gets an equal share of the time that is left.

    The asynchronous twin of `tcp_connector.TcpConnector.connect`.
    """
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _OPEN_SECONDS
    addresses = await asyncio.wrap_future(lookups.start(host, port))
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
            if status in _LASTING:
                return SocketBroken(socket_errors.LASTING[status], cause=_LASTING[status])
            return SocketBroken(f"Asterisk answered HTTP {status} instead of opening a websocket")
        case exceptions.InvalidURI() | UnicodeError():
            return SocketBroken("the endpoint is not a valid address", cause=Cause.PERMANENT)
        case exceptions.WebSocketException():
            return SocketBroken("the server at this address does not speak websocket")
        case TimeoutError():
            return SocketBroken(f"{socket_errors.NO_ANSWER} {_OPEN_SECONDS:.0f} s")
        case ssl.SSLError():
            return SocketBroken(tls.complaint(exc, with_bundle=ca_bundle is not None))
        case ConnectionRefusedError():
            return SocketBroken("connection refused")
        case OSError():
            return SocketBroken(f"connection failed: {exc}")
    return SocketBroken("the endpoint is not a valid address", cause=Cause.PERMANENT)


def _closed(exc: exceptions.ConnectionClosed) -> SocketBroken:
    sent, received = exc.sent, exc.rcvd
    if sent is not None and not exc.rcvd_then_sent:
        if sent.code == CloseCode.MESSAGE_TOO_BIG:
            return SocketBroken("received a message larger than EVENT_MESSAGE_BYTES (1009)", unreadable=True)
        if sent.code == CloseCode.INTERNAL_ERROR:
            return SocketBroken(f"no answer to a ping within {_PING_SECONDS:.0f} s")
        if sent.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA):
            return SocketBroken(f"websocket protocol violated by Asterisk ({sent.code:d})", unreadable=True)
    if received is not None:
        return SocketBroken(f"Asterisk closed the socket ({received.code:d})")
    return SocketBroken("connection lost")
