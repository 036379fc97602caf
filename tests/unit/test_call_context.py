"""The call on each log line: bound where its part begins, and the one before again afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from shared import call_context
from shared.call.calls import Call
from shared.call.states import Direction, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()


def bound() -> dict[str, Any]:
    return structlog.contextvars.get_contextvars()


def made() -> Call:
    return Call(
        call_id=uuid.uuid4(), connection_id=7, connection_version=2, organization_id=1, channel_id="1.1",
        channel_created="c", entry=1, direction=Direction.INBOUND, state=State.RECEIVED, received_at=NOW,
        state_since=NOW, deadline_at=None,
    )  # fmt: skip


def test_a_call_is_bound_within_and_what_was_bound_before_afterwards() -> None:
    first, second = made(), made()
    structlog.contextvars.bind_contextvars(connection="7:1")
    with call_context.of_call(first):
        assert bound() == {"call": str(first.call_id), "connection": "7:2"}
        with call_context.of_call(first):
            assert bound()["call"] == str(first.call_id)
        assert bound()["call"] == str(first.call_id)
        with call_context.of_call(second):
            assert bound()["call"] == str(second.call_id)
            with call_context.of_call(first):
                assert bound()["call"] == str(first.call_id)
        assert bound()["call"] == str(first.call_id)
    assert bound() == {"connection": "7:1"}


def test_a_failure_within_leaves_nothing_behind() -> None:
    with pytest.raises(ValueError, match="broken"), call_context.of_call(made()):
        raise ValueError("broken")
    assert bound() == {}
    with call_context.of_call(made()):
        assert "call" in bound()
