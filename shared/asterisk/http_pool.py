"""HTTP exchanges with one Asterisk, on connections that are kept: each once, in bounded time and size.

The standard library's client and nothing above it: a request costs a worker half of what `requests` takes for it, and a
call's set-up is six of them. No redirect is followed, no proxy asked, nothing sent again.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from shared import errors
from shared.asterisk import tcp_connector, tls

#: Asterisk closes an idle connection after 15 s: one that idle is never used for a request that must not be lost.
IDLE_SECONDS = 10.0
LARGEST_ANSWER = 16 * 1024 * 1024


class HttpPool:
    """The connections to one Asterisk, for all threads of a process.

    Args:
        endpoint: `http(s)://host[:port]`; what follows is not looked at.
        ca_bundle: For https, whom to trust; None for the system's authorities.
        kept: Most idle connections.
        connector: Connects.
    """

    def __init__(
        self, endpoint: str, *, ca_bundle: str | None, kept: int, connector: tcp_connector.TcpConnector
    ) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = tls.context(ca_bundle) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._has_bundle = ca_bundle is not None
        self._most = kept
        self._connector = connector
        self._lock = threading.Lock()
        #: The one used last is used next, so that what a burst has left goes idle.
        self._idle: list[_Connection] = []
        self._is_closed = False

    def close(self) -> None:
        """Closes the idle connections; one in use is closed when its answer is there."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, *, connect_seconds: float,
        read_seconds: float, seconds: float,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Sends one request, once; the answer's status and body.

        Args:
            target: Path and query, encoded.
            connect_seconds: To open a connection, TLS included.
            read_seconds: To send the request, and for its whole answer.
            seconds: For all of it.

        Raises:
            EndpointRefused: The host leads to an address that must not be connected to.
            AsteriskUnreachable: No usable answer.
        """
        ends_at = time.monotonic() + seconds
        connection = self._kept() or self._opened(min(connect_seconds, seconds))
        try:
            connection.sock.settimeout(max(0.001, min(read_seconds, ends_at - time.monotonic())))
            connection.request(method, target, body, headers)
            with connection.getresponse() as response:
                answer = _whole(response)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, OSError | http.client.HTTPException):
                raise self._failed(exc) from exc
            raise
        self._give_back(connection, is_reusable=not response.will_close)
        return response.status, answer

    def _kept(self) -> _Connection | None:
        """An idle connection that the Asterisk has not closed, as far as anybody can tell."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection, *, is_reusable: bool) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if is_reusable and not self._is_closed and len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()

    def _opened(self, seconds: float) -> _Connection:
        ends_at = time.monotonic() + seconds
        made = self._connector.connect(self._host, self._port, seconds=seconds)
        try:
            if self._tls is not None:
                made.settimeout(max(0.001, ends_at - time.monotonic()))
                made = self._tls.wrap_socket(made, server_hostname=self._host)
        except OSError as exc:
            with contextlib.suppress(OSError):
                made.close()
            if isinstance(exc, TimeoutError):
                raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False) from exc
            raise self._failed(exc) from exc
        return _Connection(self._host, self._port, made)

    def _failed(self, exc: OSError | http.client.HTTPException) -> errors.AsteriskUnreachable:
        if isinstance(exc, TimeoutError):
            return errors.AsteriskUnreachable("no answer in time")
        if isinstance(exc, ssl.SSLError):
            # One that is cut after the request was sent is an error of TLS as well: only a refused one is certain.
            reason = tls.complaint(exc, with_bundle=self._has_bundle)
            return errors.AsteriskUnreachable(reason, may_have_acted=not tls.was_refused(exc))
        return errors.AsteriskUnreachable(f"connection failed: {type(exc).__name__}")


class _Timely(io.RawIOBase):
    """Reads a socket until a moment: a time-out of the socket bounds each read, not their sum."""

    def __init__(self, sock: socket.socket, inner: io.RawIOBase) -> None:
        self._sock = sock
        self._inner = inner
        self._ends_at = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._inner.readinto(buffer)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose status line, headers and body together take no longer than the connection's time-out."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Timely(sock, self.fp.detach()))


class _Connection(http.client.HTTPConnection):
    """An open connection; it is never opened again by itself."""

    response_class = _Response
    auto_open = 0

    def __init__(self, host: str, port: int, sock: socket.socket) -> None:
        super().__init__(host, port)
        self.sock: socket.socket = sock
        self.idle_since = 0.0

    def is_usable(self) -> bool:
        """Whether it was not idle for too long, and there is nothing to be read: that would be the end of it."""
        if time.monotonic() - self.idle_since >= IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


def _whole(response: http.client.HTTPResponse) -> bytes:
    """The body, bounded in size."""
    answer = response.read(LARGEST_ANSWER + 1)
    if len(answer) > LARGEST_ANSWER:
        raise errors.AsteriskUnreachable("the answer is too large")
    if response.length:
        raise http.client.IncompleteRead(answer, response.length)
    return answer
