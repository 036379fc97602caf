"""An organization's slots and minutes: the rules as tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from shared.call import quota_rules, states
from shared.call.quota_rules import Quota
from shared.call.states import Cause, State


@pytest.mark.parametrize(
    ("own", "platform", "default", "slots"),
    [
        (None, None, None, None),
        (None, None, 5, 5),
        (3, None, 5, 3),
        (None, 3, 5, 3),
        # A row counts instead of the default, also when it allows more.
        (9, None, 5, 9),
        (None, 9, 5, 9),
        (3, 9, 5, 3),
        (9, 3, None, 3),
        (0, 9, 5, 0),
        (9, 0, None, 0),
        (None, None, 0, 0),
    ],
)
def test_the_lower_of_two_limits_counts_and_the_default_where_there_is_none(
    own: int | None, platform: int | None, default: int | None, slots: int | None
) -> None:
    assert quota_rules.slots(own, platform, default) == slots


@pytest.mark.parametrize(
    ("used", "limit", "refused"),
    [(0, 1, False), (1, 2, False), (1, 1, True), (2, 2, True), (3, 2, True), (0, 0, True), (5, 0, True)],
)
def test_a_call_too_many_is_busy(used: int, limit: int, refused: bool) -> None:
    refusal = quota_rules.no_free_slot(used=used, limit=limit)
    assert (refusal is not None) is refused
    if refusal is not None:
        assert refusal.hangup_cause == Cause.BUSY
        assert refusal.reason == f"too many concurrent calls: {used} of {limit} slots in use"


@pytest.mark.parametrize(
    ("blocked", "minutes", "used_seconds", "reason"),
    [
        (False, None, 0.0, None),
        (False, None, 1e9, None),
        (False, 10, 0.0, None),
        (False, 10, 599.9, None),
        (False, 10, 600.0, "the month's 10 minutes are used up"),
        (False, 0, 0.0, "the month's 0 minutes are used up"),
        (True, None, 0.0, "the organization is blocked"),
        (True, 10, 700.0, "the organization is blocked"),
    ],
)
def test_a_blocked_or_exhausted_organization_is_not_allowed(
    blocked: bool, minutes: int | None, used_seconds: float, reason: str | None
) -> None:
    quota = Quota(organization_id=1, blocked=blocked, minutes_per_month=minutes)
    refusal = quota_rules.exhausted(quota, used_seconds=used_seconds)
    assert (refusal.reason if refusal is not None else None) == reason
    assert refusal is None or refusal.hangup_cause == Cause.NOT_ALLOWED


@pytest.mark.parametrize(
    ("now", "start"),
    [
        (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        (datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        # Still February in UTC, and already March.
        (datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 2, 28, 23, tzinfo=timezone(timedelta(hours=-2))), datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_month_begins_in_utc(now: datetime, start: datetime) -> None:
    assert quota_rules.month_start(now) == start


def test_which_states_use_a_slot() -> None:
    assert {
        State.ORIGINATING, State.RINGING, State.ADMITTED, State.PREPARED, State.JOINING, State.CONNECTED,
    } == states.USES_SLOT  # fmt: skip
