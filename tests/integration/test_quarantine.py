"""A connection whose event socket stops one listener after the other is held by none for a while."""

from __future__ import annotations

import pytest

from shared import keys
from shared.storage import connections
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services


def stop(harness: SchedulerHarness, listeners: PlayedListeners, name: str, *, reading: str = "") -> None:
    """A listener is lost; its thread has said which socket its event loop was reading."""
    if reading:
        harness.client.hset(keys.SUSPECTS, name, reading)
    listeners.die(name)


@pytest.fixture
def quarantined(harness: SchedulerHarness, listeners: PlayedListeners) -> SchedulerHarness:
    """Of two connections, 1:1 has stopped two listeners; `l3` is alive."""
    harness.configure(2)
    listeners.beat("l1")
    harness.tick()
    stop(harness, listeners, "l1", reading="1:1")
    listeners.beat("l2")
    harness.tick()
    assert harness.owners() == {"1:1": ("l2", 2), "2:1": ("l2", 2)}, "once may be a coincidence"
    stop(harness, listeners, "l2", reading="1:1")
    listeners.beat("l3")
    harness.tick()
    return harness


def row(harness: SchedulerHarness) -> tuple[str, str]:
    (found,) = harness.rows("SELECT socket_state, last_error FROM ari.connection_versions WHERE connection_id = 1")
    return found["socket_state"], found["last_error"]


def test_the_connection_that_was_read_is_quarantined_and_no_other(
    quarantined: SchedulerHarness, listeners: PlayedListeners
) -> None:
    assert quarantined.owners() == {"1:1": (None, 2), "2:1": ("l3", 3)}
    assert set(listeners.assigned("l3")) == {"2:1"}
    state, reason = row(quarantined)
    assert state == "quarantined"
    assert "2 listeners stopped while they read this event socket" in reason
    assert "arictl connection unpark" in reason
    entries = quarantined.rows("SELECT name FROM ari.timeline WHERE connection_id = 1 ORDER BY id")
    assert [entry["name"] for entry in entries] == ["ListenerLost", "ListenerLost", "Quarantined"]
    assert quarantined.client.hgetall(keys.SUSPECTS) == {}
    quarantined.new_assigner().tick()
    assert quarantined.owners()["1:1"] == (None, 2), "for a new leader, too"
    (stored,) = quarantined.rows("SELECT preempted_at FROM ari.connection_versions WHERE connection_id = 1")
    assert stored["preempted_at"] is None, "no other client has its app: a resync may adopt its callers"


def test_a_quarantine_ends_by_itself(quarantined: SchedulerHarness) -> None:
    quarantined.tick(3)
    assert quarantined.owners()["1:1"] == (None, 2)
    quarantined.execute("UPDATE ari.connection_versions SET parked_at = parked_at - interval '61 seconds'")
    quarantined.tick()
    assert quarantined.owners()["1:1"] == ("l3", 3)
    assert row(quarantined) == ("unassigned", "")


def test_an_operator_ends_a_quarantine(quarantined: SchedulerHarness) -> None:
    quarantined.execute(connections.UNPARK, 1)
    quarantined.tick()
    assert quarantined.owners()["1:1"] == ("l3", 3)


def test_a_changed_configuration_is_tried_at_once(quarantined: SchedulerHarness) -> None:
    quarantined.platform.set(1, app_password="new")
    quarantined.reconcile()
    quarantined.tick()
    assert quarantined.owners()["1:2"] == ("l3", 1)


def test_listeners_that_die_for_no_known_reason_quarantine_none(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(2)
    listeners.beat("l0")
    harness.tick()
    for number in range(5):
        stop(harness, listeners, f"l{number}")
        listeners.beat(f"l{number + 1}")
        harness.tick()
    assert {owner for owner, _ in harness.owners().values()} == {"l5"}
