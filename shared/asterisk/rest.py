"""Requests to one Asterisk's REST interface (ARI).

They are bounded in number, time and size per Asterisk, and never repeated. No redirect is followed, only addresses
that the guard allows are connected to, and credentials are sent in the header only.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared import errors
from shared.asterisk import circuit_breaker, http_pool, tcp_connector
from shared.asterisk.endpoint import Configuration

_LONGEST_NAME = 200
#: The message of Asterisk's 500 for an endpoint that it cannot dial (measured, 22.10): it is alive and answers.
NOT_DIALLED = "Allocation failed"
_GONE = frozenset({"Channel not found", "Bridge not found", "Application not found"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request that was made, for the timeline."""

    what: str
    took_ms: float
    answer: str


class RequestBudget(Protocol):
    """The time that a step has left for its requests, and the record of them."""

    def seconds_left(self) -> float:
        """Return how long a request may take. Raises TransientError if none may start any more."""

    def record_request(self, request: RequestRecord) -> None:
        """Add a request that was made."""


class RestClient:
    """Client of one Asterisk, for all threads of a process.

    Args:
        requests_at_once: The largest number of requests in flight; Asterisk allows 100 sessions in all by default.
        connect_seconds: To open a connection.
        read_seconds: For an answer.
        connector: Connects.
        breaker: Its circuit breaker.
    """

    def __init__(
        self, configuration: Configuration, *, requests_at_once: int, connect_seconds: float, read_seconds: float,
        connector: tcp_connector.TcpConnector, breaker: circuit_breaker.CircuitBreaker,
    ) -> None:  # fmt: skip
        self.configuration = configuration
        self._base = urllib.parse.urlsplit(configuration.endpoint).path + "/ari"
        credentials = f"{configuration.user}:{configuration.password}".encode()
        self._headers = {
            "Authorization": "Basic " + base64.b64encode(credentials).decode(),
            "Accept": "application/json",
            "User-Agent": "ari-pipeline",
        }
        self._pool = http_pool.HttpPool(
            configuration.endpoint, ca_bundle=configuration.ca_bundle, max_idle=requests_at_once, connector=connector
        )
        self._permits = threading.BoundedSemaphore(requests_at_once)
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._breaker = breaker

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def request(
        self, budget: RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:  # fmt: skip
        """Make one request, once.

        Args:
            budget: Bounds its time and records it.
            path: Segments below /ari, quoted here: channel ids are chosen by others and may contain `/ ? # %`.

        Returns:
            The answer's JSON; None for 204.

        Raises:
            AsteriskUnreachable: No usable answer.
            AsteriskRefused: A 4xx.
        """
        left = budget.seconds_left()
        # Before the wait for a permit, which is longest just when the breaker is about to open.
        self._breaker.check(budget)
        if not self._permits.acquire(timeout=min(left, self._connect_seconds)):
            raise errors.AsteriskUnreachable("too many requests in flight to this Asterisk", may_have_acted=False)
        try:
            left = budget.seconds_left()
            self._breaker.allow(budget)
            return self._ask(budget, method, path, query, body, left)
        finally:
            self._permits.release()

    def must_probe(self, budget: RequestBudget) -> bool:
        """Whether a harmless request must come first. Raises AsteriskUnreachable while the breaker is open."""
        self._breaker.check(budget)
        return self._breaker.state is not circuit_breaker.State.CLOSED

    def _ask(  # noqa: PLR0917 - the parts of a request, as `request` takes them
        self, budget: RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object,
        left: float,
    ) -> Any:  # fmt: skip
        started = time.monotonic()
        answer, failure = "no answer", "no answer"
        try:
            status, document = self._send(method, path, query, body, left)
            message = plain(document.get("message", "")) if isinstance(document, dict) else ""
            answer = f"{status} {message}".strip() if status >= 400 else str(status)
            # A 4xx shows that the Asterisk is alive, be it 401 or a strange 404.
            failure = f"answered {answer}" if status >= 500 and message != NOT_DIALLED else ""
            return _judge(status, message, document)
        except errors.AsteriskUnreachable as exc:
            answer = str(exc)
            failure = failure and answer
            raise
        finally:
            if failure:
                self._breaker.unanswered(budget, failure)
            else:
                self._breaker.answered()
            took_ms = (time.monotonic() - started) * 1000
            budget.record_request(RequestRecord(what=f"{method} /{'/'.join(path)}", took_ms=took_ms, answer=answer))

    def _send(
        self, method: str, path: Sequence[str], query: Mapping[str, str] | None, body: object, left: float
    ) -> tuple[int, Any]:
        url = "/".join([self._base, *(urllib.parse.quote(segment, safe="") for segment in path)])
        if query:
            url += "?" + urllib.parse.urlencode(query)
        headers, content = self._headers, None
        if body is not None:
            headers, content = headers | {"Content-Type": "application/json"}, json.dumps(body).encode()
        status, answer = self._pool.request(
            method, url, headers, content, connect_seconds=self._connect_seconds, read_seconds=self._read_seconds,
            seconds=min(left, self._connect_seconds + self._read_seconds),
        )  # fmt: skip
        return status, _document(status, answer)


def _judge(status: int, message: str, document: Any) -> Any:
    """Return or raise what an answer means.

    A resource is gone if a 404 names it; every other 404 is a module that is not loaded, or a wrong prefix.
    """
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
            # The page of some other server: it says nothing about the resource.
            raise errors.AsteriskUnreachable("the answer is not JSON") from exc
        return None


def plain(value: object) -> str:
    """Return a name or message of the peer, bounded, without characters that a log or Postgres cannot hold."""
    text = str(value)[:_LONGEST_NAME]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
