"""What the platform's quota service is asked in each of its contracts, and what its answers mean. Nothing is sent here.

`2026-02` asks for the credits of each service key before there is a run. The newest layout asks about a run: a
self-hosted platform (`oss`) by the keys, the platform's own installation (`hosted`) by the organization's account. A
managed configuration needs a correlation id for the run in either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from shared.call import facts
from shared.call.states import Cause
from shared.platform.dograh.quota_client import Question, Reply
from shared.platform.ports import Account, RunAccount

Contract = Literal["2026-02", "oss", "hosted"]

#: The least credits that pay for a call: the platform's rule.
MINIMUM_CREDITS = 0.10
_KEYS = "/api/v1/service-keys"
USAGE = f"{_KEYS}/usage"
_OWN_USAGE = f"{_KEYS}/usage/self"
_OWN_AUTHORIZATION = f"{_KEYS}/run-authorization/self"
_OWN_CORRELATION = f"{_KEYS}/correlation-id/self"

_USED_UP = facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an answer means."""

    refused: facts.Refused | None = None
    #: Why the answer says nothing.
    failure: str = ""
    is_unreachable: bool = False
    correlation_id: str | None = None


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def usage(account: Account, secret: str | None) -> list[Question]:
    """Ask for each key of a user, in the contract of 2026-02.

    Args:
        secret: Authenticates us; None for a self-hosted platform, where each request names the user instead.
    """
    name, value = ("X-Secret-Key", secret) if secret else ("X-Created-By", account.provider_id)
    return [
        Question(method="POST", path=USAGE, headers={name: value}, body={"service_key": key})
        for key in account.service_keys
    ]


def own_usage(keys: tuple[str, ...]) -> list[Question]:
    """Ask for each key by the key itself."""
    return [Question(method="GET", path=_OWN_USAGE, headers=_bearer(key)) for key in keys]


def own_authorization(account: RunAccount, key: str) -> Question:
    """Ask for a run of a managed configuration, on a self-hosted platform."""
    return Question(
        method="POST",
        path=_OWN_AUTHORIZATION,
        headers=_bearer(key),
        body={
            "workflow_run_id": account.workflow_run_id,
            "require_correlation_id": True,
            "minimum_credits": MINIMUM_CREDITS,
            "metadata": {"workflow_id": account.workflow_id},
        },
    )


def own_correlation(account: RunAccount, key: str) -> Question:
    """Ask for the correlation id alone: a service that has no authorization by key yet."""
    body = {"workflow_run_id": account.workflow_run_id}
    return Question(method="POST", path=_OWN_CORRELATION, headers=_bearer(key), body=body)


def authorization(account: RunAccount, secret: str | None) -> Question:
    """Ask for a run by its organization's account, on the hosted platform."""
    headers = {"X-Organization-Id": str(account.organization_id)}
    return Question(
        method="POST",
        path=f"/api/v1/billing/accounts/{account.organization_id}/run-authorization",
        headers=headers | ({"X-Secret-Key": secret} if secret else {}),
        body={
            "workflow_run_id": account.workflow_run_id,
            "service_key": account.service_keys[0] if account.is_managed else None,
            "require_correlation_id": account.is_managed,
            "metadata": {"dograh_user_id": str(account.user_id), "workflow_id": account.workflow_id},
            "minimum_credits": MINIMUM_CREDITS,
        },
    )


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ── what the answers mean ────────────────────────────────────────────────────────────────────────────────────────────


def judge_usage(reply: Reply) -> Meaning:
    """Judge the credits of one key."""
    answer = _read(reply)
    if isinstance(answer, Meaning):
        return answer
    left = _number(answer.get("remaining_credits"))
    if left is None:
        return Meaning(failure="the answer has no remaining_credits")
    # Not `<`, which would let NaN through.
    return Meaning() if left >= MINIMUM_CREDITS else Meaning(refused=_USED_UP)


def judge_authorization(reply: Reply, *, needs_correlation: bool) -> Meaning:
    """Judge the authorization of a run."""
    answer = _read(reply)
    if isinstance(answer, Meaning):
        return answer
    left = _written_number(answer.get("remaining_credits")) or 0.0
    if answer.get("allowed") is not True or not left >= MINIMUM_CREDITS:
        return Meaning(refused=_USED_UP)
    return _correlation(answer) if needs_correlation else Meaning(correlation_id=_correlation(answer).correlation_id)


def judge_correlation(reply: Reply) -> Meaning:
    """Judge the answer with a correlation id."""
    answer = _read(reply)
    return answer if isinstance(answer, Meaning) else _correlation(answer)


def _correlation(answer: dict[str, object]) -> Meaning:
    found = answer.get("correlation_id")
    if not isinstance(found, str) or not found.strip():
        return Meaning(failure="the answer has no correlation_id")
    return Meaning(correlation_id=found.strip())


def _read(reply: Reply) -> dict[str, object] | Meaning:
    """Return the answer's JSON object; or the meaning, if it has none."""
    if reply.status is None:
        return Meaning(failure=reply.failure, is_unreachable=reply.is_unreachable)
    if 400 <= reply.status < 500 and reply.status not in (408, 429):
        reason = f"the quota service declined: {reply.status}"
        return Meaning(refused=facts.Refused(reason=reason, hangup_cause=Cause.NOT_ALLOWED))
    if not 200 <= reply.status < 300:
        return Meaning(failure=f"answered {reply.status}")
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):
        return Meaning(failure="the answer is not JSON")
    return answer if isinstance(answer, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A number of a thousand digits is more than enough.
    return float(min(value, 1e12))


def _written_number(value: object) -> float | None:
    """Return a number that may be written as text, as the credits of an account are."""
    if not isinstance(value, str):
        return _number(value)
    try:
        return float(value)
    except ValueError:
        return None
