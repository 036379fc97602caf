"""What an operator sees of a running pipeline: traces, log lines, processes, errors; and a level changed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.pipeline import wait_until
from shared.call.limits import Limits
from shared.process.traces import root_id
from shared.storage.timeline import MESSAGE_BEGUN, MessageBegun
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, only_call, request_call
from tests.arictl_program import Arictl, runner
from tests.support.trace_receiver import TraceReceiver, receiving

pytestmark = pytest.mark.services

#: Most rows that the timeline of a call has that nothing hinders but its agent.
MOST_ROWS = 40


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, collector: TraceReceiver) -> Iterator[Deployment]:
    with deploy(
        "observed", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200", LOG_FORMAT="auto"
    ) as made:
        yield made


@pytest.fixture
def arictl(deployment: Deployment, tmp_path: Path) -> Arictl:
    run = runner(deployment.database_url, tmp_path)
    return lambda *words, **more: run(*words, REDIS_URL=deployment.redis_url, **more)


def lines(deployment: Deployment, name: str) -> list[dict[str, Any]]:
    """Return the log of a process, each line of which is JSON."""
    return [json.loads(line) for line in (deployment.pipeline.logs / f"{name}.log").read_text().splitlines()]


def test_a_call_is_one_trace_over_all_that_worked_on_it(env: Environment, collector: TraceReceiver) -> None:
    (leg,) = env.connect(1)
    env.end(leg)
    call_id = env.pipeline.call(leg)["call_id"]
    root = f"{root_id(call_id):016x}"
    wait_until(
        lambda: any(span.span_id == root for span in collector.of(call_id.hex)), seconds=10, what="the call's own span"
    )
    found = collector.of(call_id.hex)
    names = {span.name for span in found}
    assert {span.service for span in found} == {"ari-pipeline-listener", "ari-pipeline-worker"}
    assert {"call inbound", "send admission", "wait in admission", "process admission", "step admission"} <= names
    assert {"step media", "POST /channels/externalMedia", "postgresql INSERT", "step bridge", "step teardown"} <= names
    known = {span.span_id for span in found}
    assert [span for span in found if span.parent_id not in known] == [span for span in found if span.span_id == root]
    assert all(span.began <= span.ended for span in found)
    ordered = next(span for span in found if span.name == "process teardown")
    assert ordered.attributes["messaging.destination.name"] == "teardown"


def test_the_timeline_tells_of_the_messages_and_stays_short(env: Environment) -> None:
    (leg,) = env.connect(1)
    env.end(leg)
    rows = env.pipeline.timeline(leg)
    told = {parsed.actor: parsed for row in rows if (parsed := MessageBegun.parse(row["detail"])) is not None}
    assert {"caller_entered", "media_leg_ready", "leg_ended"} <= set(told)
    assert len(rows) <= MOST_ROWS
    for actor in ("caller_entered", "media_leg_ready", "leg_ended"):
        assert told[actor].about
        assert 0 <= (told[actor].pushed_ms or 0) <= told[actor].begun_ms < 5_000
    came = next(row for row in rows if row["name"] == MESSAGE_BEGUN)
    assert came["at"] <= env.pipeline.call(leg)["received_at"]


def test_the_timeline_of_a_call_of_all_attempts_stays_short(env: Environment, deployment: Deployment) -> None:
    deployment.agent.behaviour.refuse = 409
    try:
        leg = env.dial()
        env.wait_state(leg, "ended", seconds=20)
    finally:
        deployment.agent.behaviour.refuse = None
    story = env.pipeline.story(leg)
    assert env.facts(leg).count("AttemptBegun") == Limits().attempts, story
    assert len(env.pipeline.timeline(leg)) <= MOST_ROWS, story


def test_the_timeline_of_an_outbound_call_stays_short(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, **LOCAL)
    request_call(env, "+4930123", caller_id="+4955501")
    leg = only_call(env, "connected")["channel_id"]
    env.end(leg)
    assert len(env.pipeline.timeline(leg)) <= MOST_ROWS, env.pipeline.story(leg)


def test_the_level_of_one_connection_changes_while_the_processes_run(
    env: Environment, deployment: Deployment, arictl: Arictl
) -> None:
    connection_id = env.connection["connection_id"]
    assert not [line for line in lines(deployment, "worker") if line["severity_text"] == "DEBUG"]
    done = arictl("log-level", "debug", "--connection", str(connection_id), "--for", "1m")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(
        lambda: arictl("processes").stdout.count(f"connection {connection_id}: debug") >= 3,
        seconds=12,
        what="the level is there",
    )
    (leg,) = env.connect(1)
    env.end(leg)
    call_id = str(env.pipeline.call(leg)["call_id"])
    logged = [line for line in lines(deployment, "worker") if line["severity_text"] == "DEBUG"]
    assert {line["event_name"] for line in logged} >= {"message begun", "message done", "asterisk asked", "call stored"}
    assert {int(str(line["connection"]).partition(":")[0]) for line in logged} == {connection_id}
    of_call = [line for line in logged if line.get("call") == call_id]
    assert {line["event_name"] for line in of_call} >= {"asterisk asked", "call stored"}
    assert {line["trace_id"] for line in of_call} == {call_id.replace("-", "")}
    assert [line for line in lines(deployment, "listener") if line["event_name"] == "event received"]
    assert arictl("log-level", "default", "--connection", str(connection_id)).returncode == 0


def test_a_process_that_was_killed_has_said_what_it_failed_at(
    env: Environment, deployment: Deployment, arictl: Arictl
) -> None:
    pipeline = deployment.pipeline
    pipeline.start("worker.2", LOG_LEVEL="info", DATABASE_URL="postgresql://u@127.0.0.1:1/none")
    wait_until(lambda: "postgres unavailable" in arictl("errors", "worker.2").stdout, seconds=20, what="its error")
    pipeline.kill("worker.2")
    assert "postgres unavailable" in arictl("errors", "worker.2").stdout
    assert "postgres unavailable" not in arictl("errors", "worker").stdout
    assert arictl("errors", "worker.3").returncode == 1
