"""A superseded version keeps its event socket for as long as its calls need it."""

from __future__ import annotations

import pytest

from shared.call.states import State
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services


def test_a_superseded_version_goes_when_its_successor_is_connected(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    harness.platform.set(1, app_password="new")
    harness.reconcile()
    harness.tick(2)
    assert set(listeners.assigned("l1")) == {"1:1", "1:2"}, "make before break"
    listeners.report("l1", listeners.assigned("l1")["1:2"])
    harness.tick(2)
    assert set(listeners.assigned("l1")) == {"1:2"}
    assert harness.socket(1)["retired_at"] is not None
    assert harness.socket(2)["retired_at"] is None


@pytest.mark.parametrize("removed", [True, False])
def test_a_version_of_another_app_instance_stays_for_its_calls(
    harness: SchedulerHarness, listeners: PlayedListeners, *, removed: bool
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    call = harness.new_call("1.1", State.CONNECTED, due_in=100)
    if removed:
        harness.platform.values.clear()
    else:
        harness.platform.set(1, ari_endpoint="http://moved")
    harness.reconcile()
    for _ in range(2):
        harness.tick()
        assert "1:1" in listeners.assigned("l1")
    harness.execute("UPDATE ari.calls SET state = 'ended' WHERE call_id = %s", call.call_id)
    harness.tick()
    assert "1:1" not in listeners.assigned("l1")


def test_a_drain_has_an_end(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    harness.platform.values.clear()
    harness.reconcile()
    harness.execute("UPDATE ari.connection_versions SET superseded_at = superseded_at - interval '61 seconds'")
    harness.tick()
    assert listeners.assigned("l1") == {}
