"""HTTP connection pool of one Asterisk: each request is sent once, in bounded time and size.

Several requests are sent at the same time by one thread: all are written, each on a connection of its own, and then
their answers are read, one after the other. No redirect is followed, no proxy is used, nothing is sent again.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shared import errors
from shared.asterisk import tcp_connector, tls
from shared.asterisk.http_answer import AnswerReader, HttpAnswer
from shared.asterisk.sessions import Sessions

#: Asterisk closes an idle connection after 15 s. One idle for this long is closed: its request could be lost.
IDLE_SECONDS = 10.0
#: The most that is received at once: nearly every answer comes whole.
_RECEIVED = 64 * 1024
#: A time-out of 0 would mean: do not wait, not even for what is there.
_LEAST_SECONDS = 0.001
#: A socket's time-out is left as it is while it is right within this: setting it costs a system call.
_SLACK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request: `target` is path and query, encoded; `body` is JSON."""

    method: str
    target: str
    body: bytes | None = None
    #: The largest body of its answer that is read, in bytes.
    largest_answer: int


class HttpPool:
    """The connections to one Asterisk, for all threads of a process.

    Args:
        endpoint: `http(s)://host[:port]`; a path is ignored.
        headers: Of each request.
        ca_bundle: For https, the certificates to trust; None for the system's authorities.
        max_idle: The largest number of idle connections.
        connector: Opens connections.
        sessions: Those of the Asterisk, in which each connection counts.
        tenant: Whose connections these are.
    """

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], *, ca_bundle: str | None, max_idle: int,
        connector: tcp_connector.TcpConnector, sessions: Sessions, tenant: object,
    ) -> None:  # fmt: skip
        parts = urllib.parse.urlsplit(endpoint)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = tls.context(ca_bundle) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        #: What follows method and target in each request.
        self._head = _head({"Host": _host_field(parts), "Accept-Encoding": "identity", **headers})
        self._has_bundle = ca_bundle is not None
        self._max_idle = max_idle
        self._connector = connector
        self._sessions = sessions
        sessions.add(self, tenant)
        self._lock = threading.Lock()
        #: The connection used last is used next, so that the surplus of a burst goes idle and is closed.
        self._idle: deque[_Connection] = deque()
        self._is_closed = False

    def close(self) -> None:
        """Close the idle connections; one in use is closed once it has its answer."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()
        self._sessions.remove(self)

    def close_oldest(self) -> bool:
        """Close the connection that has been idle longest; return False if none is idle."""
        with self._lock:
            oldest = self._idle.popleft() if self._idle else None
        if oldest is not None:
            oldest.close()
        return oldest is not None

    def close_unused(self) -> None:
        """Close what was idle for too long: a connection that the Asterisk has closed stays open here until then."""
        with self._lock:
            unused = self._take_unused()
        for connection in unused:
            connection.close()

    def send_all(
        self, requests: Sequence[HttpRequest], *, connect_seconds: float, read_seconds: float, seconds: float,
        still_may: Callable[[], object],
    ) -> list[Exchange]:  # fmt: skip
        """Send several requests at the same time, each once; return the exchange of each, in the order given.

        First every connection is opened, then every request is written: none waits for another's answer. The caller
        closes every exchange.

        Args:
            connect_seconds: To open the connections, TLS included.
            read_seconds: To write the requests, and for all of their answers.
            seconds: For all of it.
            still_may: Called once the connections are open. What it raises is raised, and nothing is sent: meanwhile
                the process may have stood still for longer than what asks for this may last.
        """
        ends_at = time.monotonic() + seconds
        opened_by = min(ends_at, time.monotonic() + connect_seconds)
        exchanges: list[Exchange] = []
        try:
            for request in requests:
                connection = self._connection(opened_by)
                exchanges.append(Exchange(self, connection, largest_answer=request.largest_answer))
            still_may()
            answered_by = min(ends_at, time.monotonic() + read_seconds)
            for exchange, request in zip(exchanges, requests, strict=True):
                exchange.write(self._encoded(request), answered_by)
        except BaseException:
            for exchange in exchanges:
                exchange.close()
            raise
        return exchanges

    def release(self, connection: _Connection, *, is_reusable: bool) -> None:
        """Keep a connection whose answer was read, or close it."""
        connection.idle_since = time.monotonic()
        is_reusable = is_reusable and not self._sessions.has_excess()
        with self._lock:
            to_close = self._take_unused()
            if is_reusable and not self._is_closed and len(self._idle) < self._max_idle:
                self._idle.append(connection)
            else:
                to_close.append(connection)
        for closed in to_close:
            closed.close()

    def failed(self, exc: OSError) -> errors.AsteriskUnreachable:
        """Return what a failed exchange means."""
        if isinstance(exc, TimeoutError):
            return errors.AsteriskUnreachable("no answer in time")
        if isinstance(exc, ssl.SSLError):
            # A connection cut after the request was sent is a TLS error as well: only a refused certificate is certain.
            reason = tls.complaint(exc, with_bundle=self._has_bundle)
            return errors.AsteriskUnreachable(reason, may_have_acted=not tls.was_refused(exc))
        return errors.AsteriskUnreachable(f"connection failed: {type(exc).__name__}")

    def _encoded(self, request: HttpRequest) -> bytes:
        line = f"{request.method} {request.target}".encode("ascii")
        if request.body is not None:
            length = len(request.body)
            return b"%b%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                line, self._head, length, request.body,
            )  # fmt: skip
        return line + self._head + (b"\r\n" if request.method == "GET" else b"Content-Length: 0\r\n\r\n")

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

    def _take_unused(self) -> list[_Connection]:
        """Take what was idle for too long out of the pool. The caller has the lock, and closes it."""
        taken: list[_Connection] = []
        idle_before = time.monotonic() - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= idle_before:
            taken.append(self._idle.popleft())
        return taken

    def _open(self, opened_by: float) -> _Connection:
        self._sessions.opening()
        try:
            made = self._connector.connect(self._host, self._port, seconds=opened_by - time.monotonic())
            return _Connection(self._secured(made, opened_by), self._sessions.closed)
        except BaseException:
            self._sessions.closed()
            raise

    def _secured(self, made: socket.socket, opened_by: float) -> socket.socket:
        """Return a connection with TLS, if the endpoint has it. What fails is closed."""
        if self._tls is None:
            return made
        try:
            made.settimeout(max(_LEAST_SECONDS, opened_by - time.monotonic()))
            return self._tls.wrap_socket(made, server_hostname=self._host)
        except OSError as exc:
            with contextlib.suppress(OSError):
                made.close()
            if isinstance(exc, TimeoutError):
                raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False) from exc
            raise self.failed(exc) from exc


class Exchange:
    """One request and its answer."""

    def __init__(
        self, pool: HttpPool, connection: _Connection | errors.AsteriskUnreachable, *, largest_answer: int
    ) -> None:
        self._pool = pool
        self._largest_answer = largest_answer
        self._failure = connection if isinstance(connection, errors.AsteriskUnreachable) else None
        self._connection = connection if isinstance(connection, _Connection) else None

    def write(self, request: bytes, answered_by: float) -> None:
        """Write the request. What goes wrong is raised when the answer is asked for."""
        if self._connection is None:
            return
        try:
            self._connection.send(request, answered_by)
        except OSError as exc:
            self._failure = self._pool.failed(exc)
            self.close()

    def answer(self) -> HttpAnswer:
        """Read the answer. May be used once.

        Raises:
            EndpointRefused: The host resolves to an address that must not be connected to.
            AsteriskUnreachable: No usable answer.
        """
        if self._failure is not None:
            raise self._failure
        assert self._connection is not None
        try:
            answer = AnswerReader(self._connection.receive, largest_body=self._largest_answer).read()
        except OSError as exc:
            raise self._pool.failed(exc) from exc
        connection, self._connection = self._connection, None
        self._pool.release(connection, is_reusable=answer.keeps_connection)
        return answer

    def close(self) -> None:
        """Close the connection if its answer was not read: the next request would get it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """An open connection.

    Args:
        closed: Called once, when it is closed.
    """

    def __init__(self, sock: socket.socket, closed: Callable[[], None]) -> None:
        self._sock = sock
        self._closed: Callable[[], None] | None = closed
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._timeout_seconds = 0.0
        self._answered_by = 0.0
        self._has_received = False
        self.idle_since = 0.0

    def is_usable(self) -> bool:
        """Whether it was not idle for too long and has nothing to read: the only thing to come would be its end."""
        if time.monotonic() - self.idle_since >= IDLE_SECONDS or self._poll.poll(0):
            return False
        # Bytes that were decrypted already do not show on the socket.
        return not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending())

    def send(self, data: bytes, answered_by: float) -> None:
        """Send all of it. Raises OSError, TimeoutError among them."""
        self._answered_by = answered_by
        self._has_received = False
        self._wait_at_most(answered_by - time.monotonic())
        self._sock.sendall(data)

    def receive(self) -> bytes:
        """Return the next bytes; none at the connection's end. Raises OSError, TimeoutError among them."""
        left = self._answered_by - time.monotonic()
        # An answer that is there is read, though an earlier one of the same round took all the time.
        if left <= 0 and self._has_received:
            raise TimeoutError("the answer took too long")
        self._wait_at_most(left)
        received = self._sock.recv(_RECEIVED)
        self._has_received = True
        return received

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._sock.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    def _wait_at_most(self, seconds: float) -> None:
        seconds = max(_LEAST_SECONDS, seconds)
        if not seconds <= self._timeout_seconds <= seconds + _SLACK_SECONDS:
            self._sock.settimeout(seconds)
            self._timeout_seconds = seconds


def _head(headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f" HTTP/1.1\r\n{lines}".encode("ascii", "replace")


def _host_field(parts: urllib.parse.SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host.partition('%')[0]}]"
    elif not host.isascii():
        # A name that has no such form is not found, so nothing is sent there.
        with contextlib.suppress(UnicodeError):
            host = host.encode("idna").decode("ascii")
    return f"{host}:{parts.port}" if parts.port else host
