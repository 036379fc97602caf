"""The metrics server of a process: `/metrics`, `/healthz` (this process), `/readyz` (the servers it depends on).

Each process has one, in threads of its own. It reads what is in memory, so `/metrics` and `/healthz` go on whatever is
away; only `/readyz` asks servers. It is bounded: connections, the size of a request, the time of each.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from prometheus_client import exposition

from shared import errors
from shared.process import health, metric_kinds, metrics, process_metrics, readiness, settings

_log = structlog.stdlib.get_logger(__name__)

#: Most connections at the same time; one more is closed.
_CONNECTIONS = 8
#: Bounds a connection, from accepted to answered.
_CONNECTION_SECONDS = 5.0
_REQUEST_BYTES = 8192
#: After a connection that could not be accepted: this process has no file to spare.
_PAUSE_SECONDS = 0.1
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: str
    body: bytes
    type: str = _TEXT


def _text(status: str, said: str) -> _Answer:
    return _Answer(status=status, body=f"{said}\n".encode())


_STARTING = readiness.Found(complaints={"process": "starting"}, is_ready=False)


class MetricsServer:
    """Serves what one process exports.

    Args:
        host: An address of this machine.
        port: 0 takes a free one.
    """

    def __init__(self, host: str, port: int, process: metric_kinds.Process) -> None:
        self._exported = metric_kinds.Exported(metrics.ALL, process)
        self._socket = _listening(host, port)
        self._free = threading.Semaphore(_CONNECTIONS)
        self._pages: Mapping[str, Callable[[str], _Answer]] = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }
        #: None until the process has said which servers it depends on.
        self.readiness: readiness.Readiness | None = None

    @property
    def address(self) -> str:
        """Where it listens: `host:port`."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Serve until `close`."""
        threading.Thread(target=self._accept, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Serve no further request."""
        with contextlib.suppress(OSError):
            # Wakes the thread that accepts.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                time.sleep(_PAUSE_SECONDS)
                continue
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), name="metrics request", daemon=True).start()
            except RuntimeError:
                self._free.release()
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                until = time.monotonic() + _CONNECTION_SECONDS
                request = _received(connection, until)
                if request:
                    _send(connection, self._answered(request), until, has_body=not request.startswith(b"HEAD "))
        except OSError:
            # Its client is gone, or slower than the bound.
            pass
        except Exception:  # noqa: BLE001 - one request ends no thread that serves the next
            _log.exception("metrics request failed")
        finally:
            self._free.release()

    def _answered(self, request: bytes) -> _Answer:
        if len(request) > _REQUEST_BYTES:
            return _text("431 Request Header Fields Too Large", f"a request has {_REQUEST_BYTES} bytes at most")
        line, *fields = request.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _text("400 Bad Request", "not HTTP/1.1")
        if method not in ("GET", "HEAD"):
            return _text("405 Method Not Allowed", "GET alone")
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            return _text("404 Not Found", "\n".join(self._pages))
        return page(_field(fields, "accept"))

    def _metrics(self, accept: str) -> _Answer:
        encode, content_type = exposition.choose_encoder(accept)
        return _Answer(status="200 OK", body=encode(self._exported), type=content_type)

    def _health(self, _accept: str) -> _Answer:
        found = health.of_this_process()
        return _text("200 OK" if found.is_alive else "503 Service Unavailable", found.said)

    def _readiness(self, _accept: str) -> _Answer:
        found = self.readiness.found() if self.readiness is not None else _STARTING
        said = {name: complaint or "ok" for name, complaint in found.complaints.items()}
        body = {
            "ready": found.is_ready,
            "degraded": found.is_ready and any(found.complaints.values()),
            "dependencies": said,
        }
        return _Answer(
            status="200 OK" if found.is_ready else "503 Service Unavailable",
            body=json.dumps(body).encode() + b"\n",
            type="application/json",
        )


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        # Not refused because of connections of the process before; two processes at one port are.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_CONNECTIONS)
    except OSError:
        made.close()
        raise
    return made


def _received(connection: socket.socket, until: float) -> bytes:
    """Return the request without its body; nothing if the client closed before, too much if it has no end."""
    request = b""
    while b"\r\n\r\n" not in request and len(request) <= _REQUEST_BYTES:
        connection.settimeout(max(0.001, until - time.monotonic()))
        received = connection.recv(4096)
        if not received:
            return b""
        request += received
    return request if len(request) > _REQUEST_BYTES else request.partition(b"\r\n\r\n")[0]


def _send(connection: socket.socket, answer: _Answer, until: float, *, has_body: bool) -> None:
    head = (
        f"HTTP/1.1 {answer.status}\r\nContent-Type: {answer.type}\r\nContent-Length: {len(answer.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    connection.settimeout(max(0.001, until - time.monotonic()))
    connection.sendall(head.encode() + (answer.body if has_body else b""))


def _field(fields: list[str], name: str) -> str:
    """Return the value of a header field, in the bounds of the request; an empty text without one."""
    values = (value.strip() for key, _, value in (field.partition(":") for field in fields) if key.lower() == name)
    return next(values, "")


# ── the server of this process ───────────────────────────────────────────────────────────────────────────────────────


class _This:
    server: MetricsServer | None = None


def start(config: settings.Base, process: metric_kinds.Process) -> None:
    """Start the server of this process, unless metrics are off.

    Raises:
        InvalidSettings: It cannot listen there.
    """
    if config.metrics == "off":
        metric_kinds.switch_off()
        return
    try:
        server = MetricsServer(config.metrics_host, config.metrics_port, process)
    except (OSError, UnicodeError) as exc:
        # A name that cannot be one is a UnicodeError.
        where = f"METRICS_HOST={config.metrics_host}, METRICS_PORT={config.metrics_port}"
        reason = getattr(exc, "strerror", None) or "no such host"
        raise errors.InvalidSettings(
            f"the metrics server cannot listen there: {reason} ({where}); METRICS_PORT=0 takes a free port"
        ) from exc
    process_metrics.read()
    server.start()
    _This.server = server
    _log.info("metrics served", address=server.address)


def depends_on(checks: Mapping[str, readiness.Check]) -> None:
    """Say which servers this process depends on: server → how it is asked for `/readyz`."""
    if _This.server is not None:
        _This.server.readiness = readiness.Readiness(checks)


def address() -> str | None:
    """Return where this process serves its metrics, as `host:port`; None if it does not."""
    return _This.server.address if _This.server is not None else None
