"""Eight kinds of bad call on a real Asterisk, seen in a real browser: each call's page names what was seen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright import sync_api

from devstack import processes
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.endpoint import Mode
from devstack.pipeline import Pipeline, wait_until
from shared.operator import stories, verdict
from shared.operator.users import Users
from shared.operator.verdict import Verdict
from shared.storage import database
from shared.storage.timeline import HEARD
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack
from tests.acceptance.test_real_calls import attempts, ended
from tests.acceptance.test_real_resync import socket_state, taking_over
from tests.browser import conftest as browsers
from tests.support.cheap_passwords import hashed_cheaply

#: Of a call of four attempts, too.
MOST_ROWS = 40

pytestmark = [pytest.mark.asterisk, pytest.mark.browser, pytest.mark.services]

Judged = Callable[[str], Verdict]

DIALPLAN = """
[human]
exten => 1,1,Answer()
 same => n,Wait(3600)
"""


@pytest.fixture(scope="module")
def console_url() -> str:
    return f"http://127.0.0.1:{processes.free_port()}"


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path, console_url: str) -> Iterator[RealStack]:
    times = {"RESYNC_SECONDS": "1", "CONFIGURATIONS_SECONDS": "0.5", "RECLAIM_SECONDS": "1", "TALK_DETECTION": "on"}
    times["CONSOLE_PORT"] = console_url.rpartition(":")[2]
    with real_stack.running(deploy, asterisk_root, stack_folder, "verdicts", dialplan=DIALPLAN, times=times) as made:
        made.pipeline.start("web")
        yield made


running, asterisk, agent = real_stack.FIXTURES[:3]
chromium_path, browser = browsers.chromium_path, browsers.browser


@pytest.fixture(scope="module")
def db(stack: RealStack) -> Iterator[database.Database]:
    url = stack.pipeline.database_url
    with contextlib.closing(database.Database(url, size=2, statement_seconds=5, name="test")) as made:
        made.open()
        yield made


@pytest.fixture(scope="module")
def watched(
    browser: sync_api.Browser, stack: RealStack, db: database.Database, console_url: str
) -> Iterator[browsers.Watched]:
    """A tab of the process `web`, in which a user is signed in."""
    with hashed_cheaply():
        Users(db).add("olga", browsers.PASSWORD, "view")
    port = int(console_url.rpartition(":")[2])
    wait_until(lambda: not processes.port_is_free(port), seconds=20, what=stack.pipeline.log_tail)
    context = browser.new_context(base_url=console_url)
    context.set_default_timeout(10_000)
    made = browsers.Watched(context.new_page(), console_url)
    browsers.sign_in(made.page, "olga")
    yield made
    context.close()


def wait_state(running: Pipeline, leg: str, state: str, *, seconds: float = 20) -> None:
    wait_until(lambda: running.state(leg) == state, seconds=seconds, what=lambda: running.story(leg))


@pytest.fixture
def judged(db: database.Database, watched: browsers.Watched, running: Pipeline) -> Judged:
    """Returns the verdict on the call of a leg, which its page shows in the browser with the rows that are evidence."""

    def judge(leg: str) -> Verdict:
        call_id = running.call(leg)["call_id"]
        found = verdict.of(stories.get(db, call_id))
        assert found.evidence, found.sentence
        page = watched.page
        page.goto(f"/calls/{call_id}")
        sync_api.expect(page.locator(".verdict .sentence")).to_have_text(found.sentence)
        sync_api.expect(page.locator(".verdict .sentence")).to_be_in_viewport()
        if found.audio:
            sync_api.expect(page.locator(".verdict > .hint")).to_have_text(found.audio)
        sync_api.expect(page.locator(".verdict .rule > code").first).to_have_text(found.rule)
        assert page.locator(".verdict .notes li, tr.evidence").count()
        watched.assert_clean()
        return found

    return judge


def hang_up(running: Pipeline, asterisk: RealAsterisk, leg: str) -> None:
    asterisk.hang_up_caller(leg)
    wait_state(running, leg, "ended")


def test_an_agent_that_refuses(running: Pipeline, asterisk: RealAsterisk, agent: Agent, judged: Judged) -> None:
    agent.behaviour.refuse = 409
    leg = asterisk.dial()
    wait_until(lambda: ended(running, leg), seconds=20, what=lambda: running.story(leg))
    found = judged(leg)
    assert found.rule == "agent-refused", found.sentence
    assert len(running.timeline(leg)) <= MOST_ROWS, running.story(leg)
    assert "was not there, or refused the socket, in 4 attempts within" in found.sentence
    assert not found.audio


def test_an_agent_that_is_slow(running: Pipeline, asterisk: RealAsterisk, agent: Agent, judged: Judged) -> None:
    agent.behaviour.accept_delay_seconds = 2
    leg = asterisk.dial()
    wait_state(running, leg, "prepared")
    wait_state(running, leg, "connected")
    hang_up(running, asterisk, leg)
    found = judged(leg)
    assert found.rule == "agent-slow", found.sentence
    assert "for the voice agent to accept the media leg" in found.sentence


@pytest.mark.parametrize(
    ("mute", "mode", "far"), [("agent", "mute", "tone"), ("caller", "tone", "wait"), (None, "tone", "tone")]
)
def test_a_party_that_is_mute(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent, judged: Judged, *,
    mute: str | None, mode: Mode, far: str,
) -> None:  # fmt: skip
    """No event tells what a party does not send: the call lasts until that counts as mute."""
    agent.behaviour.mode = mode
    leg = asterisk.dial(far=far)
    wait_state(running, leg, "connected")
    heard = {party: note for party, note in HEARD.items() if party != mute}
    wait_until(lambda: all(note in running.story(leg) for note in heard.values()), seconds=10,
               what=lambda: running.story(leg))  # fmt: skip
    if mute is not None:
        time.sleep(verdict.MUTE_SECONDS)
    hang_up(running, asterisk, leg)
    found = judged(leg)
    assert found.rule == ("completed" if mute is None else f"{mute}-mute"), found.sentence
    for party in HEARD:
        assert (f"of none from the {party}" in found.audio) == (party == mute), found.audio
        assert (f"of audio from the {party} after" in found.audio) == (party != mute), found.audio
    assert ("sent no audio" in found.sentence) == (mute is not None)


def test_an_app_that_another_client_takes(running: Pipeline, asterisk: RealAsterisk, judged: Judged) -> None:
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    with taking_over(asterisk):
        wait_until(lambda: socket_state(running) == "replaced", seconds=10, what=lambda: socket_state(running))
        asterisk.hang_up_caller(leg)
        wait_state(running, leg, "ended", seconds=30)
    found = judged(leg)
    assert found.rule == "app-taken", found.sentence
    assert "another client had taken the Stasis app" in found.sentence
    assert "AppPreempted" in {row.name for row in found.evidence}


def test_an_event_socket_that_is_down(running: Pipeline, asterisk: RealAsterisk, judged: Judged) -> None:
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    running.stop("listener")
    asterisk.hang_up_caller(leg)
    wait_until(lambda: leg not in {one["id"] for one in asterisk.channels()}, seconds=5)
    running.start("listener")
    wait_state(running, leg, "ended", seconds=30)
    running.wait_connected()
    found = judged(leg)
    assert found.rule in ("event-socket-down", "event-missed"), found.sentence
    assert "no event told of the end of the caller's leg: a resync found it" in found.sentence


def test_a_leg_that_is_left_in_the_dialplan(running: Pipeline, asterisk: RealAsterisk, judged: Judged) -> None:
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    sent = asterisk.request("POST", f"/channels/{leg}/continue", context="human", extension="1", priority="1")
    sent.raise_for_status()
    wait_state(running, leg, "ended")
    found = judged(leg)
    assert found.rule == "left-in-the-dialplan", found.sentence
    assert leg in {one["id"] for one in asterisk.channels()}, "it is left alone"


def test_a_worker_that_is_killed_during_a_set_up(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent, judged: Judged
) -> None:
    # So long the worker waits for the media leg, with the call claimed.
    agent.behaviour.accept_delay_seconds = 1.5
    leg = asterisk.dial()
    wait_until(lambda: attempts(running, leg), seconds=10, every=0, what=lambda: running.story(leg))
    running.kill("worker")
    running.start("worker")
    wait_state(running, leg, "connected", seconds=30)
    hang_up(running, asterisk, leg)
    found = judged(leg)
    assert found.rule == "worker-died", found.sentence
    assert "has died in the middle of a step" in found.sentence
