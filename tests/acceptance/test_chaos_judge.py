"""The judge of the chaos runs, proven by sabotage: a calm run is fine, and each thing done to it is reported."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.sync.client import connect

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import ROOT, Pipeline, procfile, wait_until
from devstack.tenants import PASSWORD, Tenant
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

APP = "voiceai"
SILENCE_SECONDS = 2.0


class Judge:
    """The judge's process, and the deeds it is told."""

    def __init__(
        self, folder: Path, *, asterisk: RealAsterisk, recordings: Path, tenant: Tenant, database_url: str, port: int
    ) -> None:
        self._deeds = (folder / "deeds.jsonl").open("a", buffering=1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.judge"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say({
            "folder": str(folder),
            "asterisk_url": asterisk.url,
            "user": "judge",
            "password": "judge",
            "database_url": database_url,
            "apps": {APP: tenant.organization_id},
            "agent_port": port,
            "caller_recordings": str(recordings),
            "agent_recordings": str(folder),
            "waiting_seconds": 3,
            "silence_seconds": SILENCE_SECONDS,
        })  # fmt: skip

    def deed(self, kind: str, **details: Any) -> None:
        """Tell that something was done now."""
        self._deeds.write(json.dumps({"deed": kind, "at": time.time(), **details}) + "\n")

    def ask(self, what: str) -> dict[str, Any]:
        """Ask `ready`, `setup` or `verdict`."""
        self._say({"ask": what})
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def verdict(self) -> dict[str, Any]:
        self.deed("end")
        return self.ask("verdict")

    def _say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        wait_until(lambda: self.ask("ready")["ready"], seconds=15, what="the judge observes")
        return self

    def __exit__(self, *_: object) -> None:
        self._deeds.close()
        with self._process as process:
            assert process.stdin
            process.stdin.close()
            assert process.wait(10) == 0


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    with real_stack.running(deploy, asterisk_root, stack_folder, "judged") as made:
        made.asterisk.configuration.users["judge"] = "judge"
        made.asterisk.reload()
        yield made


asterisk, agent = real_stack.FIXTURES[1:3]


@pytest.fixture
def judge(stack: RealStack, tmp_path: Path) -> Iterator[Judge]:
    """A judge that observes, before the first call of a test."""
    stack.agent.behaviour.record_in = tmp_path
    with Judge(
        tmp_path,
        asterisk=stack.asterisk,
        recordings=stack.asterisk._folder / "recordings",
        tenant=stack.tenant,
        database_url=stack.deployment.database_url,
        port=stack.agent.port,
    ) as made:
        yield made


@pytest.fixture
def running(stack: RealStack, judge: Judge) -> Iterator[Pipeline]:
    """All processes, with the tenant's event socket open."""
    with stack.test() as pipeline:
        yield pipeline


@pytest.fixture
def none_running(stack: RealStack) -> None:
    """No process; for the last tests of this file."""
    for name in procfile():
        if stack.pipeline.is_running(name):
            stack.pipeline.stop(name)


def call(judge: Judge, asterisk: RealAsterisk, *, listened: bool = False) -> str:
    leg = f"call-{uuid.uuid4().hex}"
    judge.deed("call", leg=leg, app=APP, direction="inbound", manner="seconds", sampled=listened)
    return asterisk.dial(channel_id=leg, far="tone" if listened else "wait", listen=listened)


def hang_up(judge: Judge, asterisk: RealAsterisk, leg: str) -> None:
    judge.deed("hang-up", leg=leg)
    asterisk.hang_up_caller(leg)


def wait_ended(pipeline: Pipeline, *legs: str, seconds: float = 15) -> None:
    wait_until(
        lambda: all(pipeline.state(leg) == "ended" for leg in legs),
        seconds=seconds,
        what=lambda: "\n".join(pipeline.story(leg) for leg in legs),
    )


def kinds(verdict: dict[str, Any]) -> set[str]:
    return {violation["kind"] for violation in verdict["violations"]}


def test_a_calm_run_breaks_no_promise(running: Pipeline, asterisk: RealAsterisk, judge: Judge) -> None:
    listened, plain = call(judge, asterisk, listened=True), call(judge, asterisk)
    wait_until(lambda: running.state(listened) == running.state(plain) == "connected", seconds=10)
    brief = call(judge, asterisk)
    # One that left before it entered Stasis would have no row.
    wait_until(lambda: running.state(brief) is not None, seconds=10)
    hang_up(judge, asterisk, brief)
    time.sleep(4)
    for leg in (listened, plain):
        hang_up(judge, asterisk, leg)
    wait_ended(running, listened, plain, brief)
    verdict = judge.verdict()
    assert verdict["violations"] == []
    by_leg = {one["leg"]: one for one in verdict["calls"]}
    assert {leg: by_leg[leg]["outcome"] for leg in (listened, plain)} == {listened: "connected", plain: "connected"}
    assert by_leg[plain]["offered_at"] <= by_leg[plain]["entered_at"] <= by_leg[plain]["bridged_at"]
    assert 0 < by_leg[plain]["wait_seconds"] < 5
    assert verdict["totals"]["offered"] == 3
    assert verdict["totals"]["listened"] == 1


def test_a_leaked_bridge_a_doubled_run_and_a_deaf_caller_are_reported(
    running: Pipeline, asterisk: RealAsterisk, judge: Judge, agent: Agent
) -> None:
    agent.behaviour.mode = "echo"
    leg = call(judge, asterisk, listened=True)
    wait_until(lambda: running.state(leg) == "connected", seconds=10)
    time.sleep(3.5)
    hang_up(judge, asterisk, leg)
    wait_ended(running, leg)
    found = running.call(leg)
    call_id = found["call_id"].hex
    asterisk.request("POST", f"/bridges/{running.own_id(found, 'b', 2)}", type="mixing").raise_for_status()
    running.execute(
        "INSERT INTO workflow_runs (name, workflow_id, mode, is_completed, gathered_context, initial_context,"
        " usage_info, cost_info, annotations) SELECT name, workflow_id, mode, is_completed, gathered_context,"
        " initial_context, usage_info, cost_info, annotations FROM workflow_runs"
    )
    verdict = judge.verdict()
    assert kinds(verdict) == {"bridge-left", "run-twice", "caller-hears-nothing"}
    for violation in verdict["violations"]:
        assert violation["call_id"] == call_id
        assert any("MediaReady" in line for line in violation["story"]), "the call's timeline"
        assert any(f"bridge {running.own_id(found, 'b')}" in line for line in violation["story"]), (
            "what Asterisk showed"
        )


def test_a_caller_who_is_put_to_another_call_s_agent_is_reported(
    running: Pipeline, asterisk: RealAsterisk, judge: Judge
) -> None:
    mine, other = call(judge, asterisk), call(judge, asterisk)
    wait_until(lambda: running.state(mine) == running.state(other) == "connected", seconds=10)
    bridges = asterisk.request("GET", "/bridges").json()
    (bridge,) = (bridge["id"] for bridge in bridges if other in bridge["channels"])
    asterisk.request("POST", f"/bridges/{bridge}/addChannel", channel=mine).raise_for_status()
    time.sleep(0.5)
    for leg in (mine, other):
        hang_up(judge, asterisk, leg)
    wait_ended(running, mine, other)
    verdict = judge.verdict()
    assert kinds(verdict) == {"wrong-agent", "two-callers"}
    assert {violation["leg"] for violation in verdict["violations"]} <= {mine, other}


def test_a_call_that_is_hung_up_for_no_reason_is_reported_as_lost(
    running: Pipeline, asterisk: RealAsterisk, judge: Judge
) -> None:
    """Its caller did not hang up, and no fault explains it."""
    leg = call(judge, asterisk)
    wait_until(lambda: running.state(leg) == "connected", seconds=10)
    asterisk.request("DELETE", f"/channels/{leg}").raise_for_status()
    wait_ended(running, leg)
    assert kinds(judge.verdict()) == {"call-lost"}


def test_an_asterisk_that_dies_takes_its_calls_along(running: Pipeline, asterisk: RealAsterisk, judge: Judge) -> None:
    leg = call(judge, asterisk)
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    judge.deed("fault", number=1, name="Asterisk killed", target="asterisk", until=None, outage=True, apps=None)
    killed_at = time.time()
    asterisk.restart()
    judge.deed("mended", number=1, until=time.time())
    wait_ended(running, leg, seconds=30)
    wait_until(running.connected, seconds=20)
    later = call(judge, asterisk)
    wait_until(lambda: running.state(later) == "connected", seconds=10, what=lambda: running.story(later))
    hang_up(judge, asterisk, later)
    wait_ended(running, later)
    verdict = judge.verdict()
    assert verdict["violations"] == []
    lost, served = verdict["calls"]
    assert lost["ended_at"] == pytest.approx(killed_at, abs=0.5)
    assert served["outcome"] == "connected"
    (fault,) = verdict["faults"]
    assert fault["served_again_seconds"] == pytest.approx(served["bridged_at"] - fault["at"])


def test_a_caller_whom_no_app_takes_is_not_in_set_up(none_running: None, asterisk: RealAsterisk, judge: Judge) -> None:
    leg = call(judge, asterisk)
    time.sleep(1)
    hang_up(judge, asterisk, leg)
    wait_until(lambda: not asterisk.channels(), seconds=5)
    verdict = judge.verdict()
    assert verdict["violations"] == []
    (one,) = verdict["calls"]
    assert (one["entered_at"], one["outcome"]) == (None, "abandoned")


def test_a_caller_who_is_answered_and_left_alone_is_reported(
    none_running: None, asterisk: RealAsterisk, judge: Judge
) -> None:
    """The pipeline does not run: the test itself is the app, and leaves the caller in it."""
    url = f"{asterisk.url.replace('http', 'ws')}/ari/events?app={APP}"
    with connect(url, additional_headers=basic(APP, PASSWORD)):
        leg = call(judge, asterisk)
        wait_until(lambda: judge.ask("setup") == {"legs": {leg: APP}}, seconds=5, what="the caller is in set-up")
        judge.deed("fault", number=1, name="agent down", target="agent", until=None, outage=False, apps=None)
        asterisk.request("POST", f"/channels/{leg}/answer").raise_for_status()
        time.sleep(SILENCE_SECONDS + 2)
        verdict = judge.verdict()
    assert kinds(verdict) == {"caller-in-silence", "caller-waits", "call-without-row", "channel-left"}
    (fault,) = verdict["faults"]
    assert (fault["in_setup"], fault["served_again_seconds"]) == (1, None)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
