"""Procedures of docs/operations.md during calls: restoring a database of an hour ago, and changing SECRET_KEY."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import programs
from devstack.pipeline import ROOT, SECRET_KEY
from shared import errors
from shared.process import sealing
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

OLD_KEY, NEW_KEY = "the key that was used for years", "the new key made only today"
#: A setting of its own, so that it survives the change of keys.
MEDIA_TOKEN_SECRET = sealing.media_secret(SECRET_KEY.split(",", maxsplit=1)[0])


@pytest.fixture
def deployment(deploy: Deploy, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A deployment for one test, which stops its processes."""
    with deploy(request.node.name, audio=True, SECRET_KEY=OLD_KEY, MEDIA_TOKEN_SECRET=MEDIA_TOKEN_SECRET) as made:
        yield made


def statements_of_the_page() -> list[str]:
    page = (ROOT / "docs/operations.md").read_text()
    statements = re.findall(r"^ *(UPDATE ari\..*?;)$", page, re.MULTILINE | re.DOTALL)
    assert len(statements) == 2
    return statements


def hears_the_agent(env: Environment, leg: str) -> bool:
    return env.control.heard(leg).dominant_hz == 400


def test_a_database_of_an_hour_ago_is_restored_while_calls_run(
    deployment: Deployment, env: Environment, tmp_path: Path
) -> None:
    pipeline, control = deployment.pipeline, env.control
    talking, leaves_later = env.connect(2)
    (over,) = env.connect()
    env.end_one(over)
    # Stopped when its attempt is stored and its media leg is requested.
    control.delay_media(1.5)
    being_set_up = env.dial()
    env.until(lambda: env.count("POST", "/channels/externalMedia") == 4, seconds=5, what="the agent is asked for")
    backup = tmp_path / "backup"
    postgres = programs.postgres_clients()
    subprocess.run(
        [postgres / "pg_dump", "--format=custom", f"--file={backup}", deployment.database_url], check=True, timeout=60
    )
    env.wait_state(being_set_up, "connected")
    control.delay_media(0)
    # The hour that the restore undoes.
    control.hang_up(leaves_later)
    env.wait_state(leaves_later, "ended")
    (later,) = env.connect()
    (later_and_over,) = env.connect()
    env.end_one(later_and_over)
    untouched = env.own(talking, "m"), env.own(talking, "b")
    forgotten = env.own(later, "m"), env.own(later, "b")
    last_run = pipeline.value("SELECT max(id) FROM workflow_runs")

    for name in ("scheduler", "worker", "listener"):
        assert pipeline.stop(name) == 0
    restore = ["--clean", "--if-exists", "--single-transaction", f"--dbname={deployment.database_url}"]
    subprocess.run([postgres / "pg_restore", *restore, backup], check=True, timeout=60)
    with deployment.queue() as client:
        client.flushdb()
    assert pipeline.state(leaves_later) == "connected", "the hour is forgotten"
    assert pipeline.state(being_set_up) == "prepared"
    assert not pipeline.calls(later, later_and_over)
    for statement in statements_of_the_page():
        pipeline.execute(statement)
    pipeline.execute("SELECT setval('workflow_runs_id_seq', %s)", last_run + 1000)
    seen = len(control.requests())
    arictl = [sys.executable, "-m", "arictl.main", "db", "upgrade"]
    environment = {"DATABASE_URL": deployment.database_url, "PYTHONPATH": str(ROOT)}
    subprocess.run(arictl, check=True, timeout=60, cwd=tmp_path, env=environment, capture_output=True)
    pipeline.start("listener", "scheduler")
    env.until(lambda: pipeline.connected(env.asterisk.url), seconds=15, what="the event socket is up")
    pipeline.start("worker")

    # Connected then and now: not touched.
    assert pipeline.state(talking) == "connected"
    # Hung up since: the call has ended, and its run with it.
    env.wait_state(leaves_later, "ended")
    assert env.run(leaves_later)["is_completed"]
    # Was being set up: hung up, not left in silence.
    env.wait_state(being_set_up, "ended")
    assert control.channel(being_set_up) is None
    # Called since and still there: set up again, with a run id that was never used and another agent.
    env.wait_state(later, "connected")
    assert env.run(later)["id"] > last_run + 999
    assert env.own(later, "m") not in forgotten
    env.until(lambda: hears_the_agent(env, later), seconds=5, what="he hears an agent")
    # Called since and gone: no call.
    assert not pipeline.calls(later_and_over)
    assert pipeline.state(over) == "ended"

    env.until(
        lambda: (
            {channel["id"] for channel in control.channels()} == {talking, untouched[0], later, env.own(later, "m")}
        ),
        seconds=10,
        what="nothing is left of the hour",
    )
    assert {bridge["id"] for bridge in control.bridges()} == {untouched[1], env.own(later, "b")}
    changing = [r.path for r in control.requests()[seen:] if r.method != "GET"]
    assert not [path for path in changing if talking in path or untouched[0] in path or untouched[1] in path]
    assert env.is_joined(talking)
    assert hears_the_agent(env, talking)
    env.end(talking, later)


def test_the_secret_key_is_changed_while_a_call_runs(deployment: Deployment, env: Environment) -> None:
    pipeline = deployment.pipeline
    (talking,) = env.connect()
    both = f"{NEW_KEY},{OLD_KEY}"

    def ready(name: str) -> int:
        """Return how often a process has logged that it is ready."""
        said = {"listener": "listener started", "worker": "worker started", "scheduler": "scheduler started"}[name]
        return (pipeline.logs / f"{name}.log").read_text().count(said)

    def restart(*names: str, key: str) -> None:
        for name in names:
            before = ready(name)
            assert pipeline.stop(name) == 0
            pipeline.start(name, SECRET_KEY=key)
            # A process that gets the signal before it handles it ends by the signal.
            env.until(lambda name=name, before=before: ready(name) > before, seconds=20, what=f"{name} is ready")  # type: ignore[misc]

    def sealed() -> list[dict[str, Any]]:
        return pipeline.query(
            "SELECT v.version, v.sealed_password, v.socket_state FROM ari.connection_versions v"
            " JOIN ari.connections c USING (connection_id, version)"
        )

    restart("listener", "worker", "scheduler", key=both)
    (leg,) = env.connect()
    env.end_one(leg)
    (before,) = sealed()
    assert sealing.Sealer((OLD_KEY,)).open(before["sealed_password"])

    restart("scheduler", key=NEW_KEY)
    env.until(
        lambda: sealed()[0]["version"] > before["version"] and sealed()[0]["socket_state"] == "connected",
        seconds=15,
        what="the password is sealed anew, and the socket handed over",
    )
    (after,) = sealed()
    assert sealing.Sealer((NEW_KEY,)).open(after["sealed_password"])
    with pytest.raises(errors.SealBroken):
        sealing.Sealer((OLD_KEY,)).open(after["sealed_password"])

    restart("listener", "worker", key=NEW_KEY)
    env.wait_ready()
    (leg,) = env.connect()
    env.end_one(leg)
    assert pipeline.state(talking) == "connected"
    assert hears_the_agent(env, talking)
    # Its row still names the version that is sealed with the old key.
    env.end(talking)
