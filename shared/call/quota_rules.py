"""An organization's limits, and whether it may use more: concurrent calls, minutes of a month.

Values in, a refusal or None out. Usage is counted from the calls themselves (`shared/storage/quotas.py`): nothing is
booked, so nothing can drift or leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from shared.call import facts
from shared.call.states import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """An organization's limits in the product; None is no limit. A row of ari.quotas."""

    organization_id: int
    blocked: bool = False
    #: Most concurrent calls.
    concurrent_calls: int | None = None
    #: Most minutes of talk in a calendar month (UTC).
    minutes_per_month: int | None = None


def slots(own: int | None, platform: int | None, default: int | None) -> int | None:
    """Return how many slots an organization has; None for any number.

    Args:
        own: By the product's row.
        platform: By the platform's row. Of two limits the lower one counts.
        default: Without either row.
    """
    return min((limit for limit in (own, platform) if limit is not None), default=default)


def no_free_slot(*, used: int, limit: int) -> facts.Refused | None:
    """Return the refusal of one more call when every slot is used; None when one is free."""
    if used < limit:
        return None
    reason = f"too many concurrent calls: {used} of {limit} slots in use"
    return facts.Refused(reason=reason, hangup_cause=Cause.BUSY, limit="concurrent-calls")


def exhausted(quota: Quota, *, used_seconds: float) -> facts.Refused | None:
    """Return the refusal of a call whose organization is blocked or has no minutes left; None otherwise."""
    if quota.blocked:
        return facts.Refused(reason="the organization is blocked", hangup_cause=Cause.NOT_ALLOWED)
    minutes = quota.minutes_per_month
    if minutes is None or used_seconds < minutes * 60:
        return None
    return facts.Refused(reason=f"the month's {minutes} minutes are used up", hangup_cause=Cause.NOT_ALLOWED)


def month_start(now: datetime) -> datetime:
    """Return when this calendar month began, UTC."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
