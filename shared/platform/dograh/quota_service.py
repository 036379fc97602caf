"""The adapter for QUOTA=http: asks the platform's quota service for the credits that a call is paid from.

Each layout of the platform has its contract (`quota_contracts.py`). In 2026-02 a call is judged before it has a run, by
the keys of the workflow's user; in the newest layout once it has one, by the organization's model configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import structlog

from shared import errors
from shared.asterisk import rest
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Cause
from shared.platform.dograh import quota_contracts as contracts
from shared.platform.dograh.quota_client import Question, QuotaClient, Reply
from shared.platform.dograh.quota_contracts import Contract, Meaning
from shared.platform.ports import Accounts, RunAccount

#: What the setting QUOTA_UNREACHABLE may say; `platform`: as the platform does in this contract.
WhenUnreachable = Literal["platform", "refuse", "allow"]

log = structlog.stdlib.get_logger(__name__)


class QuotaService:
    """Refuses a call that nothing pays for.

    Args:
        limits: The time limits of the step.
        secret: Authenticates us; None for a self-hosted platform.
        contract: `auto`: by the layout of the platform's tables, and hosted if there is a secret.
        when_unreachable: Whether a call is refused or allowed if there is no usable answer.
    """

    asks_network = True

    def __init__(
        self,
        accounts: Accounts,
        client: QuotaClient,
        limits: Limits,
        *,
        secret: str | None,
        contract: Contract | Literal["auto"] = "auto",
        when_unreachable: WhenUnreachable = "platform",
    ) -> None:
        self._accounts = accounts
        self._client = client
        self._limits = limits
        self._secret = secret
        self._contract = contract
        self._when_unreachable = when_unreachable

    def is_about_runs(self) -> bool:
        """Return whether a call is judged once it has its run."""
        return self._contract != "2026-02" and (self._contract != "auto" or self._accounts.is_newest())

    def refusal(
        self, call: Call, *, user_id: int, budget: rest.RequestBudget, quota: object = None
    ) -> facts.Refused | None:
        """Return why a call may not be served that has no run yet; None if it may."""
        try:
            account = self._accounts.account(user_id)
        except errors.InvalidConfiguration as exc:
            return facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED)
        meanings = self._ask(contracts.usage(account, self._secret), contracts.judge_usage, budget)
        return self._decided(meanings, lets_through=False)

    def authorization(self, call: Call, *, budget: rest.RequestBudget) -> facts.Refused | None:
        """Return why a call may not be served that has its run; None if it may.

        The run has the correlation id from here on, if the service has given one.
        """
        assert call.workflow_run_id is not None, "a call is authorized with its run"
        try:
            account = self._accounts.run_account(call.workflow_run_id)
        except errors.InvalidConfiguration as exc:
            return facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED)
        if account.is_managed and not account.service_keys:
            reason = "the model configuration is the platform's own and has no api_key"
            return facts.Refused(reason=reason, hangup_cause=Cause.NOT_ALLOWED)
        meanings = self._authorized(account, budget)
        # The platform serves a call whose credits it cannot look up, unless it needs a correlation id for it.
        refused = self._decided(meanings, lets_through=not account.is_managed, is_needed=account.is_managed)
        correlation_id = next((one.correlation_id for one in meanings if one.correlation_id is not None), None)
        if refused is None and correlation_id is not None:
            self._accounts.note_correlation(call.workflow_run_id, correlation_id)
        return refused

    def _authorized(self, account: RunAccount, budget: rest.RequestBudget) -> list[Meaning]:
        if self._contract == "hosted" or (self._contract == "auto" and self._secret is not None):
            question = contracts.authorization(account, self._secret)
            judge = partial(contracts.judge_authorization, needs_correlation=account.is_managed)
            return self._ask([question], judge, budget)
        if not account.is_managed:
            return self._ask(contracts.own_usage(account.service_keys), contracts.judge_usage, budget)
        return self._managed(account, budget)

    def _managed(self, account: RunAccount, budget: rest.RequestBudget) -> list[Meaning]:
        """Ask by the first key for all of the run, and by the others for their credits.

        A service of an earlier release knows no such authorization: credits and correlation id are asked for apart.
        """
        key, *others = account.service_keys
        (reply,) = self._replies([contracts.own_authorization(account, key)], budget)
        if reply.status not in (404, 405):
            found = [contracts.judge_authorization(reply, needs_correlation=True)]
        else:
            question = contracts.own_correlation(account, key)
            found = self._ask([question], contracts.judge_correlation, budget)
            others = [key, *others]
        return found + self._ask(contracts.own_usage(tuple(others)), contracts.judge_usage, budget)

    def _ask(
        self, questions: Sequence[Question], judge: Callable[[Reply], Meaning], budget: rest.RequestBudget
    ) -> list[Meaning]:
        return [judge(reply) for reply in self._replies(questions, budget)] if questions else []

    def _replies(self, questions: Sequence[Question], budget: rest.RequestBudget) -> list[Reply]:
        # The rest of the claim's time is for storing the decision.
        seconds = min(self._limits.quota_seconds, budget.seconds_left() - self._limits.database_seconds)
        replies = self._client.ask(questions, max(0.0, seconds))
        for question, reply in zip(questions, replies, strict=True):
            budget.record_request(rest.RequestRecord(what=str(question), took_ms=reply.took_ms, answer=reply.text))
        return replies

    def _decided(
        self, meanings: Sequence[Meaning], *, lets_through: bool, is_needed: bool = False
    ) -> facts.Refused | None:
        """Return the refusal by all answers: one is enough, regardless of the others.

        Args:
            lets_through: The platform serves the call if the service is not reached.
            is_needed: The call cannot be served without an answer, whatever the setting says.
        """
        refused = next((meaning.refused for meaning in meanings if meaning.refused is not None), None)
        failed = [meaning for meaning in meanings if meaning.failure]
        if refused is not None or not failed:
            return refused
        failure = failed[0].failure
        match self._when_unreachable:
            case "allow":
                is_refused = is_needed
            case "refuse":
                is_refused = True
            case "platform":
                is_refused = not lets_through or not all(meaning.is_unreachable for meaning in failed)
        log.warning("quota service unreachable", reason=failure, call="refused" if is_refused else "allowed")
        if not is_refused:
            return None
        return facts.Refused(reason=f"quota service unreachable: {failure}", hangup_cause=Cause.CONGESTION)
