"""The ten questions of docs/troubleshooting.md: each is asked by the page's command after the thing has happened."""

from __future__ import annotations

import os
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from devstack import monitoring, prometheus
from devstack.pipeline import ROOT, SECRET_KEY, wait_until
from shared import keys, messages
from shared.call import commands
from tests import arictl_program
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.support import metrics_pages

pytestmark = pytest.mark.services

PAGE = ROOT / "docs/troubleshooting.md"
#: Below the second after which the simulated Asterisk gives the connection up.
SLOW_SECONDS = 0.8


def questions() -> dict[str, str]:
    """The page's questions → the command that answers each."""
    part = PAGE.read_text().partition("## Ten questions\n")[2].partition("\n## ")[0]
    found = {}
    for section in part.split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        (command,) = re.findall(r"^```sh\narictl (.+)\n```$", text, re.MULTILINE)
        found[heading] = command
    return found


def columns(text: str) -> list[list[str]]:
    """The cells of the lines of a table."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("runbook", LOOK_SECONDS="0.5") as made:
        yield made


@pytest.fixture(scope="module")
def env(deployment: Deployment) -> Iterator[Environment]:
    """A tenant and its Asterisk for all tests of the file."""
    with deployment.environment() as made:
        yield made


@dataclass(kw_only=True)
class Shift:
    """An operator's night: two tenants, and what has happened to them."""

    deployment: Deployment
    one: Environment
    other: Environment

    def arictl(self, command: str) -> str:
        """Run a command as the operator does."""
        run = arictl_program.runner(self.deployment.database_url, ROOT)
        done = run(*shlex.split(command), REDIS_URL=self.deployment.redis_url, SECRET_KEY=SECRET_KEY)
        assert done.returncode == 0, done
        return done.stdout

    def ask(self, beginning: str, **names: str) -> str:
        """Run the command of the question that begins so; what stands in capitals in it is what the test names."""
        (command,) = [command for question, command in questions().items() if question.startswith(beginning)]
        for name, value in names.items():
            assert name in command, command
            command = command.replace(name, value)
        assert not re.search(r"\b[A-Z]{3,}\b", command), f"{command}: what does it stand for?"
        answer = self.arictl(command)
        if os.environ.get("UPDATE_DOCS"):
            print(f"##### arictl {command}\n{answer}")  # noqa: T201 - for the page, by hand
        return answer


def test_the_page_answers_ten_questions_first() -> None:
    assert len(questions()) == 10
    first = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)[0]
    assert first == "Ten questions"


def test_each_question_is_answered_by_one_command(env: Environment, deployment: Deployment) -> None:
    with deployment.environment() as other:
        shift = Shift(deployment=deployment, one=env, other=other)
        leg = _slow_call(shift)
        refused = _refused_calls(shift)
        _retried_letter(shift, leg)
        _minutes_used_up(shift, leg)
        _audit(shift)
        _processes(shift)
        _backlog(shift)
        deployment.agent.behaviour.refuse = None
    assert refused


#: About what need not have happened here.
_NOT_HERE = {"Steps that failed: {{step}}"}


@pytest.mark.prometheus
def test_every_query_of_the_dashboard_and_every_rule_is_answered_by_a_real_prometheus(
    env: Environment, deployment: Deployment, prometheus_programs: prometheus.Programs, tmp_path: Path
) -> None:
    targets = [metrics_pages.address(deployment.pipeline, name) for name in ("listener", "worker", "scheduler")]
    with prometheus.running(prometheus_programs, tmp_path / "prometheus", targets) as url:
        env.end(*env.connect())

        def missing() -> list[str]:
            return [where for where, query in monitoring.queries() if not _is_answered(url, where, query)]

        wait_until(lambda: set(missing()) <= _NOT_HERE, seconds=20, every=0.5, what=lambda: f"no result: {missing()}")
        (group,) = requests.get(f"{url}/api/v1/rules", timeout=5).json()["data"]["groups"]
        assert {rule["name"]: rule["health"] for rule in group["rules"]} == {
            alert.name: "ok" for alert in monitoring.ALERTS
        }
        assert not [rule["name"] for rule in group["rules"] if rule["state"] == "firing"]


def _is_answered(url: str, where: str, query: str) -> bool:
    """True if a query has a result; that of an alert which does not fire has none."""
    answer = requests.get(f"{url}/api/v1/query", params={"query": query}, timeout=5).json()
    assert answer["status"] == "success", (where, query, answer)
    return bool(answer["data"]["result"]) or where in {alert.name for alert in monitoring.ALERTS}


def _slow_call(shift: Shift) -> str:
    """The agent takes its time: the slowest step is its."""
    behaviour = shift.deployment.agent.behaviour
    behaviour.accept_delay_seconds = SLOW_SECONDS
    (leg,) = shift.one.connect()
    behaviour.accept_delay_seconds = 0
    slowest = columns(shift.ask("Which step is slow"))[1]
    assert slowest[0] == "voice agent"
    assert slowest[-1] == "to accept the media leg"
    assert slowest[-2] == str(shift.one.pipeline.call(leg)["call_id"])[:8]
    return leg


def _refused_calls(shift: Shift) -> str:
    """The agent refuses the calls of one tenant."""
    shift.deployment.agent.behaviour.refuse = 409
    refused = [shift.other.dial() for _ in range(2)]
    for one in refused:
        shift.other.wait_state(one, "ended", seconds=20)
    shift.deployment.agent.behaviour.refuse = None
    losing = shift.ask("Is anybody losing calls")
    (row,) = [row for row in columns(losing) if row[0] == str(shift.other.tenant.organization_id)]
    first, last = (call["received_at"] for call in shift.other.calls())
    assert row[1:6] == ["agent", "2", "2", f"{first:%m-%d %H:%M:%S}", f"{last:%m-%d %H:%M:%S}"]
    assert "voice agent not reached" in losing
    tenants = columns(shift.ask("Which tenant"))
    (row,) = [row for row in tenants if row[1:2] == [str(shift.other.tenant.organization_id)]]
    assert row[-1] == "2 agent"
    assert shift.other.tenant.organization_id != shift.one.tenant.organization_id
    story = shift.ask("Why was this caller", CALL=refused[0])
    assert "Not connected: the voice agent was not there, or refused the socket, in 4 attempts within" in story
    assert "\N{REPLACEMENT CHARACTER}" not in story
    assert story.count("AttemptBegun") == 4
    return refused[0]


def _retried_letter(shift: Shift, leg: str) -> None:
    """A message has failed for good, and is retried."""
    call = shift.one.pipeline.call(leg)
    message = messages.of_command(commands.TearDown(call_id=call["call_id"]), connection_id=call["connection_id"])
    fields: dict[Any, Any] = {
        "queue": "teardown", "message_key": f"{call['connection_id']}/{message.message_id}",
        "body": message.encode(), "reason": "PermanentError: no\n",
    }  # fmt: skip
    with shift.deployment.queue() as client:
        client.xadd(f"{keys.NAMESPACE}:dead-letters", fields)
    shift.arictl("dlq retry --all --reason 'the agent is back'")
    shift.one.until(
        lambda: "to retry, ended" in shift.ask("What did the retry do"), seconds=5, what="the scheduler has retried it"
    )
    assert "1 of 1 done" in shift.ask("What did the retry do")


def _minutes_used_up(shift: Shift, leg: str) -> None:
    shift.one.end(leg)
    call_id = shift.one.pipeline.call(leg)["call_id"]
    shift.one.pipeline.execute(
        "UPDATE ari.calls SET connected_at = connected_at - interval '2 minutes', received_at = received_at"
        " - interval '2 minutes' WHERE call_id = %s",
        call_id,
    )
    shift.arictl(f"quota set --organization {shift.one.tenant.organization_id} --minutes 2")
    refused = shift.one.dial()
    shift.one.wait_state(refused, "ended")
    assert shift.one.pipeline.call(refused)["reason"] == "the month's 2 minutes are used up"
    limits = columns(shift.ask("Who used up").partition("minutes this month")[2])
    (row,) = [row for row in limits[1:] if row[0] == str(shift.one.tenant.organization_id)]
    assert row[-1] == "0"
    shift.arictl(f"quota remove --organization {shift.one.tenant.organization_id}")


def _audit(shift: Shift) -> None:
    changed = shift.ask("What changed")
    for told in ("quota set", "dlq retry", "configuration added", "started, release"):
        assert told in changed
    newest = [row[2] for row in columns(changed)[1:]]
    assert newest.index("quota remove") < newest.index("quota set") < newest.index("configuration added")


def _processes(shift: Shift) -> None:
    owners = shift.ask("Who holds this socket")
    for each in (shift.one, shift.other):
        (row,) = [row for row in columns(owners) if row[1:2] == [str(each.tenant.organization_id)]]
        assert row[4] == "connected"
        assert any(re.fullmatch(r"listener-[0-9a-f]{8}", cell) for cell in row), row
    told = shift.ask("What happens if this host dies", HOST=socket.gethostname())
    assert "No listener is left: 2 event sockets are closed" in told
    assert ["worker", "worker", "none"] in columns(told)
    for command in ("losses", "steps", "changes", f"processes --without {socket.gethostname()}"):
        # Its fields are checked.
        assert shift.arictl(f"{command} --json")


def _backlog(shift: Shift) -> None:
    """Callers come, and no worker runs."""
    pipeline = shift.deployment.pipeline
    pipeline.stop("worker")
    legs: list[str] = []
    answered = threading.Event()

    def call_and_call() -> None:
        # Until the command has counted twice, and for ten seconds at most.
        while len(legs) < 40 and not answered.wait(0.25):
            legs.append(shift.one.dial())

    callers = threading.Thread(target=call_and_call)
    callers.start()
    growing = columns(shift.ask("Is the backlog growing"))
    answered.set()
    callers.join()
    pipeline.start("worker")
    (row,) = [row for row in growing if row[0] == "admission"]
    assert int(row[1]) >= 3
    assert int(row[-1]) >= 2
    for leg in legs:
        shift.one.wait_state(leg, "connected", seconds=20)
    shift.one.end(*legs)
