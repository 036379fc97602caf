"""An app that a competing client takes is reclaimed once, then left to it: the connection is parked."""

from __future__ import annotations

import pytest

from scheduler import actions
from shared.assignments import SocketState
from shared.storage import connections
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services


def test_a_preempted_app_is_reclaimed_once_and_then_parked(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
    harness.tick(3)
    assert harness.owners() == {"1:1": ("l1", 1)}, "not reclaimed at once"
    assert (harness.socket()["socket_state"], harness.socket()["last_error"]) == ("replaced", actions.PREEMPTED)
    # Its listener dies meanwhile: that gives it no second attempt, and none sooner.
    listeners.die("l1")
    listeners.beat("l2")
    harness.tick()
    assert harness.owners() == {"1:1": ("l1", 1)}
    harness.execute("UPDATE ari.connection_versions SET preempted_at = preempted_at - interval '61 seconds'")
    harness.tick()
    assert harness.owners() == {"1:1": ("l2", 2)}, "reclaimed, under a new epoch"
    listeners.report("l2", listeners.assigned("l2")["1:1"])
    harness.tick()
    assert harness.socket()["socket_state"] == "connected"
    listeners.report("l2", listeners.assigned("l2")["1:1"], SocketState.REPLACED)
    harness.tick(3)
    assert (harness.owners(), listeners.assigned("l2")) == ({"1:1": (None, 2)}, {}), "left to the competing client"
    row = harness.socket()
    assert row["socket_state"] == "parked"
    assert "arictl connection unpark --organization 101" in row["last_error"]
    entries = harness.rows("SELECT name FROM ari.timeline WHERE connection_id = 1 ORDER BY id")
    assert [entry["name"] for entry in entries] == ["AppPreempted", "Parked"]
    # A new leader leaves it parked, too.
    harness.new_assigner().tick()
    assert harness.owners() == {"1:1": (None, 2)}
    # Until an operator unparks it.
    harness.execute(connections.UNPARK, 1)
    harness.tick()
    assert harness.owners() == {"1:1": ("l2", 3)}
    assert harness.socket()["reclaims"] == 0


def test_a_changed_configuration_is_tried_again_though_it_was_parked(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    harness.execute("UPDATE ari.connection_versions SET parked_at = now(), listener_id = NULL, socket_state = 'parked'")
    harness.tick()
    assert listeners.assigned("l1") == {}
    harness.platform.set(1, app_password="new")
    harness.reconcile()
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:2"}


def test_an_app_reclaimed_long_ago_is_reclaimed_once_more(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    harness.execute("UPDATE ari.connection_versions SET reclaims = 1, assigned_at = now() - interval '11 minutes'")
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
    harness.tick()
    assert harness.socket()["parked_at"] is None
    assert harness.socket()["preempted_at"] is not None
