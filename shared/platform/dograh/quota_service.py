"""The adapter `http` of the quota port: asks the platform's quota service for the credits of a user's service keys.

The contract is that of the platform's layout 2026-02. A key goes into the request's body and nowhere else.
"""

from __future__ import annotations

import json
import time
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import requests
import requests.adapters
import structlog
import urllib3

from shared import errors
from shared.asterisk import rest, tls
from shared.call import facts
from shared.call.calls import Call, Cause
from shared.call.limits import Limits
from shared.platform import dograh

PATH = "/api/v1/service-keys/usage"
#: Fewer credits than this do not pay for a call: the platform's own rule.
MINIMUM_CREDITS = 0.10
_LARGEST_ANSWER = 64 * 1024

log = structlog.stdlib.get_logger(__name__)


class Accounts(Protocol):
    """Who pays for calls. `dograh.Accounts` is the adapter."""

    def account(self, user_id: int) -> dograh.Account:
        """Raises InvalidConfiguration when there is no such user, or its configuration cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What asking for one key came to."""

    #: In words, for the timeline.
    said: str
    took_ms: float
    refused: facts.Refused | None = None
    is_usable: bool = True


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts the system's authorities, as everything here does: requests would take certifi's."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, ssl_context=tls.context(None))

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


class QuotaService:
    """Refuses a call that the user's credits do not pay for.

    Args:
        limits: The bounds of time: of the step, and to connect.
        url: http(s)://host[:port][/prefix].
        secret: By which the service knows us; None for a self-hosted platform, whose service is told the user instead.
        when_unreachable: Whether no usable answer refuses the call or lets it through.
        requests_at_once: Most requests in flight.
    """

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

    def refusal(self, call: Call, *, user_id: int, budget: rest.RequestBudget) -> facts.Refused | None:
        """Why the call may not be served; None when it may, or when nothing of it is paid for in credits."""
        try:
            account = self._accounts.account(user_id)
        except errors.InvalidConfiguration as exc:
            return facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED)
        if not account.service_keys:
            return None
        # What is left of the claim after this is for storing the decision.
        seconds = min(self._limits.quota_seconds, budget.seconds_left() - self._limits.database_seconds)
        answers = self._ask_all(account, max(0.0, seconds))
        for answer in answers:
            budget.asked(rest.RequestRecord(what=f"POST {PATH}", took_ms=answer.took_ms, answer=answer.said))
        return self._judge(answers)

    def _judge(self, answers: list[_Answer]) -> facts.Refused | None:
        """One key that does not pay is enough, whatever the others came to."""
        refused = next((answer.refused for answer in answers if answer.refused is not None), None)
        failure = next((answer.said for answer in answers if not answer.is_usable), None)
        if refused is not None or failure is None:
            return refused
        log.warning("quota service unreachable", reason=failure, call="refused" if self._refuses_unknown else "served")
        if not self._refuses_unknown:
            return None
        return facts.Refused(reason=f"quota service unreachable: {failure}", hangup_cause=Cause.CONGESTION)

    def _ask_all(self, account: dograh.Account, seconds: float) -> list[_Answer]:
        """Asks for every key at the same time. Waits no longer, whatever a request hangs in: a name server, a drip."""
        ends_at = time.monotonic() + seconds
        asked = [self._threads.submit(self._ask, account.provider_id, key, ends_at) for key in account.service_keys]
        futures.wait(asked, timeout=seconds)
        late = _Answer(said="no answer in time", took_ms=seconds * 1000, is_usable=False)
        return [late if ask.cancel() or not ask.done() else ask.result() for ask in asked]

    def _ask(self, provider_id: str, key: str, ends_at: float) -> _Answer:
        started = time.monotonic()
        try:
            status, body = self._post(provider_id, key, ends_at)
            refused, said, is_usable = _verdict(status, body), str(status), True
        except errors.QuotaServiceUnreachable as exc:
            refused, said, is_usable = None, str(exc), False
        took_ms = (time.monotonic() - started) * 1000
        return _Answer(said=said, took_ms=took_ms, refused=refused, is_usable=is_usable)

    def _post(self, provider_id: str, key: str, ends_at: float) -> tuple[int, bytes]:
        """One request, once; no redirect is followed."""
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


def _verdict(status: int, body: bytes) -> facts.Refused | None:
    """What an answer says of a key. Raises QuotaServiceUnreachable when it says nothing."""
    if 400 <= status < 500 and status not in (408, 429):
        return facts.Refused(reason=f"the quota service declined: {status}", hangup_cause=Cause.NOT_ALLOWED)
    if not 200 <= status < 300:
        raise errors.QuotaServiceUnreachable(f"answered {status}")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise errors.QuotaServiceUnreachable("answered something else than JSON") from exc
    left = answer.get("remaining_credits") if isinstance(answer, dict) else None
    if isinstance(left, bool) or not isinstance(left, int | float):
        raise errors.QuotaServiceUnreachable("answered without remaining_credits")
    # Not `<`: what is no number (NaN) pays for nothing.
    if not left >= MINIMUM_CREDITS:
        return facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
    return None
