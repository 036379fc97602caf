"""Requests to the platform's quota service: each once, all at the same time, and bounded as a whole.

A service key is in a request's headers or body, and in nothing that is kept or shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import requests
import requests.adapters
import urllib3

from shared import errors
from shared.asterisk import tls

_LARGEST_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request to the quota service."""

    method: str
    #: Below the service's URL.
    path: str
    headers: Mapping[str, str] = field(repr=False)
    #: JSON; None for no body.
    body: Mapping[str, Any] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request."""

    #: None if the service did not answer.
    status: int | None = None
    body: bytes = field(default=b"", repr=False)
    #: Why there is no answer.
    failure: str = ""
    #: The service was not reached, or fell silent; it has not said something that cannot be used.
    is_unreachable: bool = False
    took_ms: float

    @property
    def text(self) -> str:
        """For the timeline."""
        return str(self.status) if self.status is not None else self.failure


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts the system's authorities, as the whole product does; requests would use certifi's."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, ssl_context=tls.context(None))

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


class QuotaClient:
    """Asks the quota service.

    Args:
        url: http(s)://host[:port][/prefix].
        connect_seconds: To open a connection.
        requests_at_once: The largest number of requests in flight.
    """

    def __init__(self, url: str, *, connect_seconds: float, requests_at_once: int) -> None:
        self._url = url.rstrip("/")
        self._connect_seconds = connect_seconds
        self._adapter = _Adapter(max_retries=0, pool_connections=1, pool_maxsize=requests_at_once)
        self._threads = futures.ThreadPoolExecutor(requests_at_once, thread_name_prefix="quota-service")

    def ask(self, questions: Sequence[Question], seconds: float) -> list[Reply]:
        """Ask all questions at the same time, and wait no longer than `seconds`, whatever a request hangs in.

        A name server that does not answer, or an answer that drips, has no time-out of its own.
        """
        ends_at = time.monotonic() + seconds
        asked = [self._threads.submit(self._reply, question, ends_at) for question in questions]
        futures.wait(asked, timeout=seconds)
        late = Reply(failure="no answer in time", is_unreachable=True, took_ms=seconds * 1000)
        return [late if ask.cancel() or not ask.done() else ask.result() for ask in asked]

    def _reply(self, question: Question, ends_at: float) -> Reply:
        started = time.monotonic()
        try:
            status, body = self._send(question, ends_at)
        except errors.QuotaServiceUnreachable as exc:
            return Reply(failure=str(exc), is_unreachable=True, took_ms=(time.monotonic() - started) * 1000)
        took_ms = (time.monotonic() - started) * 1000
        if len(body) > _LARGEST_ANSWER:
            return Reply(failure="the answer is too large", took_ms=took_ms)
        return Reply(status=status, body=body, took_ms=took_ms)

    def _send(self, question: Question, ends_at: float) -> tuple[int, bytes]:
        """Make one request, once; follow no redirect."""
        left = ends_at - time.monotonic()
        if left <= 0:
            raise errors.QuotaServiceUnreachable("no answer in time")
        headers = {name: value.encode() for name, value in question.headers.items()}
        headers |= {"Accept-Encoding": b"identity", "User-Agent": b"ari-pipeline"}
        try:
            request = requests.Request(question.method, self._url + question.path, json=question.body, headers=headers)
            timeout = (min(left, self._connect_seconds), left)
            with self._adapter.send(
                request.prepare(), stream=True, timeout=timeout, verify=True, proxies={}
            ) as response:
                return response.status_code, response.raw.read(_LARGEST_ANSWER + 1, decode_content=False)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as exc:
            raise errors.QuotaServiceUnreachable("no answer in time") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise errors.QuotaServiceUnreachable(f"request failed: {type(exc).__name__}") from exc
