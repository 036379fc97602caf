"""One request to an Asterisk's REST interface: the one place that knows `requests`.

Bounded in number, time and size per Asterisk; never repeated; no redirect followed; only to addresses that
the guard lets through; credentials only in the header.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool

from shared import authorities, circuits, endpoints, errors
from shared.core import breaker

#: Asterisk closes an idle connection after 15 s: one that idle is never used for a request that must not be lost.
IDLE_SECONDS = 10.0
_LARGEST_ANSWER = 16 * 1024 * 1024
_LONGEST_NAME = 200
#: What Asterisk says, with a 500, of an endpoint that it cannot dial (measured, 22.10): an answer of one that lives.
NOT_DIALLED = "Allocation failed"
_GONE = frozenset({"Channel not found", "Bridge not found", "Application not found"})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and as whom to ask."""

    endpoint: str
    app: str
    user: str
    password: str = field(repr=False)
    #: For https, whom to trust; None for the system's authorities.
    ca_bundle: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request that was made, for the timeline."""

    what: str
    took_ms: float
    answer: str


class Witness(Protocol):
    """Who is told of each request; raises to forbid one."""

    def seconds_left(self) -> float:
        """How long a request may still take; raises TransientError when none may start."""

    def asked(self, request: Asked) -> None:
        """A request was made."""


class _Timely(io.RawIOBase):
    """Reads a socket until a moment: a time-out of the library's bounds each read, not their sum."""

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


class _TimelyResponse(http.client.HTTPResponse):
    """An answer whose status line, headers and body together take no longer than the connection's time-out."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Timely(sock, self.fp.detach()))


class _Guarded:
    """Connects by the dialer, and takes a pooled connection that was idle for too long for closed."""

    _used_at = 0.0

    def __init__(self, *args: Any, dialer: endpoints.Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        # urllib3 has no other place where the address is known and not connected to yet.
        host = self._dns_host.strip("[]")  # type: ignore[attr-defined]
        return self._dialer.connect(host, self.port, seconds=self.timeout)  # type: ignore[attr-defined]

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        self._used_at = time.monotonic()
        return response

    @property
    def is_connected(self) -> bool:
        idle = time.monotonic() - self._used_at
        return bool(super().is_connected) and idle < IDLE_SECONDS  # type: ignore[misc]


class _HttpConnection(_Guarded, urllib3.connection.HTTPConnection):
    response_class = _TimelyResponse


class _HttpsConnection(_Guarded, urllib3.connection.HTTPSConnection):
    response_class = _TimelyResponse


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts whom our context trusts: requests would add certifi's authorities to it, or take them instead."""

    def __init__(self, *, tls: ssl.SSLContext | None, places: int, dialer: endpoints.Dialer) -> None:
        self._tls = tls
        super().__init__(pool_connections=1, pool_maxsize=places, max_retries=0, pool_block=False)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _pool(urllib3.connectionpool.HTTPConnectionPool, _HttpConnection, dialer),
            "https": _pool(urllib3.connectionpool.HTTPSConnectionPool, _HttpsConnection, dialer),
        }

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, ssl_context=self._tls)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


def _pool(kind: Any, connection: Any, dialer: endpoints.Dialer) -> Any:
    """A kind of pool whose connections are made by the dialer."""
    return type(kind.__name__, (kind,), {"ConnectionCls": functools.partial(connection, dialer=dialer)})


class Asterisk:
    """One Asterisk, for all threads of a process.

    Args:
        requests_at_once: Most requests in flight; Asterisk allows 100 sessions in all by default.
        connect_seconds: To open a connection.
        read_seconds: For an answer.
        dialer: Connects.
        circuit: Its circuit breaker.
    """

    def __init__(
        self, target: Target, *, requests_at_once: int, connect_seconds: float, read_seconds: float,
        dialer: endpoints.Dialer, circuit: circuits.Circuit,
    ) -> None:  # fmt: skip
        self.target = target
        self._base = f"{target.endpoint}/ari"
        credentials = f"{target.user}:{target.password}".encode()
        self._headers = {
            "Authorization": "Basic " + base64.b64encode(credentials).decode(),
            "Accept": "application/json",
            "User-Agent": "ari-pipeline",
        }
        tls = authorities.context(target.ca_bundle) if target.endpoint.startswith("https:") else None
        self._adapter = _Adapter(tls=tls, places=requests_at_once, dialer=dialer)
        self._places = threading.BoundedSemaphore(requests_at_once)
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._circuit = circuit

    def close(self) -> None:
        """Closes the idle connections."""
        self._adapter.close()

    def request(
        self, witness: Witness, method: str, path: Sequence[str], query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:  # fmt: skip
        """Makes one request, once.

        Args:
            witness: Bounds its time and is told of it.
            path: Segments below /ari, quoted here: channel ids are chosen by others and may hold `/ ? # %`.

        Returns:
            The answer's JSON; None for 204.

        Raises:
            AsteriskUnreachable: No usable answer.
            AsteriskRefused: A 4xx.
        """
        left = witness.seconds_left()
        # Before the wait for a place: it is long just when the circuit is about to open.
        self._circuit.check(witness)
        if not self._places.acquire(timeout=min(left, self._connect_seconds)):
            raise errors.AsteriskUnreachable("too many requests in flight to this Asterisk", may_have_acted=False)
        try:
            left = witness.seconds_left()
            self._circuit.enter(witness)
            return self._ask(witness, method, path, query, body, left)
        finally:
            self._places.release()

    def is_in_doubt(self, witness: Witness) -> bool:
        """Whether it has to show first that it answers. Raises AsteriskUnreachable while it is left alone."""
        self._circuit.check(witness)
        return self._circuit.state is not breaker.State.CLOSED

    def _ask(  # noqa: PLR0917 - a request's parts, as `request` takes them
        self, witness: Witness, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object,
        left: float,
    ) -> Any:  # fmt: skip
        started = time.monotonic()
        answer, silence = "no answer", "no answer"
        try:
            status, document = self._send(method, path, query, body, left)
            message = plain(document.get("message", "")) if isinstance(document, dict) else ""
            answer = f"{status} {message}".strip() if status >= 400 else str(status)
            # A 4xx is an answer of one that lives, be it 401 or a strange 404.
            silence = f"answered {answer}" if status >= 500 and message != NOT_DIALLED else ""
            return _judge(status, message, document)
        except errors.AsteriskUnreachable as exc:
            answer = str(exc)
            silence = silence and answer
            raise
        finally:
            if silence:
                self._circuit.unanswered(witness, silence)
            else:
                self._circuit.answered()
            took_ms = (time.monotonic() - started) * 1000
            witness.asked(Asked(what=f"{method} /{'/'.join(path)}", took_ms=took_ms, answer=answer))

    def _send(
        self, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object, left: float
    ) -> tuple[int, Any]:
        url = "/".join([self._base, *(urllib.parse.quote(segment, safe="") for segment in path)])
        prepared = requests.Request(method, url, params=query, json=body, headers=self._headers).prepare()
        total = min(left, self._connect_seconds + self._read_seconds)
        ends_at = time.monotonic() + total
        timeout = urllib3.Timeout(total=total, connect=self._connect_seconds, read=self._read_seconds)
        try:
            response = self._adapter.send(prepared, stream=True, timeout=timeout, verify=True, proxies={})  # type: ignore[arg-type]  # requests takes urllib3's own as well
            with response:
                return response.status_code, _document(response.status_code, _read(response, ends_at))
        except requests.ConnectTimeout as exc:
            # Of the TLS handshake: the dialer tells of its own.
            raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False) from exc
        except requests.Timeout as exc:
            raise errors.AsteriskUnreachable("no answer in time") from exc
        except requests.exceptions.SSLError as exc:
            raise _tls_failed(_root(exc), self.target) from exc
        except requests.ConnectionError as exc:
            raise errors.AsteriskUnreachable(f"connection failed: {type(_root(exc)).__name__}") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise errors.AsteriskUnreachable(f"request failed: {type(exc).__name__}") from exc


def _tls_failed(exc: BaseException, target: Target) -> errors.AsteriskUnreachable:
    """A connection that is cut after the request was sent is an error of TLS as well: only a refused one is certain."""
    if not isinstance(exc, ssl.SSLError):
        return errors.AsteriskUnreachable(f"TLS failed: {type(exc).__name__}")
    why = authorities.complaint(exc, with_bundle=target.ca_bundle is not None)
    return errors.AsteriskUnreachable(why, may_have_acted=not authorities.was_refused(exc))


def _judge(status: int, message: str, document: Any) -> Any:
    """Gone is a 404 that names what is gone; every other 404 is a module not loaded or a wrong prefix."""
    if status < 300:
        return document
    if 400 <= status < 500 and status not in (401, 403, 408, 429) and (status != 404 or message in _GONE):
        raise errors.AsteriskRefused(status, message)
    raise errors.AsteriskUnreachable(f"answered {status} {message}".strip(), may_have_acted=status >= 500)


def _read(response: requests.Response, ends_at: float) -> bytes:
    """The body, bounded in size and in time."""
    chunks, size = [], 0
    for chunk in response.iter_content(65536):
        size += len(chunk)
        if size > _LARGEST_ANSWER:
            raise errors.AsteriskUnreachable("the answer is too large")
        if time.monotonic() > ends_at:
            raise errors.AsteriskUnreachable("the answer took too long")
        chunks.append(chunk)
    return b"".join(chunks)


def _document(status: int, body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        if status < 300:
            # Some other server's page: it says nothing of what was asked for.
            raise errors.AsteriskUnreachable("answered something else than JSON") from exc
        return None


def plain(value: object) -> str:
    """A name or message of the peer's, bounded and without what neither a log nor Postgres can hold."""
    text = str(value)[:_LONGEST_NAME]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _root(exc: BaseException) -> BaseException:
    """What lies at the bottom of the libraries' wrappings."""
    seen: set[int] = set()
    while id(exc) not in seen:
        seen.add(id(exc))
        inner = exc.__cause__ or getattr(exc, "reason", None) or next(
            (arg for arg in exc.args if isinstance(arg, BaseException)), None
        ) or exc.__context__  # fmt: skip
        if not isinstance(inner, BaseException):
            break
        exc = inner
    return exc
