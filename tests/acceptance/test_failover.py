"""Listeners and schedulers start, stop, die and freeze during calls: no call is lost, no socket is opened twice.

Sixty connections on a simulated Asterisk, with the times of production.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from devstack import servers
from devstack.fleet import Fleet, overlaps, running_fleet
from shared import queues
from tests import databases
from tests.support.forked import ForkedPipeline

pytestmark = pytest.mark.services

CONNECTIONS = 60


@pytest.fixture(scope="module")
def fleet(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Fleet]:
    """Two listeners, a worker, a leading and a standby scheduler."""
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_fleet(
            ForkedPipeline,
            folder=stack_folder,
            logs=all_logs / "failover",
            database_url=database_url,
            connections=CONNECTIONS,
            processes=("listener.1", "listener.2", "worker", "scheduler.1", "scheduler.2"),
        ) as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def two_listeners(fleet: Fleet) -> Iterator[None]:
    """Let `listener.1` and `listener.2` share the connections before each test; check the invariants after it."""
    if fleet.pipeline.is_running("listener.3"):
        fleet.pipeline.kill("listener.3")
    for name in ("listener.1", "listener.2"):
        if not fleet.pipeline.is_running(name):
            fleet.pipeline.start(name)
    fleet.wait_settled("listener.1", "listener.2")
    yield
    # They are left by a test that has failed; those after it are to begin without.
    fleet.end_connected()
    fleet.assert_invariants()


def assert_no_older_epoch(fleet: Fleet) -> None:
    """Check that the newest socket of a connection always has its highest epoch."""
    openings = fleet.openings()
    assert openings, "the listeners' logs show them"
    for key, epochs in openings.items():
        assert epochs == sorted(epochs), f"connection {key} was opened under an older epoch: {epochs}"


def assert_handed_over(fleet: Fleet, *, since: float) -> None:
    """Check that each new socket opened before its predecessor closed, which took at most two seconds."""
    for app, lifetimes in fleet.lifetimes(since=since).items():
        assert all(0 <= overlap <= 2 for overlap in overlaps(lifetimes)), f"{app}: {overlaps(lifetimes)}"


def test_a_listener_that_joins_and_one_that_stops_move_their_shares_and_no_call_notices(fleet: Fleet) -> None:
    """Uses the plain dialplan, on which a caller without an event socket is lost."""
    began = time.monotonic()
    connected = fleet.connect_all()
    bridged = len(fleet.control.requests("POST"))
    before = fleet.assignments()
    with fleet.callers(dialplan="plain", talk_seconds=3) as callers:
        fleet.pipeline.start("listener.3")
        fleet.wait_settled("listener.1", "listener.2", "listener.3")
        joined = fleet.assignments()
        assert fleet.shares() == {"listener.1": 20, "listener.2": 20, "listener.3": 20}
        assert fleet.pipeline.stop("listener.1") == 0
        fleet.wait_settled("listener.2", "listener.3")
        left = fleet.assignments()
    moved = [app for app in fleet.apps if joined[app] != before[app]]
    assert len(moved) == 20
    assert {joined[app][0] for app in moved} == {"listener.3"}
    assert [app for app in fleet.apps if left[app] != joined[app]] == [
        app for app in fleet.apps if joined[app][0] == "listener.1"
    ], "one that stops moves its own"
    assert_handed_over(fleet, since=began)
    assert_no_older_epoch(fleet)
    fleet.wait_states(callers, "ended")
    assert not fleet.lost(callers), fleet.lost(callers)[0]
    starts = [entry for entry in fleet.control.event_log("StasisStart") if not entry["delivered"]]
    assert not starts, "a StasisStart was missed"
    assert {call["state"] for call in fleet.pipeline.calls(*connected)} == {"connected"}
    assert {channel["gaps"] for channel in fleet.control.channels() if channel["id"] in connected} == {0}
    again = [r.path for r in fleet.control.requests("POST")[bridged:] if any(leg in str(r) for leg in connected)]
    assert not again, "a connected call was touched"
    fleet.end(connected)


def test_callers_outlast_a_listener_that_is_killed(fleet: Fleet) -> None:
    """Uses the recommended dialplan, which retries for five seconds."""
    connected = fleet.connect_all()
    with fleet.callers(talk_seconds=10) as callers:
        fleet.until(lambda: len(callers) >= 20, seconds=10, what="callers")
        killed = time.monotonic()
        fleet.pipeline.kill("listener.2")
        fleet.until(fleet.is_heard, seconds=5, what="every app has a socket that hears")
        displaced = time.monotonic()
        fleet.until(lambda: len(callers) >= 20 + 20 * (displaced - killed + 1), seconds=10, what="callers after it")
    fleet.wait_states(callers, "connected", "ended")
    assert not fleet.lost(callers), fleet.lost(callers)[0]
    assert {call["state"] for call in fleet.pipeline.calls(*connected)} == {"connected"}
    assert_no_older_epoch(fleet)
    fleet.wait_states(callers, "ended")
    fleet.end(connected)


def test_a_listener_that_froze_wakes_up_replaced_and_steals_nothing(fleet: Fleet) -> None:
    mine = [app for app, (holder, _) in fleet.assignments().items() if holder == "listener.2"]
    fleet.pipeline.signal("listener.2", signal.SIGSTOP)
    frozen = time.monotonic()
    try:
        fleet.until(
            lambda: all(fleet.lifetimes()[app][-1].opened_at > frozen for app in mine), seconds=5, what="taken over"
        )
    finally:
        sockets = {app: len(fleet.control.sockets(app)) for app in mine}
        fleet.pipeline.signal("listener.2", signal.SIGCONT)
    assert set(sockets.values()) == {2}, "the frozen one still has them open"
    fleet.until(
        lambda: all(len(fleet.control.sockets(app)) == 1 for app in mine), seconds=5, what="it found itself replaced"
    )
    fleet.wait_settled("listener.1", "listener.2")
    assert_no_older_epoch(fleet)
    assert not fleet.pipeline.value("SELECT count(*) FROM ari.connection_versions WHERE preempted_at IS NOT NULL")
    legs = fleet.connect_all()
    fleet.end(legs)


def test_a_leader_and_a_listener_that_die_together_are_replaced_within_six_seconds(fleet: Fleet) -> None:
    leader = fleet.pipeline.value("SELECT split_part(holder, '/', 1) FROM ari.leases WHERE name = 'scheduler'")
    fleet.pipeline.kill(leader)
    fleet.pipeline.kill("listener.2")
    fleet.until(fleet.is_heard, seconds=6, what="every app has a socket that hears")
    fleet.pipeline.start(leader)
    legs = fleet.connect_all()
    fleet.end(legs)


def test_two_hundred_calls_outlast_a_flushed_redis(fleet: Fleet) -> None:
    began = time.monotonic()
    with fleet.callers(talk_seconds=12) as callers:
        fleet.until(lambda: len(callers) >= 100, seconds=15, what="callers")
        with contextlib.closing(queues.client(fleet.redis.url)) as client:
            client.flushall()
        fleet.until(lambda: len(callers) >= 200, seconds=15, what="callers")
    fleet.wait_states(callers, "ended", seconds=40)
    assert not fleet.lost(callers), fleet.lost(callers)[0]
    assert_handed_over(fleet, since=began)
    fleet.wait_settled("listener.1", "listener.2")


def test_a_leader_that_froze_wakes_up_and_closes_no_socket(fleet: Fleet) -> None:
    """It is frozen while it assigns the sockets of a listener that is lost, and another leader assigns them."""
    holder = "SELECT split_part(holder, '/', 1) FROM ari.leases WHERE name = 'scheduler'"
    leader = fleet.pipeline.value(holder)
    legs = fleet.connect_all()
    # Its next write waits for this lock, and is under way when it freezes.
    with psycopg.connect(fleet.pipeline.database_url) as held:
        held.execute("LOCK TABLE ari.connection_versions IN SHARE MODE")
        fleet.pipeline.kill("listener.2")
        fleet.until(lambda: fleet.pipeline.value(_WAITS), seconds=10, what="the leader waits for the lock")
        fleet.pipeline.signal(leader, signal.SIGSTOP)
    fleet.until(lambda: fleet.pipeline.value(holder) != leader, seconds=15, what="another one leads")
    fleet.wait_settled("listener.1", seconds=30)
    before = fleet.assignments()
    woken = time.monotonic()
    fleet.pipeline.signal(leader, signal.SIGCONT)
    time.sleep(3)
    assert fleet.assignments() == before
    assert fleet.is_heard()
    lost = [one for some in fleet.lifetimes(since=woken).values() for one in some if one.closed_at is not None]
    assert lost == [], "a socket was closed"
    assert_no_older_epoch(fleet)
    fleet.end(legs)


#: Whether a statement waits for the lock of a table.
_WAITS = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'ari.connection_versions'::regclass)"
