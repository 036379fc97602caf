"""What the leading scheduler looks at for its gauges: real Postgres, real Redis."""

from __future__ import annotations

import contextlib
import re
import threading

import prometheus_client
import pytest

from scheduler import looks
from scheduler.looks import Looks
from scheduler.resyncs import Resyncs
from shared import keys, messages
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from shared.operator import connection_actions
from shared.operator.audit import Actor
from shared.process import metrics, process_metrics
from shared.process.metric_kinds import PREFIX, Exported, Process
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


def exported() -> dict[str, float]:
    """Return the series of a scheduler."""
    text = prometheus_client.generate_latest(Exported(metrics.ALL, Process.SCHEDULER)).decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {re.sub(f"^{PREFIX}", "", name): float(number) for name, _, number in lines}


def make(harness: SchedulerHarness, *, connections: int = 1000) -> Looks:
    made = Looks(harness.leader_db, harness.broker, seconds=5, sweep_seconds=1, resync_seconds=15)
    looks.read(harness.leader, harness.assigner, made, connections=connections)
    return made


def test_a_look_counts_calls_slots_queues_and_dead_letters(harness: SchedulerHarness) -> None:
    harness.configure(1)
    for number, state in enumerate((State.RECEIVED, State.CONNECTED, State.CONNECTED, State.ENDING, State.ENDED)):
        harness.new_call(f"{number}.1", state, due_in=60)
    made = make(harness)
    assert "calls_ending" not in exported(), "nothing was looked at yet"
    harness.commands.send(messages.of_resync(connection=ConnectionVersion(1, 1), reason="test", full=True))
    harness.client.xadd(f"{keys.NAMESPACE}:dead-letters", {"queue": "media"})
    made.look_at_calls()
    made.look_at_queues()
    found = exported()
    assert {state: found[f'calls_live{{state="{state}"}}'] for state in ("received", "connected", "joining")} == {
        "received": 1,
        "connected": 2,
        "joining": 0,
    }
    assert (found["calls_ending"], found["slots_taken"]) == (1, 2)
    assert found['queue_messages{queue="resync",state="waiting"}'] == 1
    assert found['queue_messages{queue="media",state="waiting"}'] == 0
    assert found["dead_letters_kept"] == 1


def test_the_age_of_resyncs_is_that_of_the_connection_that_waits_longest(harness: SchedulerHarness) -> None:
    harness.configure(2)
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected'")
    made, resyncs = make(harness), Resyncs(harness.leader_db, harness.commands, seconds=15)
    made.look_at_calls()
    assert "resync_age_seconds" not in exported(), "none was requested yet"
    resyncs.request_resyncs()
    harness.execute(
        "UPDATE ari.resyncs SET due_at = clock_timestamp() - interval '100 seconds' WHERE connection_id = 1"
    )
    made.look_at_calls()
    assert 115 <= exported()["resync_age_seconds"] < 175


def test_of_the_connections_those_that_are_down_have_a_series_first(harness: SchedulerHarness) -> None:
    harness.configure(3)
    harness.listeners.beat("l1")
    harness.tick(2)
    made_of = harness.listeners.assigned("l1")
    for key in ("1:1", "2:1"):
        harness.listeners.report("l1", made_of[key])
    harness.listeners.beat("l1")
    harness.tick()
    make(harness, connections=2)
    found = exported()
    up = {name: number for name, number in found.items() if name.startswith("connection_up")}
    assert up == {'connection_up{connection="1"}': 1, 'connection_up{connection="3"}': 0}
    assert (found["connections"], found["connections_down"], found["listeners"]) == (3, 1, 1)


def test_what_an_operator_has_parked_is_not_told_as_down(harness: SchedulerHarness) -> None:
    harness.configure(4)
    harness.listeners.beat("l1")
    harness.tick(2)
    actor = Actor(who="alice", via="arictl")
    connection_actions.park(harness.leader_db, actor, 1)
    connection_actions.drain(harness.leader_db, actor, 2)
    # Parked by a competing client: its callers are lost.
    harness.execute("UPDATE ari.connection_versions SET parked_at = clock_timestamp() WHERE connection_id = 3")
    harness.tick()
    make(harness)
    found = exported()
    up = {name: number for name, number in found.items() if name.startswith("connection_up")}
    assert up == {f'connection_up{{connection="{number}"}}': 0 for number in (2, 3, 4)}
    assert (found["connections"], found["connections_down"]) == (3, 3)
    suspended = [found[f'connections_suspended{{suspension="{name}"}}'] for name in ("park", "drain")]
    assert suspended == [1, 1]


def test_a_scheduler_that_stands_by_or_has_not_looked_lately_tells_nothing_old(
    harness: SchedulerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(harness)
    made.look_at_calls()
    made.overdue.put(3)
    assert exported()["calls_overdue"] == 3
    monkeypatch.setattr(looks, "_SECONDS", -1000.0)
    assert "calls_overdue" not in exported(), "too long ago"
    monkeypatch.undo()
    harness.leader.release()
    found = exported()
    assert found["leader"] == 0
    assert not {"calls_overdue", "calls_ending", "connections", "slots_taken"} & found.keys()


def test_a_scrape_waits_for_no_lock_and_no_connection(harness: SchedulerHarness) -> None:
    make(harness)
    process_metrics.read_database(harness.db.usage, most=6)
    found: dict[str, float] = {}
    scrape = threading.Thread(target=lambda: found.update(exported()), daemon=True)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(harness.db.connection())
        stack.enter_context(harness.db._pool._lock)
        scrape.start()
        scrape.join(10)
        assert not scrape.is_alive()
    assert found['database_connections{state="in-use"}'] == found["database_connections_most"] == 6
