"""An app that was never ours: a worker is asked who has it before the first event socket of it is opened."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler.app_questions import AppQuestions
from shared import errors, messages
from shared.assignments import SocketState
from shared.asterisk import ari, events
from shared.call.ids import ConnectionVersion
from shared.storage import app_holders, connections
from tests.support.calls import LIMITS
from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness
from workers.app_question import AppQuestion

pytestmark = pytest.mark.services

FILTER = frozenset(map(str, events.EventType))
#: As the platform's own process has it.
STRANGERS = ari.Application(channels=frozenset({"their-caller"}), allowed=frozenset())
#: As a resync of ours has left it.
OURS = ari.Application(channels=frozenset(), allowed=FILTER)
#: Asterisk knows no such app.
FREE = None
EVERY_VERSION = "UPDATE ari.connection_versions SET asked_at = asked_at - interval '1 minute'"


class Workers:
    """The scheduler's questions, and a worker that answers them; the Asterisk is played."""

    def __init__(self, harness: SchedulerHarness) -> None:
        self._harness = harness
        self.questions = AppQuestions(harness.leader_db, harness.commands, occupied_seconds=15.0)
        self._holders = app_holders.AppHolders(harness.db)
        #: Of each version that an Asterisk was asked for.
        self.requests: list[str] = []

    def answer(self, found: ari.Application | errors.PipelineError | None, *, on_time: bool = False) -> list[str]:
        """Ask what is due, all of it unless `on_time`, and let a worker answer. Returns the versions asked for."""
        if not on_time:
            self._harness.execute(EVERY_VERSION)
        self.questions.ask()
        asked = [
            ConnectionVersion(message.kwargs["connection_id"], message.kwargs["connection_version"])
            for message in self._harness.dequeue(messages.APPS)
            if message.actor_name == "ask_for_app"
        ]
        for connection in asked:
            self.told(connection, found)
        return sorted(map(str, asked))

    def told(self, connection: ConnectionVersion, found: ari.Application | errors.PipelineError | None) -> None:
        def application() -> ari.Application | None:
            self.requests.append(str(connection))
            if isinstance(found, errors.PipelineError):
                raise found
            return found

        question = AppQuestion(
            writer=cast(Any, SimpleNamespace(store=self._harness.store, limits=LIMITS, clock=time)),
            asterisks=cast(
                Any, SimpleNamespace(at=lambda _connection, _budget: SimpleNamespace(application=application))
            ),
            app_holders=self._holders,
        )
        question.answer(connection=connection)


@pytest.fixture
def workers(harness: SchedulerHarness, listeners: PlayedListeners) -> Workers:
    harness.are_apps_free = False
    listeners.beat("l1")
    return Workers(harness)


def connect(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """Let the listener open what it was assigned."""
    harness.tick()
    listeners.report_all("l1")
    harness.tick()


def test_an_app_is_asked_for_once_before_its_first_socket_is_opened(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.configure(2)
    harness.tick(3)
    assert listeners.assigned("l1") == {}, "opened before it was known who has it"
    assert workers.answer(FREE, on_time=True) == ["1:1", "2:1"]
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1", "2:1"}
    assert workers.answer(FREE) == []
    assert sorted(workers.requests) == ["1:1", "2:1"], "one GET each"


def test_an_app_that_another_process_has_is_left_to_it_until_it_is_gone_there(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.configure(1)
    workers.answer(STRANGERS, on_time=True)
    harness.tick(3)
    assert listeners.assigned("l1") == {}
    row = harness.socket()
    assert (row["socket_state"], row["listener_id"]) == ("occupied", None)
    assert row["last_error"].startswith("held by another process: app a exists on that Asterisk")
    assert row["last_error"].endswith("arictl connection take-over --organization 101")
    # A new leader leaves it so; and what an operator says about a competing client does not touch it.
    harness.new_assigner().tick()
    harness.execute(connections.UNPARK, 1)
    assert workers.answer(STRANGERS, on_time=True) == [], "asked again at once"
    assert workers.answer(STRANGERS) == ["1:1"]
    # Nothing is concluded from an Asterisk that gives no answer.
    assert workers.answer(errors.AsteriskUnreachable("connection refused")) == ["1:1"]
    harness.tick()
    assert (harness.socket()["socket_state"], listeners.assigned("l1")) == ("occupied", {})
    assert workers.answer(FREE) == ["1:1"]
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}
    assert harness.socket()["last_error"] == ""
    details = [row["detail"] for row in harness.rows("SELECT detail FROM ari.timeline ORDER BY id")]
    assert [detail.partition(" ")[2].partition(" ")[0] for detail in details] == ["held", "no"], details


def test_an_operator_takes_over_and_is_not_asked_again(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.configure(2)
    workers.answer(STRANGERS)
    take_over(harness, organization=101)
    # An answer that was on its way changes nothing.
    workers.told(ConnectionVersion(1, 1), STRANGERS)
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}, "of its organization only"
    # Its password was wrong: a later version is opened without a question.
    harness.platform.set(1, app_password="correct")
    harness.reconcile()
    harness.tick()
    assert "1:2" in listeners.assigned("l1")
    assert workers.answer(STRANGERS) == ["2:1"]


def test_one_of_an_organization_s_connections_is_taken_over(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.platform.organizations[2] = 101
    harness.configure(2)
    workers.answer(STRANGERS)
    assert take_over(harness, organization=101, connection=2) == ["2:1"]
    harness.tick()
    assert set(listeners.assigned("l1")) == {"2:1"}


def take_over(harness: SchedulerHarness, *, organization: int, connection: int | None = None) -> list[str]:
    with harness.db.connection() as db:
        rows = db.execute(app_holders.TAKE_OVER, {"organization": organization, "connection": connection}).fetchall()
    return [f"{row['connection_id']}:{row['version']}" for row in rows]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(errors.AsteriskUnreachable("answered 401"), id="a wrong password"),
        pytest.param(errors.AsteriskUnreachable("connection refused"), id="the network"),
        pytest.param(errors.AsteriskRefused(409, "no"), id="a refusal"),
        pytest.param(errors.SealBroken("no key opens it"), id="another SECRET_KEY"),
    ],
)
def test_without_an_answer_the_socket_is_opened_and_says_what_is_wrong(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers, failure: errors.PipelineError
) -> None:
    harness.configure(1)
    workers.answer(failure)
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}


def test_after_a_wrong_password_the_corrected_one_is_asked_for(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.configure(1)
    workers.answer(errors.AsteriskUnreachable("answered 401"))
    harness.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.CONNECTING, error="HTTP 401")
    harness.tick()
    harness.platform.set(1, app_password="correct")
    harness.reconcile()
    assert workers.answer(STRANGERS) == ["1:2"]
    harness.tick()
    assert (harness.socket(2)["socket_state"], "1:2" in listeners.assigned("l1")) == ("occupied", False)


# ── what is not mistaken for another process ─────────────────────────────────────────────────────────────────────────


def test_of_an_app_that_was_ours_nothing_is_asked_again(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    """Another password, a row saved anew, a removed one that is added again, one of another organization."""
    harness.configure(1)
    workers.answer(FREE)
    connect(harness, listeners)
    harness.platform.set(1, app_password="new")
    harness.reconcile()
    harness.platform.save_anew(1, under=9)
    harness.reconcile()
    saved, harness.platform.values = harness.platform.values, {}
    harness.reconcile()
    harness.tick()
    harness.platform.values = {5: saved[9]}
    harness.reconcile()
    assert workers.answer(STRANGERS) == []
    harness.tick()
    assert harness.rows("SELECT version FROM ari.connection_versions WHERE parked_at IS NOT NULL") == []


def test_a_hand_off_between_listeners_and_a_lost_one_are_no_other_process(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    harness.configure(2)
    workers.answer(FREE)
    connect(harness, listeners)
    listeners.beat("l1", "l2")
    harness.tick()
    listeners.report_all("l1", "l2")
    harness.tick()
    assert listeners.spread("l1", "l2") == [1, 1]
    listeners.die("l1")
    harness.tick(2)
    assert set(listeners.assigned("l2")) == {"1:1", "2:1"}
    assert workers.answer(STRANGERS) == []


def test_an_asterisk_that_was_restarted_is_connected_again(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    """Whoever is there first: it was ours."""
    harness.configure(1)
    workers.answer(FREE)
    connect(harness, listeners)
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.CONNECTING, error="connection refused")
    harness.tick(2)
    assert workers.answer(STRANGERS) == []
    assert set(listeners.assigned("l1")) == {"1:1"}


@pytest.mark.parametrize("answered", [False, True], ids=["before the answer", "after it"])
def test_an_emptied_redis_loses_no_question(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers, *, answered: bool
) -> None:
    harness.configure(1)
    if answered:
        workers.answer(FREE)
        connect(harness, listeners)
    else:
        workers.questions.ask()
    harness.client.flushdb()
    listeners.beat("l1")
    harness.tick(2)
    if answered:
        assert workers.answer(STRANGERS) == []
        assert set(listeners.assigned("l1")) == {"1:1"}
    else:
        assert listeners.assigned("l1") == {}
        assert workers.answer(FREE) == ["1:1"], "asked again"


def test_a_restored_database_that_has_forgotten_our_app_finds_our_mark_on_it(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    """Restored from before the connection was added. The filter that resyncs set is there as long as the app."""
    harness.configure(1)
    assert workers.answer(OURS) == ["1:1"]
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}


def test_a_filter_that_is_not_ours_is_no_mark(harness: SchedulerHarness, workers: Workers) -> None:
    harness.configure(1)
    workers.answer(ari.Application(channels=frozenset(), allowed=frozenset({"StasisStart", "ChannelDtmfReceived"})))
    assert harness.socket()["socket_state"] == "occupied"


def test_an_app_of_ours_that_is_just_being_opened_is_no_other_process_s(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    """Two configurations name one app: the other one's socket is open before its listener has reported it."""
    harness.configure(1)
    workers.answer(FREE)
    harness.tick()
    harness.platform.set(2, ari_endpoint="http://pbx1")
    harness.reconcile()
    workers.answer(STRANGERS)
    assert harness.rows("SELECT 1 AS parked FROM ari.connection_versions WHERE parked_at IS NOT NULL") == []
    listeners.report_all("l1")
    harness.tick()
    assert workers.answer(STRANGERS) == ["2:1"]
    found = "SELECT connection_id FROM ari.connection_versions WHERE asked_at IS NOT NULL"
    assert harness.rows(found) == [], "ours"


# ── after a take-over ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_app_was_lately_taken_over_until_a_while_after_our_first_socket_there(
    harness: SchedulerHarness, listeners: PlayedListeners, workers: Workers
) -> None:
    holders, here = app_holders.AppHolders(harness.db), ConnectionVersion(1, 1)
    harness.configure(1)
    assert not holders.has_lately_displaced(here, seconds=10)
    workers.answer(STRANGERS)
    take_over(harness, organization=101)
    assert holders.has_lately_displaced(here, seconds=10)
    connect(harness, listeners)
    assert holders.has_lately_displaced(here, seconds=10)
    harness.execute("UPDATE ari.connection_versions SET accepted_at = accepted_at - interval '11 seconds'")
    assert not holders.has_lately_displaced(here, seconds=10)
    harness.platform.set(1, app_password="new")
    harness.reconcile()
    connect(harness, listeners)
    assert not holders.has_lately_displaced(ConnectionVersion(1, 2), seconds=10)
