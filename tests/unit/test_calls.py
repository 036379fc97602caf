"""What a call says of itself, and the requests that lead to one."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime

import pytest

from shared import errors
from shared.call import calls
from shared.call.call_requests import CallRequest
from shared.call.calls import Call
from tests.support.calls import CONNECTED, NOW, ORIGINATING, RECEIVED, seconds

REQUEST = CallRequest(organization_id=3, number="+49301234", request_id="row 12", workflow_id=5)


@pytest.mark.parametrize(
    ("connected_at", "ending_at", "talked"),
    [
        (None, NOW, 0.0),
        (NOW, None, 0.0),
        (NOW, NOW + seconds(61.5), 61.5),
        # Two clocks of Postgres: that of a transaction's begin and that of a statement.
        (NOW, NOW - seconds(1), 0.0),
    ],
)
def test_a_call_talks_from_connected_to_ending(
    connected_at: datetime | None, ending_at: datetime | None, talked: float
) -> None:
    assert replace(CONNECTED, connected_at=connected_at, ending_at=ending_at).talk_seconds == talked


@pytest.mark.parametrize(
    ("attempt", "earlier", "until"),
    [
        (None, None, None),
        (NOW, None, NOW),
        (None, NOW, NOW),
        (NOW, NOW + seconds(1), NOW + seconds(1)),
        (NOW + seconds(1), NOW, NOW + seconds(1)),
    ],
)
def test_a_call_is_in_doubt_until_the_last_of_its_requests_is_decided(
    attempt: datetime | None, earlier: datetime | None, until: datetime | None
) -> None:
    call = replace(CONNECTED, attempt_in_doubt_until=attempt, earlier_in_doubt_until=earlier)
    assert call.in_doubt_until == until


def test_only_an_originated_leg_that_was_not_seen_in_stasis_is_unanswered() -> None:
    assert ORIGINATING.is_unanswered
    assert not replace(ORIGINATING, channel_created="then").is_unanswered
    assert not RECEIVED.is_unanswered
    assert not replace(RECEIVED, channel_created="").is_unanswered


def test_a_new_call_has_nothing_yet() -> None:
    """Each field with a default: the row of a call begins so."""
    told = {field.name: getattr(RECEIVED, field.name) for field in fields(Call)}
    assert {name: told[name] for name in ("lock_version", "step_retries", "attempt")} == {
        "lock_version": 0,
        "step_retries": 0,
        "attempt": 0,
    }
    for name in ("legs_created", "media_ready", "caller_left", "continue_in_dialplan"):
        assert told[name] is False, name


def test_a_copy_of_a_call_is_another_value() -> None:
    """`calls.replace` is the cheap way to make one."""
    copy = calls.replace(RECEIVED, attempt=1)
    assert copy == replace(RECEIVED, attempt=1)
    assert (type(copy), RECEIVED.attempt) == (Call, 0)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, request_id="r"),
        replace(REQUEST, request_id="r" * 200),
        replace(REQUEST, ring_seconds=1.0),
        replace(REQUEST, ring_seconds=600.0),
        replace(REQUEST, workflow_id=None, workflow_run_id=9),
        replace(REQUEST, caller_id="+4930999"),
    ],
)
def test_a_request_within_its_bounds_is_taken_as_it_is(request_: CallRequest) -> None:
    assert request_.checked() == request_


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (replace(REQUEST, request_id=""), "the request id is not 1 to 200 printable characters"),
        (replace(REQUEST, request_id="r" * 201), "the request id is not 1 to 200 printable characters"),
        (replace(REQUEST, request_id="a\nb"), "the request id is not 1 to 200 printable characters"),
        (replace(REQUEST, ring_seconds=0.9), "the ring time is not between 1 and 600 seconds"),
        (replace(REQUEST, ring_seconds=600.1), "the ring time is not between 1 and 600 seconds"),
        (replace(REQUEST, workflow_id=None), "it names neither a workflow"),
        (replace(REQUEST, number="1 2"), "is no number"),
        (replace(REQUEST, caller_id="1&2"), "is no number"),
    ],
)
def test_a_request_outside_its_bounds_says_which(request_: CallRequest, reason: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=reason):
        request_.checked()
