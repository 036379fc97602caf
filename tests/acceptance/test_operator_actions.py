"""What an operator does, with the real processes: drain, park, resync, hang up, retry; and what `arictl top` shows."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from arictl import top
from devstack.pipeline import ROOT, SECRET_KEY
from shared import keys, messages, queues
from shared.call import commands
from shared.operator import overview_sample
from shared.storage import database
from tests import arictl_program
from tests.acceptance.environment import APP, Deploy, Deployment, Environment

pytestmark = pytest.mark.services

PICTURE = ROOT / "docs/images/arictl-top.svg"


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("operator") as made:
        yield made


def arictl(env: Environment, *words: str) -> str:
    """Run arictl as an operator does; return what it printed."""
    run = arictl_program.runner(env.pipeline.database_url, ROOT)
    done = run(*words, REDIS_URL=env.pipeline.redis_url, SECRET_KEY=SECRET_KEY)
    assert done.returncode == 0, done
    return done.stdout


def connection(env: Environment, *words: str) -> str:
    return arictl(env, "connection", words[0], str(env.connection["connection_id"]), *words[1:])


def test_a_drained_connection_refuses_new_calls_and_its_calls_go_on(env: Environment) -> None:
    (leg,) = env.connect()
    assert "is drained; 1 calls in progress" in connection(env, "drain")
    late = env.dial()
    env.wait_state(late, "ended")
    call = env.pipeline.call(late)
    assert (call["outcome"], call["reason"]) == ("refused", "connection drained by an operator"), env.describe()
    assert env.pipeline.state(leg) == "connected"
    assert env.is_joined(leg)
    connection(env, "unpark")
    env.end(leg, *env.connect())


def test_a_parked_connection_has_no_socket_and_its_calls_go_on(env: Environment) -> None:
    (leg,) = env.connect()
    connection(env, "park", "--reason", "maintenance")
    env.until(lambda: not env.control.sockets(APP), seconds=5, what="the socket is closed")
    assert env.is_joined(leg)
    # Its end is found by a resync: no event tells it.
    env.control.hang_up(leg)
    env.wait_state(leg, "ended")
    env.wait_empty()
    connection(env, "unpark")
    env.until(lambda: env.pipeline.connected(env.asterisk.url), seconds=10, what="the socket is open again")
    env.end(*env.connect())


def test_a_dead_letter_is_retried_by_a_worker(env: Environment) -> None:
    (leg,) = env.connect()
    call = env.pipeline.call(leg)
    message = messages.of_command(commands.TearDown(call_id=call["call_id"]), connection_id=call["connection_id"])
    client = queues.client(env.pipeline.redis_url)
    letters = f"{keys.NAMESPACE}:dead-letters"
    fields: dict[Any, Any] = {
        "queue": "teardown", "message_key": f"{call['connection_id']}/{message.message_id}",
        "body": message.encode(), "reason": "PermanentError: no\n",
    }  # fmt: skip
    client.xadd(letters, fields)
    frozen = json.loads(arictl(env, "dlq", "retry", "--connection", str(call["connection_id"]), "--json"))["set"]

    def is_settled() -> bool:
        (found,) = json.loads(arictl(env, "dlq", "set", str(frozen["set_id"]), "--json"))["sets"]
        return bool(found["ended_at"]) and found["done"] == found["total"] == 1

    env.until(is_settled, seconds=5, what="the scheduler has retried it")
    assert client.xlen(letters) == 0
    client.close()
    # The call is not being ended: the worker has read the message, and left it alone.
    env.until(lambda: env.pipeline.state(leg) == "connected", seconds=1, what="the call goes on")
    env.end(leg)


def test_the_picture_of_a_running_pipeline(env: Environment) -> None:
    legs = env.connect(3)
    connection(env, "resync")
    assert "is being ended" in arictl(env, "hangup", legs[0])
    env.wait_state(legs[0], "ended")
    audited = env.pipeline.query("SELECT action, outcome FROM ari.audit ORDER BY id DESC LIMIT 3")
    assert [tuple(row.values()) for row in audited] == [
        ("hangup", "done"), ("connection resync", "done"), ("connection resync", "asked"),
    ]  # fmt: skip
    db = database.Database(env.pipeline.database_url, size=1)
    db.open()
    client = queues.client(env.pipeline.redis_url)
    sample = overview_sample.take(db, client)
    db.close()
    client.close()
    assert sample.missing == ()
    assert sample.calls is not None
    assert sample.traffic is not None
    assert sample.calls.live == {"connected": 2}
    assert sample.calls.leader is not None
    assert (len(sample.traffic.listeners), len(sample.traffic.workers)) == (1, 1)
    screen = Console(record=True, width=80, height=24, file=io.StringIO())
    screen.print(top.picture(sample))
    text = screen.export_text(clear=False)
    assert "2 connected" in text
    assert len(text.splitlines()) <= 24
    if os.environ.get("UPDATE_DOCS"):
        # Without the fonts that it would load from elsewhere.
        PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", screen.export_svg(title="arictl top"), flags=re.DOTALL))
    env.end(*legs[1:])
