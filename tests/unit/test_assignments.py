"""The assignment protocol: each side reads what the other writes, and refuses anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shared import assignments, errors
from shared.assignments import Assignment, Report, SocketState
from shared.call.ids import ConnectionVersion

ASSIGNMENT = Assignment(
    connection_id=7,
    version=2,
    organization_id=3,
    epoch=5,
    endpoint="https://pbx.example/asterisk",
    app="voiceai",
    user="voiceai",
    sealed_password="gAAAA",
    fingerprint="7:2",
)
REPORT = Report(
    connection_id=7, version=2, epoch=5, socket_id="s1", state=SocketState.CONNECTED, since_ms=1, last_event_ms=2,
    reconnects=3, error="ü", unreadable=4, dropped=5,
)  # fmt: skip


def test_an_assignment_comes_back() -> None:
    assert assignments.decode_assignment(assignments.encode(ASSIGNMENT)) == ASSIGNMENT
    assert assignments.decode_assignment(assignments.encode(ASSIGNMENT).encode()) == ASSIGNMENT


def test_a_ca_bundle_comes_back() -> None:
    with_bundle = replace(ASSIGNMENT, ca_bundle="-----BEGIN CERTIFICATE-----")
    assert assignments.decode_assignment(assignments.encode(with_bundle)) == with_bundle
    assert assignments.decode_assignment(assignments.encode(ASSIGNMENT)).ca_bundle is None


def test_a_draining_assignment_and_a_past_error_come_back() -> None:
    draining = replace(ASSIGNMENT, draining=True)
    assert assignments.decode_assignment(assignments.encode(draining)) == draining
    recovered = replace(REPORT, last_error="connection refused", last_error_ms=7)
    assert assignments.decode_report(assignments.encode(recovered)) == recovered


@pytest.mark.parametrize("state", list(SocketState))
def test_a_report_comes_back(state: SocketState) -> None:
    text = assignments.encode(Report(connection_id=7, version=2, epoch=5, socket_id="s", state=state, since_ms=1))
    back = assignments.decode_report(text.encode())
    assert back.state is state
    assert assignments.encode(back) == text
    assert assignments.decode_report(assignments.encode(REPORT)) == REPORT


def test_both_have_the_same_key() -> None:
    assert ASSIGNMENT.key == REPORT.key == "7:2"
    assert ASSIGNMENT.connection_version == REPORT.connection_version == ConnectionVersion(7, 2)


def fields(value: Assignment | Report, **changed: Any) -> str:
    return json.dumps(json.loads(assignments.encode(value)) | changed)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"x"', "{}", b"\xff", fields(ASSIGNMENT, other=1), fields(REPORT)]
)
def test_anything_but_an_assignment_is_refused(text: str | bytes) -> None:  # fmt: skip
    with pytest.raises(errors.InvalidMessage):
        assignments.decode_assignment(text)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", b"\xff", fields(REPORT, state="gone"), fields(REPORT, state=None),
             fields(REPORT, state=[]), fields(REPORT, other=1), fields(ASSIGNMENT)]
)  # fmt: skip
def test_anything_but_a_report_is_refused(text: str | bytes) -> None:
    with pytest.raises(errors.InvalidMessage):
        assignments.decode_report(text)
