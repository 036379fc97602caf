"""The fingerprint of the sockets changes with everything by which they are assigned, on a real Postgres."""

from __future__ import annotations

import pytest

from shared.call.states import State
from tests.support import scheduler_harness
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


@pytest.mark.parametrize(
    ("fields", "later"),
    [
        ("preempted_at = now()", "preempted_at = preempted_at - interval '1 minute'"),
        ("previous_listener_id = 'l0', assigned_at = now()", "assigned_at = assigned_at - interval '11 seconds'"),
        ("reclaims = 1, assigned_at = now()", "assigned_at = assigned_at - interval '601 seconds'"),
        ("superseded_at = now()", "superseded_at = superseded_at - interval '1 minute'"),
        # Postgres's clock was set back: nobody knows how long ago it was.
        ("preempted_at = now()", "preempted_at = preempted_at + interval '1 hour'"),
        ("parked_at = now(), socket_state = 'quarantined'", "parked_at = parked_at + interval '1 hour'"),
        ("previous_listener_id = 'l0', assigned_at = now()", "assigned_at = assigned_at + interval '1 hour'"),
    ],
)
def test_what_becomes_due_with_time_changes_the_fingerprint(harness: SchedulerHarness, fields: str, later: str) -> None:
    harness.configure(1)
    harness.execute(f"UPDATE ari.connection_versions SET {fields}")
    sockets = scheduler_harness.socket_rows(harness.db)
    assert sockets.fingerprint() == (before := sockets.fingerprint())
    harness.execute(f"UPDATE ari.connection_versions SET {later}")
    assert sockets.fingerprint() != before


def test_the_end_of_a_superseded_versions_last_call_changes_the_fingerprint(harness: SchedulerHarness) -> None:
    harness.configure(1)
    harness.execute("UPDATE ari.connection_versions SET superseded_at = now()")
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    sockets = scheduler_harness.socket_rows(harness.db)
    before = sockets.fingerprint()
    harness.execute("UPDATE ari.calls SET state = 'ended'")
    assert sockets.fingerprint() != before


def test_a_status_does_not_change_the_fingerprint(harness: SchedulerHarness) -> None:
    harness.configure(1)
    sockets = scheduler_harness.socket_rows(harness.db)
    before = sockets.fingerprint()
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected', last_event_at = now()")
    assert sockets.fingerprint() == before, "or every status written would be followed by reading every socket"
