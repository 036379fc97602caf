"""The adapter for QUOTA=http: asks the platform's quota service for the credits of a user's service keys.

The contract is that of the platform's layout 2026-02. A key goes into the request's body and nowhere else.
"""

from __future__ import annotations

import json
import time
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Literal

import requests
import requests.adapters
import structlog
import urllib3

from shared import errors
from shared.asterisk import rest, tls
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Cause
from shared.platform.ports import Account, Accounts

PATH = "/api/v1/service-keys/usage"
#: The least credits that pay for a call: the platform's rule.
MINIMUM_CREDITS = 0.10
_LARGEST_ANSWER = 64 * 1024

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The result of the request for one key."""

    #: For the timeline.
    text: str
    took_ms: float
    refused: facts.Refused | None = None
    is_usable: bool = True


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts the system's authorities, as the whole product does; requests would use certifi's."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, ssl_context=tls.context(None))

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


class QuotaService:
    """Refuses a call for which the user's credits are used up.

    Args:
        limits: The time limits of the step and of connecting.
        url: http(s)://host[:port][/prefix].
        secret: Authenticates us; None for a self-hosted platform, where each request names the user instead.
        when_unreachable: Whether a call is refused or allowed if there is no usable answer.
        requests_at_once: The largest number of requests in flight.
    """

    asks_network = True

    def __init__(
        self,
        accounts: Accounts,
        limits: Limits,
        *,
        url: str,
        secret: str | None,
        when_unreachable: Literal["refuse", "allow"],
        requests_at_once: int,
    ) -> None:
        self._accounts = accounts
        self._limits = limits
        self._url = url.rstrip("/") + PATH
        self._secret = secret
        self._refuses_unknown = when_unreachable == "refuse"
        self._adapter = _Adapter(max_retries=0, pool_connections=1, pool_maxsize=requests_at_once)
        self._threads = futures.ThreadPoolExecutor(requests_at_once, thread_name_prefix="quota-service")

    def refusal(
        self, call: Call, *, user_id: int, budget: rest.RequestBudget, quota: object = None
    ) -> facts.Refused | None:
        """Return why the call may not be served; None if it may, also if it uses no service paid for in credits."""
        try:
            account = self._accounts.account(user_id)
        except errors.InvalidConfiguration as exc:
            return facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED)
        if not account.service_keys:
            return None
        # The rest of the claim's time is for storing the decision.
        seconds = min(self._limits.quota_seconds, budget.seconds_left() - self._limits.database_seconds)
        answers = self._ask_all(account, max(0.0, seconds))
        for answer in answers:
            budget.record_request(rest.RequestRecord(what=f"POST {PATH}", took_ms=answer.took_ms, answer=answer.text))
        return self._judge(answers)

    def _judge(self, answers: list[_Answer]) -> facts.Refused | None:
        """One key without credits is enough to refuse, regardless of the others."""
        refused = next((answer.refused for answer in answers if answer.refused is not None), None)
        failure = next((answer.text for answer in answers if not answer.is_usable), None)
        if refused is not None or failure is None:
            return refused
        log.warning("quota service unreachable", reason=failure, call="refused" if self._refuses_unknown else "allowed")
        if not self._refuses_unknown:
            return None
        return facts.Refused(reason=f"quota service unreachable: {failure}", hangup_cause=Cause.CONGESTION)

    def _ask_all(self, account: Account, seconds: float) -> list[_Answer]:
        """Ask for every key at the same time, and wait no longer than `seconds`, whatever a request hangs in.

        A name server that does not answer, or an answer that drips, has no time-out of its own.
        """
        ends_at = time.monotonic() + seconds
        asked = [self._threads.submit(self._ask, account.provider_id, key, ends_at) for key in account.service_keys]
        futures.wait(asked, timeout=seconds)
        late = _Answer(text="no answer in time", took_ms=seconds * 1000, is_usable=False)
        return [late if ask.cancel() or not ask.done() else ask.result() for ask in asked]

    def _ask(self, provider_id: str, key: str, ends_at: float) -> _Answer:
        started = time.monotonic()
        try:
            status, body = self._post(provider_id, key, ends_at)
            refused, text, is_usable = _judge_answer(status, body), str(status), True
        except errors.QuotaServiceUnreachable as exc:
            refused, text, is_usable = None, str(exc), False
        took_ms = (time.monotonic() - started) * 1000
        return _Answer(text=text, took_ms=took_ms, refused=refused, is_usable=is_usable)

    def _post(self, provider_id: str, key: str, ends_at: float) -> tuple[int, bytes]:
        """Make one request, once; follow no redirect."""
        left = ends_at - time.monotonic()
        if left <= 0:
            raise errors.QuotaServiceUnreachable("no answer in time")
        name, value = ("X-Secret-Key", self._secret) if self._secret else ("X-Created-By", provider_id)
        headers = {name: value.encode(), "Accept-Encoding": "identity", "User-Agent": "ari-pipeline"}
        try:
            prepared = requests.Request("POST", self._url, json={"service_key": key}, headers=headers).prepare()
            timeout = (min(left, self._limits.connect_seconds), left)
            with self._adapter.send(prepared, stream=True, timeout=timeout, verify=True, proxies={}) as response:
                body = response.raw.read(_LARGEST_ANSWER + 1, decode_content=False)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as exc:
            raise errors.QuotaServiceUnreachable("no answer in time") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise errors.QuotaServiceUnreachable(f"request failed: {type(exc).__name__}") from exc
        if len(body) > _LARGEST_ANSWER:
            raise errors.QuotaServiceUnreachable("the answer is too large")
        return response.status_code, body


def _judge_answer(status: int, body: bytes) -> facts.Refused | None:
    """Return the refusal that an answer means, or None. Raises QuotaServiceUnreachable if it means nothing."""
    if 400 <= status < 500 and status not in (408, 429):
        return facts.Refused(reason=f"the quota service declined: {status}", hangup_cause=Cause.NOT_ALLOWED)
    if not 200 <= status < 300:
        raise errors.QuotaServiceUnreachable(f"answered {status}")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise errors.QuotaServiceUnreachable("the answer is not JSON") from exc
    left = answer.get("remaining_credits") if isinstance(answer, dict) else None
    if isinstance(left, bool) or not isinstance(left, int | float):
        raise errors.QuotaServiceUnreachable("the answer has no remaining_credits")
    # Not `<`, which would let NaN through.
    if not left >= MINIMUM_CREDITS:
        return facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
    return None
