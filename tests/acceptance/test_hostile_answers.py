"""A tenant whose Asterisk answers all requests with what costs most: another tenant is served. Real processes.

`bench/hostile_answers.py`, whose proxy this is, measures times and memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from bench.fairness import process
from devstack import processes
from devstack.pipeline import wait_until
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

CALLS = 4
#: What the proxy answers → what becomes of it.
ANSWERS = {
    "huge": "the answer is too large",
    "deep": "the answer has too many values for its size",
    "largest": "the answer is not a readable channel",
}


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("hostile-answers") as made:
        yield made


def test_hostile_answers_keep_no_other_tenant_waiting(deployment: Deployment) -> None:
    with deployment.environment() as theirs, deployment.environment() as ours:
        port = processes.free_port()
        with process("bench.hostile_answers", "--proxy", str(port), theirs.asterisk.url.rpartition(":")[2]):
            proxy = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_set(proxy, ""), seconds=60, what="the proxy answers")
            reconnect(theirs, proxy)
            for answer, outcome in ANSWERS.items():
                assert is_set(proxy, answer)
                waiting = [theirs.dial() for _ in range(CALLS)]
                ours.end(*ours.connect(CALLS))
                wait_told(theirs, outcome)
                ours.end(*ours.connect(CALLS))
                assert is_set(proxy, "")
                end(theirs, waiting)
            reconnect(theirs, theirs.asterisk.url)


def is_set(proxy: str, answer: str) -> bool:
    """Tell the proxy what to answer; return False if it is not there."""
    try:
        return requests.get(f"{proxy}/hostile/{answer}", timeout=20).ok
    except requests.ConnectionError:
        return False


def wait_told(env: Environment, words: str) -> None:
    env.until(lambda: words in env.describe(), seconds=20, what=words)


def reconnect(env: Environment, endpoint: str) -> None:
    env.tenant.configure(endpoint)
    env.until(lambda: env.pipeline.connected(endpoint), seconds=30, what="the socket is up")


def end(env: Environment, legs: list[str]) -> None:
    """Hang up those of the callers who are still there; wait until all is gone."""
    for leg in legs:
        env.wait_state(leg, "connected", "ended", seconds=60)
    for channel in env.control.channels():
        if channel["id"] in legs:
            env.control.hang_up(channel["id"])
    for leg in legs:
        env.wait_state(leg, "ended", seconds=60)
    env.wait_empty(seconds=60)
