"""One request to an Asterisk's REST interface.

Bounded in number, time and size per Asterisk; never repeated; no redirect followed; only to addresses that
the guard lets through; credentials only in the header.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared import errors
from shared.asterisk import breaker, circuit_breaker, http_pool, tcp_connector

_LONGEST_NAME = 200
#: What Asterisk says, with a 500, of an endpoint that it cannot dial (measured, 22.10): an answer of one that lives.
NOT_DIALLED = "Allocation failed"
_GONE = frozenset({"Channel not found", "Bridge not found", "Application not found"})


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
class RequestRecord:
    """One request that was made, for the timeline."""

    what: str
    took_ms: float
    answer: str


class RequestBudget(Protocol):
    """Who is told of each request; raises to forbid one."""

    def seconds_left(self) -> float:
        """How long a request may still take; raises TransientError when none may start."""

    def asked(self, request: RequestRecord) -> None:
        """A request was made."""


class Asterisk:
    """One Asterisk, for all threads of a process.

    Args:
        requests_at_once: Most requests in flight; Asterisk allows 100 sessions in all by default.
        connect_seconds: To open a connection.
        read_seconds: For an answer.
        connector: Connects.
        circuit: Its circuit breaker.
    """

    def __init__(
        self, target: Target, *, requests_at_once: int, connect_seconds: float, read_seconds: float,
        connector: tcp_connector.TcpConnector, circuit: circuit_breaker.Circuit,
    ) -> None:  # fmt: skip
        self.target = target
        self._base = urllib.parse.urlsplit(target.endpoint).path + "/ari"
        credentials = f"{target.user}:{target.password}".encode()
        self._headers = {
            "Authorization": "Basic " + base64.b64encode(credentials).decode(),
            "Accept": "application/json",
            "User-Agent": "ari-pipeline",
        }
        self._exchanges = http_pool.HttpPool(
            target.endpoint, ca_bundle=target.ca_bundle, kept=requests_at_once, connector=connector
        )
        self._places = threading.BoundedSemaphore(requests_at_once)
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._circuit = circuit

    def close(self) -> None:
        """Closes the idle connections."""
        self._exchanges.close()

    def request(
        self, budget: RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None = None,
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
        left = budget.seconds_left()
        # Before the wait for a place: it is long just when the circuit is about to open.
        self._circuit.check(budget)
        if not self._places.acquire(timeout=min(left, self._connect_seconds)):
            raise errors.AsteriskUnreachable("too many requests in flight to this Asterisk", may_have_acted=False)
        try:
            left = budget.seconds_left()
            self._circuit.enter(budget)
            return self._ask(budget, method, path, query, body, left)
        finally:
            self._places.release()

    def must_probe(self, budget: RequestBudget) -> bool:
        """Whether it has to show first that it answers. Raises AsteriskUnreachable while it is left alone."""
        self._circuit.check(budget)
        return self._circuit.state is not breaker.State.CLOSED

    def _ask(  # noqa: PLR0917 - a request's parts, as `request` takes them
        self, budget: RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object,
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
                self._circuit.unanswered(budget, silence)
            else:
                self._circuit.answered()
            took_ms = (time.monotonic() - started) * 1000
            budget.asked(RequestRecord(what=f"{method} /{'/'.join(path)}", took_ms=took_ms, answer=answer))

    def _send(
        self, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object, left: float
    ) -> tuple[int, Any]:
        url = "/".join([self._base, *(urllib.parse.quote(segment, safe="") for segment in path)])
        if query:
            url += "?" + urllib.parse.urlencode(query)
        headers, content = self._headers, None
        if body is not None:
            headers, content = headers | {"Content-Type": "application/json"}, json.dumps(body).encode()
        status, answer = self._exchanges.exchange(
            method, url, headers, content, connect_seconds=self._connect_seconds, read_seconds=self._read_seconds,
            seconds=min(left, self._connect_seconds + self._read_seconds),
        )  # fmt: skip
        return status, _document(status, answer)


def _judge(status: int, message: str, document: Any) -> Any:
    """Gone is a 404 that names what is gone; every other 404 is a module not loaded or a wrong prefix."""
    if status < 300:
        return document
    if 400 <= status < 500 and status not in (401, 403, 408, 429) and (status != 404 or message in _GONE):
        raise errors.AsteriskRefused(status, message)
    raise errors.AsteriskUnreachable(f"answered {status} {message}".strip(), may_have_acted=status >= 500)


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
