"""Each step is held at a gate while the caller hangs up: whatever the moment, nothing is left and the run is ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest

from simulator.testing import SimulatedAsterisk
from tests.acceptance.pipeline import Pipeline, Tenant, wait_until

pytestmark = pytest.mark.services

#: Method, path and moment of the request at which the call is held.
REQUESTS = [
    pytest.param("POST", "/channels/externalMedia", "before", id="media-leg-before-it-is-made"),
    pytest.param("POST", "/channels/externalMedia", "after", id="media-leg-made-answer-withheld"),
    pytest.param("POST", "/bridges/*-b1", "before", id="bridge-before-it-is-made"),
    pytest.param("POST", "/bridges/*-b1", "after", id="bridge-made-answer-withheld"),
    pytest.param("POST", "/channels/*/answer", "before", id="answer-before"),
    pytest.param("POST", "/channels/*/answer", "after", id="answered-answer-withheld"),
    pytest.param("POST", "/bridges/*/addChannel", "before", id="legs-before-they-are-joined"),
    pytest.param("POST", "/bridges/*/addChannel", "after", id="legs-joined-answer-withheld"),
    pytest.param("GET", "/bridges/*-b1", "before", id="join-not-verified-yet"),
]
#: The table whose lock holds a step that asks no Asterisk.
TABLES = [
    pytest.param("organization_configurations", id="quota-while-routing"),
    pytest.param("workflow_runs", id="runs-while-creating-the-run"),
]


@pytest.fixture
def running(pipeline: Pipeline, tenant: Tenant, simulated: SimulatedAsterisk) -> Pipeline:
    """Everything up, the tenant's socket connected."""
    tenant.configure(simulated.url)
    pipeline.start()
    pipeline.wait_connected()
    return pipeline


@contextlib.contextmanager
def table_locked(database_url: str, table: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(psycopg.connect(database_url)) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield connection
        connection.rollback()


def hang_up_while_held(running: Pipeline, simulated: SimulatedAsterisk, leg: str) -> None:
    """The caller goes, and the pipeline knows it, while the step is still held."""
    simulated.control.hang_up(leg)
    wait_until(lambda: running.state(leg) in ("ending", "ended"), seconds=5, what=lambda: running.story(leg))


def assert_nothing_is_left(running: Pipeline, simulated: SimulatedAsterisk, leg: str) -> None:
    wait_until(lambda: running.state(leg) == "ended", seconds=40, what=lambda: running.story(leg))
    wait_until(lambda: not simulated.control.channels(), seconds=5, what=lambda: str(simulated.control.channels()))
    assert simulated.control.bridges() == [], running.story(leg)
    call = running.call(leg)
    assert call["outcome"] == "abandoned", running.story(leg)
    assert simulated.control.crashes == 0
    runs = running.query("SELECT is_completed, state, usage_info FROM workflow_runs")
    assert all(run["is_completed"] and run["usage_info"] == {"call_duration_seconds": 0} for run in runs), runs
    assert len(runs) <= 1
    steps = [row["name"] for row in running.timeline(leg) if row["kind"] == "transition"]
    assert steps[-1] == "LegsRemoved", running.story(leg)
    assert steps[-2] in ("CallerLeft", "CallerHangingUp", "CallerGone"), running.story(leg)


@pytest.mark.parametrize(("method", "path", "when"), REQUESTS)
def test_a_hang_up_while_a_request_is_held_leaves_nothing(
    running: Pipeline, simulated: SimulatedAsterisk, method: str, path: str, when: Literal["before", "after"]
) -> None:
    with simulated.control.hold(method, path, when) as gate:
        leg = simulated.control.dial("voiceai")
        gate.wait_arrived(10)
        hang_up_while_held(running, simulated, leg)
        gate.release()
    assert_nothing_is_left(running, simulated, leg)
    hung_up = next(row for row in running.timeline(leg) if row["state_to"] == "ending")
    pattern = path.replace("/channels/*", "").rpartition("*")[2]

    def requests() -> list[dict[str, Any]]:
        made = [row for row in running.timeline(leg) if row["kind"] == "request" and row["name"].startswith(method)]
        return [row for row in made if pattern in row["name"]]

    # The step that was held may tell of it after the teardown has ended.
    wait_until(requests, seconds=10, what=lambda: running.story(leg))
    held = requests()[0]
    assert held["at"] < hung_up["at"], f"the request was not under way when the caller hung up:\n{running.story(leg)}"
    assert held["took_ms"] > (hung_up["at"] - held["at"]).total_seconds() * 1000, running.story(leg)


@pytest.mark.parametrize("table", TABLES)
def test_a_hang_up_while_the_database_is_held_leaves_nothing(
    running: Pipeline, simulated: SimulatedAsterisk, database_url: str, table: str
) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    with table_locked(database_url, table):
        leg = simulated.control.dial("voiceai")
        wait_until(lambda: running.value(waiting, table), seconds=5, what="the step waits for the table")
        simulated.control.hang_up(leg)
        if table == "organization_configurations":
            wait_until(lambda: running.state(leg) in ("ending", "ended"), seconds=5, what=lambda: running.story(leg))
    assert_nothing_is_left(running, simulated, leg)


def test_a_hang_up_while_the_teardown_is_held_changes_nothing(running: Pipeline, simulated: SimulatedAsterisk) -> None:
    leg = simulated.control.dial("voiceai")
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    (media,) = [channel["id"] for channel in simulated.control.channels() if channel["id"].startswith("aip-")]
    with simulated.control.hold("GET", f"/channels/{leg}", "after") as gate:
        simulated.control.hang_up(media)
        gate.wait_arrived(10)
        simulated.control.hang_up(leg)
        gate.release()
    wait_until(lambda: running.state(leg) == "ended", seconds=20, what=lambda: running.story(leg))
    assert running.call(leg)["outcome"] == "completed"
    assert simulated.control.channels() == []
    assert simulated.control.bridges() == []
