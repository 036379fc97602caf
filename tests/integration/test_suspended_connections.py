"""Connections that an operator parks or drains: on a real scheduler's parts, with real Postgres and Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import errors, queues
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from shared.operator import audit
from shared.operator import connection_actions as connections
from shared.operator.audit import Actor
from shared.storage.connections import Connections
from tests import arictl_program
from tests.arictl_program import Arictl, failed
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services

ME = Actor(who="alice@host", via="arictl")
FIRST = ConnectionVersion(1, 1)


@pytest.fixture
def connected(harness: SchedulerHarness, listeners: PlayedListeners) -> SchedulerHarness:
    """One connection, whose socket is open."""
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    listeners.report_all("l1")
    harness.tick()
    assert harness.socket()["socket_state"] == "connected"
    return harness


@pytest.fixture
def arictl(database_url: str, redis_url: str, tmp_path: Path) -> Arictl:
    run = arictl_program.runner(database_url, tmp_path)
    return lambda *words, **given: run(*words, **({"REDIS_URL": redis_url} | given))


def why_no_call(harness: SchedulerHarness, connection: ConnectionVersion = FIRST) -> str:
    """Why a new caller of that version is refused; empty if none is."""
    target = Connections(harness.db).inbound_target(connection)
    assert target is not None
    return target.reason if target.served_by is None else ""


def actions(harness: SchedulerHarness) -> list[tuple[str, str]]:
    return [(row.action, row.outcome) for row in reversed(audit.page(harness.db))]


def test_a_parked_connection_has_no_socket_and_its_calls_go_on(
    connected: SchedulerHarness, listeners: PlayedListeners
) -> None:
    call = connected.new_call("1.1", State.CONNECTED, due_in=60)
    held = connections.park(connected.db, ME, 1, "maintenance")
    assert (held.changed, held.live_calls, held.versions) == (True, 1, ("1:1",))
    connected.tick(2)
    assert listeners.assigned("l1") == {}, "its listener closes the socket"
    assert connected.socket()["last_error"] == "parked by an operator: maintenance"
    assert why_no_call(connected) == "connection parked by an operator"
    with pytest.raises(errors.NotConnected, match="parked by an operator"):
        Connections(connected.db).outbound_connection(101)
    assert Connections(connected.db).is_preempted(1), "no resync takes what is in the app for new callers"
    after = connected.store.load(call.call_id)
    assert after is not None
    assert after.state is State.CONNECTED
    # The next leader leaves it so, too.
    connected.new_assigner().tick()
    assert listeners.assigned("l1") == {}
    connections.release(connected.db, ME, 1)
    connected.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}
    assert connected.socket()["last_error"] == ""
    assert why_no_call(connected) == ""


def test_a_parked_connection_stays_so_when_its_tenant_saves_the_configuration(
    connected: SchedulerHarness, listeners: PlayedListeners
) -> None:
    connections.park(connected.db, ME, 1)
    connected.platform.set(1, app_password="new")
    connected.reconcile()
    connected.tick(2)
    assert connected.owners() == {"1:1": (None, 1), "1:2": (None, 0)}
    connections.release(connected.db, ME, 1)
    connected.tick()
    assert "1:2" in listeners.assigned("l1")


def test_a_drained_connection_keeps_its_socket_and_takes_no_calls(
    connected: SchedulerHarness, listeners: PlayedListeners
) -> None:
    connections.drain(connected.db, ME, 1)
    connected.tick(2)
    assert set(listeners.assigned("l1")) == {"1:1"}
    assert connected.socket()["socket_state"] == "connected"
    assert why_no_call(connected) == "connection drained by an operator"
    with pytest.raises(errors.NotConnected, match="drained by an operator"):
        Connections(connected.db).outbound_connection(101)
    # A new version of it, too.
    connected.platform.set(1, app_password="new")
    connected.reconcile()
    assert why_no_call(connected, ConnectionVersion(1, 2)) == "connection drained by an operator"
    connections.release(connected.db, ME, 1)
    assert why_no_call(connected) == why_no_call(connected, ConnectionVersion(1, 2)) == ""


def test_each_order_may_be_repeated_and_one_takes_the_place_of_another(
    connected: SchedulerHarness, listeners: PlayedListeners
) -> None:
    orders = (
        (connections.park, True), (connections.park, False), (connections.drain, True), (connections.drain, False),
        (connections.park, True), (connections.release, True), (connections.release, False),
    )  # fmt: skip
    for number, (order, changes) in enumerate(orders):
        held = order(connected.db, ME, 1)
        assert held.changed is changes, number
        connected.tick()
        is_parked = order is connections.park
        assert (listeners.assigned("l1") == {}) is is_parked, number
    assert actions(connected) == [
        ("connection park", "done"), ("connection park", "nothing"), ("connection drain", "done"),
        ("connection drain", "nothing"), ("connection park", "done"), ("connection unpark", "done"),
        ("connection unpark", "nothing"),
    ]  # fmt: skip


def test_a_quarantine_that_ends_unparks_no_connection(connected: SchedulerHarness, listeners: PlayedListeners) -> None:
    connected.sockets.quarantine(FIRST, "quarantined")
    connections.park(connected.db, ME, 1)
    connected.execute("UPDATE ari.connection_versions SET parked_at = now() - interval '61 seconds'")
    connected.tick(3)
    assert listeners.assigned("l1") == {}


def test_the_commands(connected: SchedulerHarness, arictl: Arictl) -> None:
    done = arictl("connection", "park", "1", "--reason", "the tenant asked")
    assert (done.returncode, done.stdout) == (0, "Connection 1 is parked.\n")
    assert arictl("connection", "park", "-o", "101").stdout == "Connection 1 was parked already.\n"
    assert "parked by an operator: the tenant asked" in arictl("connection", "list").stdout
    assert arictl("connection", "unpark", "1").stdout == "Connection 1 takes calls again.\n"
    assert arictl("connection", "drain", "1").stdout == "Connection 1 is drained.\n"
    assert "(drained)" in arictl("connection", "list").stdout
    assert arictl("connection", "unpark", "1").returncode == 0
    for verb in ("park", "unpark", "drain", "resync"):
        failed(arictl("connection", verb, "77"), "no connection 77: arictl connection list")
        failed(arictl("connection", verb, "-o", "77"), "organization 77 has no connection")
        failed(arictl("connection", verb), "name a connection, or --organization")
        failed(arictl("connection", verb, "1", "-o", "101"), "name a connection, or --organization")
        assert arictl("connection", verb, "one").returncode == 2
    connected.execute("UPDATE ari.connections SET state = 'removed'")
    failed(arictl("connection", "park", "1"), "is removed")


def test_a_resync_is_asked_for_once(connected: SchedulerHarness, arictl: Arictl) -> None:
    for _ in range(2):
        done = arictl("connection", "resync", "1")
        assert (done.returncode, done.stdout) == (0, "Connection 1: resync asked for, of 1:1.\n")
    (message,) = connected.dequeue("resync")
    assert message.kwargs["full"] is True
    assert actions(connected) == [("connection resync", outcome) for outcome in ("asked", "done") * 2]
    away = arictl("connection", "resync", "1", REDIS_URL="redis://127.0.0.1:1/0")
    assert (away.returncode, actions(connected)[-1]) == (3, ("connection resync", "failed"))


def test_a_resync_of_what_has_no_version_says_so(connected: SchedulerHarness) -> None:
    connected.execute("UPDATE ari.connection_versions SET retired_at = now()")
    held = connections.resync(connected.db, queues.BrokerCommandQueue(connected.broker), ME, 1)
    assert held.versions == ()
    assert actions(connected)[-1] == ("connection resync", "nothing")
