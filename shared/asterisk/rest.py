"""Requests to one Asterisk's REST interface (ARI).

They are bounded in number, time, size and processor time per Asterisk, and never repeated. Those of one round are made
at the same time, by one thread. No redirect is followed, only addresses that the guard allows are connected to, and
credentials are sent in the header only.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from shared import errors, ongoing, token_bucket
from shared.asterisk import answer_json, circuit_breaker, http_pool, tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.asterisk.sessions import Sessions

_T_co = TypeVar("_T_co", covariant=True)

_LONGEST_NAME = 200
#: What needs no quoting: most ids and values, at a tenth of the price of looking at each character.
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")
#: What a path may contain besides letters and digits.
_PATH_CHARACTERS = "/%-._~!$&'()*+,;=:@"
#: The message of Asterisk's 500 for an endpoint that it cannot dial (measured, 22.10): it is alive and answers.
NOT_DIALLED = "Allocation failed"
_GONE = frozenset({"Channel not found", "Bridge not found", "Application not found"})
#: Name of the timeline's entry for a connection whose user may not do what was asked (403): it may only read, say.
DENIED = "RequestDenied"
#: While that goes on, it is written again this often.
DENIED_SECONDS = 30.0
#: Processor time that the answers of one Asterisk may take at once, in seconds: those of a resync of a large one.
_BURST_SECONDS = 0.25


class AnswerKind(StrEnum):
    """What an answer is about."""

    #: A channel, a bridge, a refusal.
    ONE = "one"
    #: Our app, with the ids of its channels and bridges.
    APP = "app"
    #: All bridges, or all modules, of the Asterisk.
    LIST = "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBounds:
    """What the answers of one Asterisk may cost this process."""

    #: Kind → the largest answer, in bytes. 2 MiB are 5,000 bridges.
    bytes: Mapping[AnswerKind, int] = field(
        default_factory=lambda: {AnswerKind.ONE: 2**16, AnswerKind.APP: 2**18, AnswerKind.LIST: 2**21}
    )
    #: The share of one processor that reading them may take.
    processor_share: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[_T_co]):
    """One request, and what its answer comes to. Nothing is sent before `RestClient` gets it."""

    method: str
    #: Segments below /ari, quoted when sent: channel ids are chosen by others and may contain `/ ? # %`.
    path: tuple[str, ...]
    #: Its values are quoted when sent; its names are sent as they are.
    query: Mapping[str, str] | None = None
    #: Sent as JSON, unless it is None.
    body: object = None
    #: Bounds the size of its answer.
    answer: AnswerKind = AnswerKind.ONE
    #: Returns what the answer's JSON says. Raises AsteriskUnreachable if it is not of the form that was asked for.
    read: Callable[[Any], _T_co]
    #: Status of a refusal → its result: that a resource is already gone is an outcome, never an error.
    outcomes: Mapping[int, _T_co] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """The request in the timeline: without its query, which may hold a token."""
        return f"{self.method} /{'/'.join(self.path)}"

    @property
    def route(self) -> str:
        """Its path without the id that follows the kind of resource: `/channels/{id}/answer`."""
        kind, *rest = self.path
        if rest and rest[0] != "externalMedia":
            rest[0] = "{id}"
        return "/".join(("", kind, *rest))

    @property
    def channel(self) -> str:
        """The channel that it is about; an empty text if it is about none, or creates one."""
        return self.path[1] if self.path[0] == "channels" and self.path[1:] not in ((), ("externalMedia",)) else ""


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


#: Called with each request that was made, its answer's status (None: no usable answer), and how long it took, in s.
OnAnswer = Callable[[Request[Any], int | None, float], None]


def _unobserved(_request: Request[Any], _status: int | None, _seconds: float) -> None:
    """Observe nothing."""


class RestClient:
    """Client of one Asterisk, for all threads of a process.

    Args:
        requests_at_once: The largest number of requests of the tenant in flight.
        connect_seconds: To open a connection.
        read_seconds: For an answer.
        connector: Connects.
        breaker: Its circuit breaker.
        bounds: Of its answers.
        sessions: Those of the Asterisk, which other tenants may share; if None, it has none but these requests.
        tenant: Whose requests these are.
        on_denied: Called with an answer 403, and again every DENIED_SECONDS while there are more.
        on_answer: Called with each request; raises nothing.
    """

    def __init__(
        self, configuration: Configuration, *, requests_at_once: int, connect_seconds: float, read_seconds: float,
        connector: tcp_connector.TcpConnector, breaker: circuit_breaker.CircuitBreaker,
        bounds: AnswerBounds = AnswerBounds(), sessions: Sessions | None = None, tenant: object = None,
        on_denied: Callable[[str], None] | None = None, on_answer: OnAnswer = _unobserved,
    ) -> None:  # fmt: skip
        self._on_answer = on_answer
        self.configuration = configuration
        path = urllib.parse.urlsplit(configuration.endpoint).path
        self._base = urllib.parse.quote(path, safe=_PATH_CHARACTERS) + "/ari"
        credentials = f"{configuration.user}:{configuration.password}".encode()
        headers = {
            "Authorization": "Basic " + base64.b64encode(credentials).decode(),
            "Accept": "application/json",
            "User-Agent": "ari-pipeline",
        }
        self._requests_at_once = requests_at_once
        self._sessions = sessions or Sessions(lambda: requests_at_once)
        self._tenant = tenant
        self._pool = http_pool.HttpPool(
            configuration.endpoint, headers, ca_bundle=configuration.ca_bundle, max_idle=requests_at_once,
            connector=connector, sessions=self._sessions, tenant=tenant,
        )  # fmt: skip
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._breaker = breaker
        self._bounds = bounds
        #: The last answer was 401: the password may have been changed.
        self.is_unauthorized = False
        self._on_denied = on_denied
        self._denied_at = float("-inf")
        self._lock = threading.Lock()
        #: Seconds of processor time.
        self._processor = token_bucket.TokenBucket(per_second=bounds.processor_share, burst=_BURST_SECONDS)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def close_unused(self) -> None:
        """Close the connections that were idle for too long."""
        self._pool.close_unused()

    def request_all(self, budget: RequestBudget, requests: Sequence[Request[Any]]) -> list[Any]:
        """Make several requests at the same time, each once.

        If fewer are permitted at once, they are made in several rounds. No round waits while it holds a permit, so two
        steps never wait for each other.

        Args:
            budget: Bounds their time and records them.

        Returns:
            For each, in the order given: the answer's JSON (None for 204), or the PipelineError it came to.
            AsteriskUnreachable means no usable answer, AsteriskRefused a 4xx.
        """
        results: list[Any] = []
        permitted_by = time.monotonic() + self._connect_seconds
        while len(results) < len(requests):
            results += self._round(budget, requests[len(results) :], permitted_by)
        return results

    def _round(self, budget: RequestBudget, requests: Sequence[Request[Any]], permitted_by: float) -> list[Any]:
        """Make as many of the requests as are permitted at once; if none can be made, return the reason for each."""
        permits = 0
        try:
            # Before the wait for a permit, which is longest just when the breaker is about to open.
            self._breaker.check(budget)
            permitted_by = min(permitted_by, time.monotonic() + budget.seconds_left())
            self._pay(permitted_by)
            permits = self._acquire(len(requests), permitted_by)
            left = budget.seconds_left()
            self._breaker.allow(budget)
            with ongoing.task("Asterisk", bound_seconds=left):
                return self._exchange(budget, requests[:permits], left)
        except errors.PipelineError as exc:
            return [exc] * len(requests)
        finally:
            if permits:
                self._sessions.release(self._tenant, permits)

    def _pay(self, until: float) -> None:
        """Wait until the processor time of earlier answers is paid for.

        So a step of an Asterisk whose answers are costly takes long: the broker counts its tenant as slow.
        """
        now = time.monotonic()
        with self._lock:
            wait_seconds = self._processor.wait_seconds(now)
        if now + wait_seconds > until:
            reason = "its answers have taken too much processor time"
            raise errors.AsteriskUnreachable(reason, may_have_acted=False)
        if wait_seconds:
            time.sleep(wait_seconds)

    def _acquire(self, wanted: int, until: float) -> int:
        """Wait for one permit and take the others that are free; return how many these are."""
        permits = self._sessions.acquire(self._tenant, wanted=wanted, at_once=self._requests_at_once, until=until)
        if not permits:
            raise errors.AsteriskUnreachable("too many requests in flight to this Asterisk", may_have_acted=False)
        return permits

    def _exchange(self, budget: RequestBudget, requests: Sequence[Request[Any]], left: float) -> list[Any]:
        started = time.monotonic()
        exchanges = self._pool.send_all(
            [self._encoded(request) for request in requests], connect_seconds=self._connect_seconds,
            read_seconds=self._read_seconds, seconds=min(left, self._connect_seconds + self._read_seconds),
            still_may=budget.seconds_left,
        )  # fmt: skip
        used_before = time.thread_time()
        try:
            return [
                self._result(budget, request, exchange, started)
                for request, exchange in zip(requests, exchanges, strict=True)
            ]
        finally:
            for exchange in exchanges:
                exchange.close()
            with self._lock:
                self._processor.take(time.thread_time() - used_before, time.monotonic())

    @property
    def is_cut_off(self) -> bool:
        """True while its circuit breaker is open, or was until lately: without a request nothing closes it."""
        return self._breaker.is_open_lately

    def must_probe(self, budget: RequestBudget) -> bool:
        """Whether a harmless request must come first. Raises AsteriskUnreachable while the breaker is open."""
        self._breaker.check(budget)
        return self._breaker.state is not circuit_breaker.State.CLOSED

    def _result(
        self, budget: RequestBudget, request: Request[Any], exchange: http_pool.Exchange, started: float
    ) -> Any:
        """Return what one answer says, or the error it came to; record the request, and tell the breaker."""
        answer, failure, status = "no answer", "no answer", None
        try:
            received = exchange.answer()
            status, document = received.status, _document(received.status, received.body)
            self.is_unauthorized = status == 401
            message = plain(document.get("message", "")) if isinstance(document, dict) else ""
            answer = f"{status} {message}".strip() if status >= 400 else str(status)
            if status == 403:
                self._note_denied(answer)
            # A 4xx shows that the Asterisk is alive, be it 401 or a strange 404.
            failure = f"answered {answer}" if status >= 500 and message != NOT_DIALLED else ""
            return _judge(status, message, document)
        except errors.AsteriskUnreachable as exc:
            answer = str(exc)
            failure = failure and answer
            return exc
        except errors.PipelineError as exc:
            return exc
        finally:
            if failure:
                self._breaker.unanswered(budget, failure)
            else:
                self._breaker.answered()
            took_ms = (time.monotonic() - started) * 1000
            self._on_answer(request, status, took_ms / 1000)
            budget.record_request(RequestRecord(what=request.what, took_ms=took_ms, answer=answer))

    def _note_denied(self, answer: str) -> None:
        now = time.monotonic()
        with self._lock:
            is_due = now - self._denied_at >= DENIED_SECONDS
            if is_due:
                self._denied_at = now
        if is_due and self._on_denied is not None:
            self._on_denied(answer)

    def _encoded(self, request: Request[Any]) -> http_pool.HttpRequest:
        target = "/".join([self._base, *map(_quoted, request.path)])
        if request.query:
            target += "?" + "&".join(f"{name}={_quoted(value)}" for name, value in request.query.items())
        body = None if request.body is None else json.dumps(request.body).encode()
        return http_pool.HttpRequest(
            method=request.method, target=target, body=body, largest_answer=self._bounds.bytes[request.answer]
        )


def _judge(status: int, message: str, document: Any) -> Any:
    """Return or raise what an answer means.

    A resource is gone if a 404 names it; every other 404 is a module that is not loaded, or a wrong prefix.
    """
    if status < 300:
        return document
    if 400 <= status < 500 and status not in (401, 403, 408, 429) and (status != 404 or message in _GONE):
        raise errors.AsteriskRefused(status, message)
    # A 408 is a proxy's, which may have passed the request on.
    may_have_acted = status >= 500 or status == 408
    raise errors.AsteriskUnreachable(f"answered {status} {message}".strip(), may_have_acted=may_have_acted)


def _document(status: int, body: bytes) -> Any:
    if not body:
        return None
    try:
        return answer_json.parse(body)
    except errors.AsteriskUnreachable:
        if status < 300:
            raise
        return None


def _quoted(text: str) -> str:
    """Return a segment of a path, or a value of a query, as it may stand there."""
    return text if _UNRESERVED.fullmatch(text) else urllib.parse.quote(text, safe="")


def plain(value: object) -> str:
    """Return a name or message of the peer, bounded, without characters that a log or Postgres cannot hold."""
    text = str(value)[:_LONGEST_NAME]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
