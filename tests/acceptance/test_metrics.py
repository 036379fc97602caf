"""What the processes tell of a real call, and while Redis or Postgres is away."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from devstack import processes
from devstack.pipeline import CONSOLE, ROOT, SECRET_KEY, Pipeline, wait_until
from shared.process import metrics
from shared.process.metric_kinds import Process
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.support.metrics_pages import got, series

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("metrics", LOOK_SECONDS="0.2") as made:
        made.pipeline.start(CONSOLE)
        yield made


def total(pipeline: Pipeline, name: str, metric: str, *labels: str) -> float:
    """Return the sum of the series of a metric that have these labels."""
    return sum(
        number
        for key, number in series(pipeline, name).items()
        if key.partition("{")[0] == metric and all(label in key for label in labels)
    )


def families(pipeline: Pipeline, name: str) -> set[str]:
    """Return what a process exports, with or without a series."""
    return set(re.findall(r"^# TYPE (\S+)", got(pipeline, name, "/metrics").text, re.MULTILINE))


def test_each_process_exports_what_the_list_says_of_a_real_call(env: Environment) -> None:
    pipeline = env.pipeline
    for process in Process:
        assert families(pipeline, process) == {metric.name for metric in metrics.ALL if process in metric.of}
    before = {name: series(pipeline, name) for name in ("listener", "worker", "scheduler")}
    (leg,) = env.connect()
    wait_until(lambda: total(pipeline, "scheduler", "calls_live", 'state="connected"') == 1, seconds=10)
    # Which workers live is known once they may have polled.
    wait_until(lambda: total(pipeline, "scheduler", "workers") == 1, seconds=20)
    scheduler = series(pipeline, "scheduler")
    assert scheduler["leader"] == 1
    assert scheduler["slots_taken"] == 1
    assert scheduler[f'connection_up{{connection="{env.connection["connection_id"]}"}}'] == 1
    assert (scheduler["connections"], scheduler["connections_down"]) == (1, 0)
    assert scheduler["listeners"] == 1
    assert scheduler["dead_letters_kept"] == 0
    assert scheduler['queue_oldest_message_seconds{queue="media"}'] == 0
    env.end_one(leg)
    worker = series(pipeline, "worker")
    ended = 'calls_ended_total{direction="inbound",fault="none",outcome="completed"}'
    assert worker[ended] == before["worker"][ended] + 1
    assert worker['call_setup_seconds_count{direction="inbound"}'] == 1
    assert 0 < worker['call_setup_seconds_sum{direction="inbound"}'] < 30
    for step in "admission", "media", "bridge", "teardown":
        assert worker[f'step_seconds_count{{result="done",step="{step}"}}'] > 0, step
    answered = 'route="/channels/{id}/answer",status="2xx",verb="POST"'
    assert worker[f"ari_request_seconds_count{{{answered}}}"] == 1
    assert worker['queue_wait_seconds_count{queue="admission"}'] >= 1
    assert worker['database_connections{state="idle"}'] + worker['database_connections{state="in-use"}'] >= 1
    assert worker["circuit_breakers_open"] == 0
    listener = series(pipeline, "listener")
    assert listener["events_total"] >= 2
    assert listener['event_sockets{state="connected"}'] == 1
    last = listener[f'connection_last_event_timestamp_seconds{{connection="{env.connection["connection_id"]}"}}']
    assert abs(last - listener["process_start_time_seconds"]) < 600
    for name, earlier in before.items():
        now = series(pipeline, name)
        assert all(now[key] >= value for key, value in earlier.items() if key.partition("{")[0].endswith("_total"))
        assert now["metrics_failed_total"] == 0
        assert now["process_resident_memory_bytes"] > 2**20
        assert now["oldest_work_seconds"] < 60


@pytest.mark.parametrize(("name", "away"), [("listener", "redis"), ("worker", "postgres")])
def test_what_is_away_is_named_and_the_metrics_go_on(pipeline: Pipeline, name: str, away: str) -> None:
    port, unused = processes.free_port(), f"127.0.0.1:{processes.free_port()}"
    url = {"redis": {"REDIS_URL": f"redis://{unused}/0"}, "postgres": {"DATABASE_URL": f"postgresql://u:p@{unused}/x"}}
    pipeline.start(name, METRICS_PORT=str(port), **url[away])
    where = f"http://127.0.0.1:{port}"

    def is_alive() -> bool:
        try:
            return requests.get(f"{where}/healthz", timeout=5).ok
        except requests.ConnectionError:
            return False

    wait_until(is_alive, seconds=15, what=pipeline.log_tail)
    answer = requests.get(f"{where}/readyz", timeout=5)
    assert answer.status_code == 503
    servers = {"redis"} if name == "listener" else {"postgres", "redis"}
    found = json.loads(answer.text)["dependencies"]
    assert {server for server, said in found.items() if said == "ok"} == servers - {away}
    assert unused not in answer.text
    assert requests.get(f"{where}/metrics", timeout=5).ok


@pytest.mark.parametrize("module", ["listener.main", "workers.main"])
def test_a_port_in_use_ends_a_process_with_a_sentence(module: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", module],
            check=False,
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x",
                "REDIS_URL": "redis://127.0.0.1:1/0",
                "SECRET_KEY": SECRET_KEY,
                "METRICS_PORT": str(port),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"METRICS_PORT={port}" in done.stderr
    assert "Traceback" not in done.stderr
