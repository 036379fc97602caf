"""HTTP connection pool of one Asterisk: each request is sent once, in bounded time and size.

Built on the standard library's client: a request costs a worker half of the CPU that `requests` takes for it, and the
set-up of a call makes six. No redirect is followed, no proxy is used, nothing is sent again.
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

#: Asterisk closes an idle connection after 15 s. One idle for this long is not used again: its request could be lost.
IDLE_SECONDS = 10.0
LARGEST_ANSWER = 16 * 1024 * 1024


class HttpPool:
    """The connections to one Asterisk, for all threads of a process.

    Args:
        endpoint: `http(s)://host[:port]`; a path is ignored.
        ca_bundle: For https, the certificates to trust; None for the system's authorities.
        max_idle: The largest number of idle connections.
        connector: Opens connections.
    """

    def __init__(
        self, endpoint: str, *, ca_bundle: str | None, max_idle: int, connector: tcp_connector.TcpConnector
    ) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = tls.context(ca_bundle) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._has_bundle = ca_bundle is not None
        self._max_idle = max_idle
        self._connector = connector
        self._lock = threading.Lock()
        #: A stack: the connection used last is used next, so that the surplus of a burst goes idle and is closed.
        self._idle: list[_Connection] = []
        self._is_closed = False

    def close(self) -> None:
        """Close the idle connections; one in use is closed once it has its answer."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, *, connect_seconds: float,
        read_seconds: float, seconds: float,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Send one request, once; return the answer's status and body.

        Args:
            target: Path and query, encoded.
            connect_seconds: To open a connection, TLS included.
            read_seconds: To send the request, and for its whole answer.
            seconds: For all of it.

        Raises:
            EndpointRefused: The host resolves to an address that must not be connected to.
            AsteriskUnreachable: No usable answer.
        """
        ends_at = time.monotonic() + seconds
        connection = self._idle_connection() or self._open(min(connect_seconds, seconds))
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
        self._release(connection, is_reusable=not response.will_close)
        return response.status, answer

    def _idle_connection(self) -> _Connection | None:
        """Return an idle connection that the Asterisk has not closed, as far as is known here; or None."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()

    def _release(self, connection: _Connection, *, is_reusable: bool) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if is_reusable and not self._is_closed and len(self._idle) < self._max_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _open(self, seconds: float) -> _Connection:
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
            # A connection cut after the request was sent is a TLS error as well: only a refused certificate is certain.
            reason = tls.complaint(exc, with_bundle=self._has_bundle)
            return errors.AsteriskUnreachable(reason, may_have_acted=not tls.was_refused(exc))
        return errors.AsteriskUnreachable(f"connection failed: {type(exc).__name__}")


class _Timely(io.RawIOBase):
    """Reads a socket until a deadline: the time-out of a socket bounds each read, not their sum."""

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
    """An open connection, which the base class must not open again."""

    response_class = _Response
    auto_open = 0

    def __init__(self, host: str, port: int, sock: socket.socket) -> None:
        super().__init__(host, port)
        self.sock: socket.socket = sock
        self.idle_since = 0.0

    def is_usable(self) -> bool:
        """Whether it was not idle for too long and has nothing to read: the only thing to come would be its end."""
        if time.monotonic() - self.idle_since >= IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


def _whole(response: http.client.HTTPResponse) -> bytes:
    """Return the body, bounded in size."""
    answer = response.read(LARGEST_ANSWER + 1)
    if len(answer) > LARGEST_ANSWER:
        raise errors.AsteriskUnreachable("the answer is too large")
    if response.length:
        raise http.client.IncompleteRead(answer, response.length)
    return answer
