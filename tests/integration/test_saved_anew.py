"""A configuration that is removed and added again has another row: its connection goes on, with socket and calls."""

from __future__ import annotations

import pytest

from shared.assignments import SocketState
from shared.call.states import State
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def connected(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """The configuration 1, whose socket is open."""
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    listeners.report_all("l1")
    harness.tick()


def lives(harness: SchedulerHarness) -> list[dict[str, object]]:
    return harness.rows("SELECT connection_id, source_id, state, version FROM ari.connections ORDER BY connection_id")


def test_saved_anew_it_is_the_same_connection_and_its_socket_is_not_touched(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    before, revision = harness.versions(1), listeners.revision("l1")
    harness.platform.save_anew(1, under=9, inbound_workflow_id=5)
    harness.reconcile()
    harness.tick(2)
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "active", "version": 1}]
    assert (harness.versions(9), listeners.revision("l1")) == (before, revision)


@pytest.mark.parametrize("has_call", [False, True])
def test_added_again_after_its_removal_was_seen_it_is_the_same_connection(
    harness: SchedulerHarness, listeners: PlayedListeners, *, has_call: bool
) -> None:
    """With a call its socket is still open, and goes on. Without one it was closed, and is opened as a new version."""
    if has_call:
        harness.new_call("1.1", State.CONNECTED, due_in=100)
    harness.platform.save_anew(1, under=9)
    saved, harness.platform.values = harness.platform.values, {}
    harness.reconcile()
    harness.tick()
    assert lives(harness) == [{"connection_id": 1, "source_id": 1, "state": "removed", "version": 1}]
    harness.platform.values = saved
    harness.reconcile()
    harness.tick()
    newest = 1 if has_call else 2
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "active", "version": newest}]
    assert set(listeners.assigned("l1")) == {f"1:{newest}"}
    assert harness.versions(9)[-1]["superseded_at"] is None
    epochs = [assignment.epoch for assignment in listeners.assigned("l1").values()]
    assert epochs == [1], "it was opened once"


def test_saved_anew_with_another_password_it_has_a_new_version(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.platform.save_anew(1, under=9, app_password="new")
    harness.reconcile()
    harness.tick()
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "active", "version": 2}]
    assert {key: one.draining for key, one in listeners.assigned("l1").items()} == {"1:1": True, "1:2": False}


@pytest.mark.parametrize("endpoint", ["HTTP://PBX1/", "http://pbx1:80", "http://pbx1./ari/"])
def test_another_spelling_of_the_endpoint_is_the_same_app_instance(
    harness: SchedulerHarness, listeners: PlayedListeners, endpoint: str
) -> None:
    revision = listeners.revision("l1")
    harness.platform.save_anew(1, under=9, ari_endpoint=endpoint)
    harness.reconcile()
    harness.tick()
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "active", "version": 1}]
    assert listeners.revision("l1") == revision


def test_moved_to_another_endpoint_and_back_it_is_the_same_connection(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    for endpoint in ("https://pbx1:8089", "http://pbx1"):
        harness.platform.set(1, ari_endpoint=endpoint)
        harness.reconcile()
        harness.tick()
    assert lives(harness) == [{"connection_id": 1, "source_id": 1, "state": "active", "version": 3}]
    # The first version's socket, which has calls, stays until that of the third has taken its place.
    assert {key: one.draining for key, one in listeners.assigned("l1").items()} == {"1:1": True, "1:3": False}
    listeners.report("l1", listeners.assigned("l1")["1:3"])
    harness.tick(2)
    assert set(listeners.assigned("l1")) == {"1:3"}


def test_saved_anew_a_parked_connection_is_tried_again(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.execute("UPDATE ari.connection_versions SET parked_at = now(), socket_state = 'parked', listener_id = NULL")
    harness.platform.save_anew(1, under=9)
    harness.reconcile()
    harness.tick(2)
    assert set(listeners.assigned("l1")) == {"1:2"}


def test_a_saved_row_that_is_no_good_drains_the_same_connection(harness: SchedulerHarness) -> None:
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    harness.platform.save_anew(1, under=9, app_name=None)
    harness.reconcile()
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "refused", "version": 1}]
    harness.platform.values[9] = harness.platform.values[9] | {"app_name": "a"}  # type: ignore[operator]
    harness.reconcile()
    assert lives(harness) == [{"connection_id": 1, "source_id": 9, "state": "active", "version": 1}]


def test_a_version_that_serves_again_is_not_retired(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """The configuration is added again after the assigner has read that it was removed."""
    (read,) = [socket for socket in harness.sockets.wanted() if str(socket.connection) == "1:1"]
    assert not harness.sockets.retire(read)
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}


def test_an_active_connection_whose_socket_was_retired_gets_another_one(harness: SchedulerHarness) -> None:
    harness.execute("UPDATE ari.connection_versions SET retired_at = now()")
    harness.reconcile()
    assert harness.connections() == {1: ("active", "", 2)}


# ── one socket at a time ─────────────────────────────────────────────────────────────────────────────────────────────


def moved_to_another_organization(harness: SchedulerHarness) -> None:
    """Remove configuration 1, which has a call, and give its app to another organization."""
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    value = harness.platform.values.pop(1)
    harness.reconcile()
    harness.platform.values[2] = value
    harness.reconcile()


def test_of_two_connections_of_an_app_instance_one_is_opened(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    moved_to_another_organization(harness)
    harness.tick()
    assert {key: one.draining for key, one in listeners.assigned("l1").items()} == {"1:1": True, "2:1": False}
    listeners.report("l1", listeners.assigned("l1")["2:1"])
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
    harness.tick(2)
    assert set(listeners.assigned("l1")) == {"2:1"}
    assert harness.versions(1)[0]["retired_at"] is None, "its call has not ended"


def test_a_restarted_listener_opens_one_socket(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    moved_to_another_organization(harness)
    harness.tick()
    listeners.report_all("l1")
    harness.tick()
    listeners.die("l1")
    listeners.beat("l2")
    harness.tick(2)
    assert set(listeners.assigned("l2")) == {"2:1"}


def test_a_successor_that_is_refused_lets_the_socket_before_it_be_opened(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.platform.set(1, app_password="wrong")
    harness.reconcile()
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:2"], SocketState.CONNECTING, error="401")
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    harness.tick()
    assert {key: one.draining for key, one in listeners.assigned("l1").items()} == {"1:1": False, "1:2": False}
    listeners.die("l1")
    listeners.beat("l2")
    harness.tick(2)
    assert set(listeners.assigned("l2")) == {"1:1", "1:2"}


def test_a_socket_that_one_of_ours_has_replaced_is_opened_again_at_once(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    """With and without TLS it is the same app: the superseded socket was opened last."""
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    harness.platform.set(1, ari_endpoint="https://pbx1:8089")
    harness.reconcile()
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:2"], SocketState.REPLACED)
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    harness.tick()
    version = harness.versions(1)[1]
    assert (version["epoch"], version["reclaims"], version["preempted_at"]) == (2, 0, None)
    listeners.report("l1", listeners.assigned("l1")["1:2"])
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
    harness.tick(2)
    assert harness.versions(1)[1]["epoch"] == 2, "that is the end of it"
