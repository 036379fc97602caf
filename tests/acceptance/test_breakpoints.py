"""Each step is stopped at a breakpoint while the caller hangs up: at any moment, nothing is left and the run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest

from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

#: Method, path and moment of the request that is stopped.
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
#: The table whose lock stops a step that makes no request.
TABLES = [
    pytest.param("organization_configurations", id="admission-while-routing"),
    pytest.param("workflow_runs", id="runs-while-creating-the-run"),
]


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    # As in production: faster ones would find a hang-up before its events report it.
    with deploy("breakpoints", READ_SECONDS="4", RESYNC_SECONDS="15", SWEEP_SECONDS="1") as made:
        yield made


@contextlib.contextmanager
def table_locked(database_url: str, table: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(psycopg.connect(database_url)) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield connection
        connection.rollback()


def assert_nothing_is_left(env: Environment, leg: str, *, is_recorded_first: bool | None = False) -> None:
    """Check the end of a call. `is_recorded_first`: the hang-up was recorded before its admission; None for either."""
    env.wait_state(leg, "ended", seconds=40)
    env.until(lambda: not env.control.channels(), seconds=5, what="no channel is left")
    assert env.control.bridges() == [], env.describe()
    assert env.pipeline.call(leg)["outcome"] == "abandoned", env.describe()
    runs = env.pipeline.query(
        "SELECT is_completed, state, usage_info FROM workflow_runs WHERE workflow_id = %s", env.tenant.workflow_id
    )
    assert all(run["is_completed"] and run["usage_info"] == {"call_duration_seconds": 0} for run in runs), runs
    assert len(runs) <= 1
    steps = [row["name"] for row in env.pipeline.timeline(leg) if row["kind"] == "transition"]
    if is_recorded_first or (is_recorded_first is None and len(steps) == 1):
        assert steps == ["CallRecorded"], env.describe()
        assert runs == []
        return
    assert steps[-1] == "LegsRemoved", env.describe()
    assert steps[-2] in ("CallerLeft", "CallerHangingUp", "CallerGone"), env.describe()


@pytest.mark.parametrize(("method", "path", "when"), REQUESTS)
def test_a_hang_up_while_a_request_is_held_leaves_nothing(
    env: Environment, method: str, path: str, when: Literal["before", "after"]
) -> None:
    with env.control.hold(method, path, when) as point:
        leg = env.dial()
        point.wait_arrived(10)
        # The caller hangs up, and the pipeline knows it, while the step is still stopped.
        env.control.hang_up(leg)
        env.wait_state(leg, "ending", "ended", seconds=5)
        point.release()
    assert_nothing_is_left(env, leg)
    hung_up = next(row for row in env.pipeline.timeline(leg) if row["state_to"] == "ending")
    pattern = path.replace("/channels/*", "").rpartition("*")[2]

    def requests() -> list[dict[str, Any]]:
        made = [row for row in env.pipeline.timeline(leg) if row["kind"] == "request"]
        return [row for row in made if row["name"].startswith(method) and pattern in row["name"]]

    # The stopped step may write its timeline entry after the teardown has ended.
    env.until(requests, seconds=10, what="the request is in the timeline")
    held = requests()[0]
    assert held["at"] < hung_up["at"], f"the request was not under way when the caller hung up:\n{env.describe()}"
    assert held["took_ms"] > (hung_up["at"] - held["at"]).total_seconds() * 1000, env.describe()


@pytest.mark.parametrize("table", TABLES)
def test_a_hang_up_while_the_database_is_held_leaves_nothing(
    deployment: Deployment, env: Environment, table: str
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND relation = %s::regclass AND starts_with(application_name, 'worker')"
    )
    is_routing = table == "organization_configurations"
    with table_locked(deployment.database_url, table):
        leg = env.dial()
        env.until(lambda: env.pipeline.value(waiting, table), seconds=5, what="the step waits for the table")
        env.control.hang_up(leg)
        if is_routing:
            env.wait_state(leg, "ended", seconds=5)
    # A quick admission that waits has written nothing yet: the hang-up is recorded, and the admission finds that.
    assert_nothing_is_left(env, leg, is_recorded_first=True if is_routing else None)


def test_a_hang_up_while_the_teardown_is_held_changes_nothing(env: Environment) -> None:
    (leg,) = env.connect()
    with env.control.hold("GET", f"/channels/{leg}", "after") as point:
        env.control.hang_up(env.own(leg, "m"))
        point.wait_arrived(10)
        env.control.hang_up(leg)
        point.release()
    env.wait_state(leg, "ended", seconds=20)
    assert env.pipeline.call(leg)["outcome"] == "completed"
    assert env.control.channels() == []
    assert env.control.bridges() == []
