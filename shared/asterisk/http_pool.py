"""HTTP connection pool of one Asterisk: each request is sent once, in bounded time and size.

Several requests are sent at the same time by one thread: all are written, each on a connection of its own, and then
their answers are read, one after the other.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.asterisk import tcp_connector, tls

#: Asterisk closes an idle connection after 15 s. One idle for this long is not used again: its request could be lost.
IDLE_SECONDS = 10.0
LARGEST_ANSWER = 16 * 1024 * 1024
#: A time-out of 0 would mean: do not wait, not even for what is there.
_LEAST_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request: `target` is path and query, encoded; `body` is JSON."""

    method: str
    target: str
    body: bytes | None = None


class HttpPool:
    """The connections to one Asterisk, for all threads of a process.

    Args:
        endpoint: `http(s)://host[:port]`; a path is ignored.
        ca_bundle: For https, the certificates to trust; None for the system's authorities.
        headers: Of each request.
        max_idle: The largest number of idle connections.
        connector: Opens connections.
    """

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], *, ca_bundle: str | None, max_idle: int,
        connector: tcp_connector.TcpConnector,
    ) -> None:  # fmt: skip
        parts = urllib.parse.urlsplit(endpoint)
        assert parts.hostname is not None
        self.headers = headers
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

    def send_all(
        self, requests: Sequence[HttpRequest], *, connect_seconds: float, read_seconds: float, seconds: float
    ) -> list[Exchange]:
        """Send several requests at the same time, each once; return the exchange of each, in the order given.

        First every connection is opened, then every request is written: none waits for another's answer. The caller
        closes every exchange.

        Args:
            connect_seconds: To open the connections, TLS included.
            read_seconds: To write the requests, and for all of their answers.
            seconds: For all of it.
        """
        ends_at = time.monotonic() + seconds
        opened_by = min(ends_at, time.monotonic() + connect_seconds)
        exchanges: list[Exchange] = []
        try:
            for request in requests:
                exchanges.append(Exchange(self, request, self._connection(opened_by)))
            answered_by = min(ends_at, time.monotonic() + read_seconds)
            for exchange in exchanges:
                exchange.write(answered_by)
        except BaseException:
            for exchange in exchanges:
                exchange.close()
            raise
        return exchanges

    def _connection(self, opened_by: float) -> _Connection | errors.AsteriskUnreachable:
        """Return a connection, or why there is none."""
        try:
            return self._idle_connection() or self._open(opened_by)
        except errors.AsteriskUnreachable as exc:
            return exc

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

    def release(self, connection: _Connection, *, is_reusable: bool) -> None:
        """Keep a connection whose answer was read, or close it."""
        connection.idle_since = time.monotonic()
        with self._lock:
            if is_reusable and not self._is_closed and len(self._idle) < self._max_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _open(self, opened_by: float) -> _Connection:
        seconds = opened_by - time.monotonic()
        if seconds <= 0:
            raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False)
        made = self._connector.connect(self._host, self._port, seconds=seconds)
        try:
            if self._tls is not None:
                made.settimeout(max(_LEAST_SECONDS, opened_by - time.monotonic()))
                made = self._tls.wrap_socket(made, server_hostname=self._host)
        except OSError as exc:
            with contextlib.suppress(OSError):
                made.close()
            if isinstance(exc, TimeoutError):
                raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False) from exc
            raise self.failed(exc) from exc
        return _Connection(self._host, self._port, made)

    def failed(self, exc: OSError | http.client.HTTPException) -> errors.AsteriskUnreachable:
        """Return what a failed exchange means."""
        if isinstance(exc, TimeoutError):
            return errors.AsteriskUnreachable("no answer in time")
        if isinstance(exc, ssl.SSLError):
            # A connection cut after the request was sent is a TLS error as well: only a refused certificate is certain.
            reason = tls.complaint(exc, with_bundle=self._has_bundle)
            return errors.AsteriskUnreachable(reason, may_have_acted=not tls.was_refused(exc))
        return errors.AsteriskUnreachable(f"connection failed: {type(exc).__name__}")


class Exchange:
    """One request and its answer."""

    def __init__(
        self, pool: HttpPool, request: HttpRequest, connection: _Connection | errors.AsteriskUnreachable
    ) -> None:
        self._pool = pool
        self._request = request
        self._failure = connection if isinstance(connection, errors.AsteriskUnreachable) else None
        self._connection = connection if isinstance(connection, _Connection) else None
        self._answered_by = 0.0

    def write(self, answered_by: float) -> None:
        """Write the request. What goes wrong is raised when the answer is asked for."""
        if self._connection is None:
            return
        self._answered_by = answered_by
        request = self._request
        headers = {**self._pool.headers, "Content-Type": "application/json"} if request.body else self._pool.headers
        try:
            self._connection.sock.settimeout(self._seconds_left())
            self._connection.request(request.method, request.target, request.body, headers)
        except (OSError, http.client.HTTPException) as exc:
            self._failure = self._pool.failed(exc)
            self.close()

    def answer(self) -> tuple[int, bytes]:
        """Read the answer; return its status and body. May be used once.

        Raises:
            EndpointRefused: The host resolves to an address that must not be connected to.
            AsteriskUnreachable: No usable answer.
        """
        if self._failure is not None:
            raise self._failure
        assert self._connection is not None
        try:
            # An answer that came in time is read, though an earlier one of the same round took all of it.
            self._connection.sock.settimeout(self._seconds_left())
            with self._connection.getresponse() as response:
                answer = _whole(response)
        except (OSError, http.client.HTTPException) as exc:
            raise self._pool.failed(exc) from exc
        connection, self._connection = self._connection, None
        self._pool.release(connection, is_reusable=not response.will_close)
        return response.status, answer

    def close(self) -> None:
        """Close the connection if its answer was not read: the next request would get it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _seconds_left(self) -> float:
        return max(_LEAST_SECONDS, self._answered_by - time.monotonic())


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
