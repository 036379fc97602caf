"""What an organization may use, and whether it may use more: calls at the same time, minutes of a month.

Values in, a refusal or None out. Usage is counted from the calls themselves (`shared/storage/quotas.py`): nothing is
booked, so nothing can drift or leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from shared.call import facts
from shared.call.calls import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """An organization's limits, ours; None is no limit. A row of ari.quotas."""

    organization_id: int
    blocked: bool = False
    #: Most calls at the same time.
    concurrent_calls: int | None = None
    #: Most minutes of talk in a calendar month (UTC).
    minutes_per_month: int | None = None


def slots(own: int | None, platform: int | None, default: int | None) -> int | None:
    """How many slots an organization has; None for any number.

    Args:
        own: By our row.
        platform: By the platform's row. Of two limits the lower one counts.
        default: Where neither says anything.
    """
    return min((limit for limit in (own, platform) if limit is not None), default=default)


def no_free_slot(*, taken: int, limit: int) -> facts.Refused | None:
    """The refusal of one more call when every slot is taken."""
    if taken < limit:
        return None
    return facts.Refused(reason=f"too many calls at once: {taken} of {limit} slots are taken", hangup_cause=Cause.BUSY)


def exhausted(quota: Quota, *, used_seconds: float) -> facts.Refused | None:
    """The refusal of a call of an organization that is blocked or has used its minutes up."""
    if quota.blocked:
        return facts.Refused(reason="the organization is blocked", hangup_cause=Cause.NOT_ALLOWED)
    minutes = quota.minutes_per_month
    if minutes is None or used_seconds < minutes * 60:
        return None
    return facts.Refused(reason=f"the month's {minutes} minutes are used up", hangup_cause=Cause.NOT_ALLOWED)


def month_start(now: datetime) -> datetime:
    """When this calendar month began, UTC."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
