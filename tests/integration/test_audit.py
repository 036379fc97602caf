"""The audit: every command that acts adds a row, in its own transaction, and Postgres refuses to change one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest

from scheduler.retention import Retention
from shared import errors
from shared.operator import audit, call_actions, changes, dead_letter_sets
from shared.operator.audit import Action, Actor, Outcome
from shared.storage import database, postgres_calls
from tests import arictl_program
from tests.arictl_program import Arictl, failed

pytestmark = pytest.mark.services

ME = Actor(who="alice@host", via="arictl")
ADD = ("connection", "add", "-o", "1", "--endpoint", "http://pbx", "--app", "a", "--ws-client", "media")


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.runner(database_url, tmp_path)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


def rows(db: database.Database) -> list[tuple[Any, ...]]:
    """The oldest first: what, to what, of which organization, what came of it."""
    return [(row.action, row.subject, row.organization_id, row.outcome) for row in reversed(audit.page(db))]


def test_each_acting_command_of_the_configuration_is_recorded(arictl: Arictl, db: database.Database) -> None:
    for words in (
        ADD,
        ("connection", "remove", "-o", "1"),
        ("quota", "set", "-o", "2", "--calls", "3"),
        ("quota", "remove", "-o", "2"),
        ("installation", "draw"),
        ("installation", "keep"),
        ("db", "upgrade"),
    ):
        done = arictl(*words, ARI_PASSWORD="hunter2", SUDO_USER="alice")
        assert done.returncode == 0, done.stderr
    assert rows(db) == [
        ("connection add", "organization 1", 1, "done"),
        ("connection remove", "organization 1", 1, "done"),
        ("quota set", "organization 2", 2, "done"),
        ("quota remove", "organization 2", 2, "done"),
        ("installation draw", "this installation", None, "done"),
        ("installation keep", "this installation", None, "done"),
        ("db upgrade", "database", None, "done"),
    ]
    found = audit.page(db)
    assert all(row.who.startswith("alice@") and row.via == "arictl" for row in found)
    assert found[-1].detail == {
        "endpoint": "http://pbx",
        "app": "a",
        "workflow": None,
        "name": "Default",
        "replace": False,
    }
    assert "hunter2" not in repr(found)


def test_what_is_refused_is_recorded_with_the_reason_and_changes_nothing(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("quota", "set", "-o", "77", "--calls", "1"), "there is no organization 77")
    failed(arictl("connection", "remove", "-o", "1"), "has no ARI configuration")
    assert rows(db) == [
        ("quota set", "organization 77", 77, "failed"),
        ("connection remove", "organization 1", 1, "failed"),
    ]
    assert "there is no organization 77" in str(audit.page(db)[-1].detail["reason"])


def test_every_action_that_is_refused_is_recorded(
    arictl: Arictl, db: database.Database, redis_url: str, tmp_path: Path
) -> None:
    """Of what there is not; what a console's user may not do is in `test_console_pages`."""
    refused = {
        ("hangup", "4711"): ("hangup", "call 4711"),
        ("connection", "park", "77"): ("connection park", "connection 77"),
        ("connection", "drain", "77"): ("connection drain", "connection 77"),
        ("connection", "unpark", "77"): ("connection unpark", "connection 77"),
        ("connection", "resync", "77"): ("connection resync", "connection 77"),
        ("connection", "park", "-o", "77"): ("connection park", "organization 77"),
        ("connection", "resync", "-o", "77"): ("connection resync", "organization 77"),
        ("connection", "take-over", "-o", "77"): ("connection take-over", "organization 77"),
        ("connection", "remove", "-o", "77"): ("connection remove", "organization 77"),
        ("connection", "add", "-o", "77", *ADD[4:]): ("connection add", "organization 77"),
        ("quota", "remove", "-o", "77"): ("quota remove", "organization 77"),
        ("user", "add", "tom", "-o", "77"): ("user add", "user tom"),
        ("user", "remove", "tom"): ("user remove", "user tom"),
        ("user", "passwd", "tom"): ("user passwd", "user tom"),
        ("log-level", "debug", "--process", "none"): ("log-level", "log level of every line in none"),
        ("dlq", "retry", "no-letter"): ("dlq retry", "dead letter no-letter"),
        ("dlq", "discard", "no-letter"): ("dlq discard", "dead letter no-letter"),
    }
    for words, (action, subject) in refused.items():
        arictl(*words, stdin="a new password\n", REDIS_URL=redis_url, ARI_PASSWORD="x")
        row = audit.page(db, limit=1)[0]
        is_said = row.outcome == Outcome.NOTHING or row.detail.get("reason")
        assert (row.action, row.subject, bool(is_said)) == (action, subject, True), words
        assert row.outcome in (Outcome.FAILED, Outcome.NOTHING), words


def test_an_order_of_a_set_that_is_refused_is_recorded(db: database.Database) -> None:
    with pytest.raises(errors.InvalidRequest):
        dead_letter_sets.order(db, ME, 77, "retry")
    assert rows(db) == [("dlq retry", "dead letter set 77", None, "failed")]


def test_a_hang_up_of_no_call_is_recorded(db: database.Database) -> None:
    call_id = uuid.uuid4()
    calls = postgres_calls.PostgresCalls(db, who="test", prefix="aip-")
    with pytest.raises(errors.InvalidRequest):
        call_actions.hang_up(db, lambda _db: Mock(store=calls), ME, call_id)
    assert rows(db) == [("hangup", f"call {call_id}", None, "failed")]


def test_what_reads_is_not_recorded(arictl: Arictl, db: database.Database) -> None:
    for words in (
        ("quota", "list"),
        ("quota", "show", "-o", "1"),
        ("calls",),
        ("connection", "list"),
        ("db", "--help"),
    ):
        assert arictl(*words).returncode == 0
    assert rows(db) == []


def test_the_audit_is_shown_and_paged(arictl: Arictl, db: database.Database) -> None:
    assert arictl("audit").stdout == "Nothing was done yet.\n"
    for calls in ("1", "2", "3"):
        arictl("quota", "set", "-o", "1", "--calls", calls, SUDO_USER="[red]alice")
    arictl("quota", "set", "-o", "2", "--blocked")
    shown = arictl("audit", "-o", "1").stdout
    assert shown.count("quota set") == 3
    assert "[red]alice@" in shown
    assert "concurrent_calls=3" in shown
    first = json.loads(arictl("audit", "--limit", "3", "--json").stdout)
    assert [row["organization_id"] for row in first["rows"]] == [2, 1, 1]
    rest = json.loads(arictl("audit", "--before", str(first["next"]), "--json").stdout)
    assert ([row["detail"] for row in rest["rows"]], rest["next"]) == ([{"concurrent_calls": 1}], None)
    assert json.loads(arictl("audit", "--subject", "organization 2", "--action", "quota set", "--json").stdout)["rows"]


def test_an_action_and_its_row_are_one_transaction(db: database.Database) -> None:
    action = Action(name="x", subject="y")

    def act(*, fails: bool = False) -> None:
        with audit.recorded(db, ME, action) as recording, recording.transaction() as connection:
            connection.execute("INSERT INTO ari.quotas (organization_id) VALUES (1)")
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        act(fails=True)
    assert rows(db) == []
    # And the other way round: without its row nothing is done.
    with db.connection() as connection:
        connection.execute("ALTER TABLE ari.audit ADD CONSTRAINT none CHECK (action <> 'x')")
    with pytest.raises(errors.DatabaseRefused):
        act()
    with db.connection() as connection:
        assert connection.execute("SELECT 1 FROM ari.quotas").fetchall() == []


def test_a_transaction_that_only_reads_adds_no_row(db: database.Database) -> None:
    with audit.recorded(db, ME, Action(name="x", subject="y")) as recording:
        with recording.connection() as connection:
            connection.execute("SELECT 1")
        with recording.transaction() as connection:
            connection.execute("SELECT 1")
            connection.execute("UPDATE ari.quotas SET blocked = true")
        # The pool's other users are not recorded.
        with db.connection() as connection:
            connection.execute("INSERT INTO ari.quotas (organization_id) VALUES (1)")
    assert rows(db) == []


def test_what_has_changed_is_not_hidden_by_what_was_refused_or_looked_at(db: database.Database) -> None:
    with db.connection() as connection:
        audit.record(connection, ME, Action(name="quota set", subject="organization 1"))
        for name in ("sign in", "call unmask", "connection test", "user add"):
            audit.record(connection, ME, Action(name=name, subject="x"))
        audit.record(connection, ME, Action(name="hangup", subject="x"), Outcome.FAILED, "Redis: it may have been done")
        for _ in range(changes.MOST):
            audit.record(connection, ME, Action(name="hangup", subject="x"), Outcome.FAILED, "there is no such call")
    told = {each.what for each in changes.read(db, [], timedelta(hours=1))}
    assert told == {"quota set", "user add", "hangup, failed"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ari.audit SET who = 'another'",
        "DELETE FROM ari.audit",
        "TRUNCATE ari.audit",
        "UPDATE ari.audit SET at = at - interval '400 days'",
    ],
)
def test_no_row_can_be_changed_or_deleted(db: database.Database, database_url: str, statement: str) -> None:
    with db.connection() as connection:
        audit.record(connection, ME, Action(name="x", subject="y"))
    with psycopg.connect(database_url) as other, pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        other.execute(statement)
    assert rows(db) == [("x", "y", None, "done")]


def old(db: database.Database, days: int) -> None:
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.audit (at, who, via, action, subject, outcome)"
            " VALUES (now() - make_interval(days => %s), 'a', 'arictl', %s, 's', 'done')",
            [days, f"of {days} days"],
        )


def test_retention_deletes_old_rows_and_no_others(db: database.Database) -> None:
    for days in (29, 31, 401):
        old(db, days)
    Retention(db, days=90, audit_days=0).delete_old()
    assert len(rows(db)) == 3
    Retention(db, days=0, audit_days=400).delete_old()
    assert [row[0] for row in rows(db)] == ["of 29 days", "of 31 days"]
    Retention(db, days=0, audit_days=30).delete_old()
    assert [row[0] for row in rows(db)] == ["of 29 days"]


def test_pages_are_by_key_and_by_index(db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.audit (who, via, action, subject, organization_id, outcome)"
            " SELECT 'a', 'arictl', 'x', 'call ' || n, n % 100, 'done' FROM generate_series(1, 20000) AS n"
        )
        connection.execute("ANALYZE ari.audit")
    first = audit.page(db, organization=7, limit=3)
    second = audit.page(db, organization=7, limit=3, before=first[-1].id)
    assert [row.subject for row in (*first, *second)] == [
        f"call {n}" for n in (19907, 19807, 19707, 19607, 19507, 19407)
    ]
    assert [row.subject for row in audit.page(db, subject="call 5")] == ["call 5"]
    with db.connection() as connection:
        for given in ((), ("organization",), ("subject",)):
            query = audit._PAGE.format(conditions=" ".join(audit._CONDITIONS[name] for name in given))
            values = {"organization": 7, "subject": "call 5", "before": 20000, "limit": 50}
            plan = connection.execute(f"EXPLAIN {query}", values).fetchall()
            assert not [row for row in plan if "Seq Scan" in row["QUERY PLAN"]], plan


@pytest.fixture
def announce(db: database.Database) -> Callable[[Callable[[audit.Announced], None]], None]:
    def run(act: Callable[[audit.Announced], None]) -> None:
        with audit.announced(db, ME, Action(name="x", subject="y")) as result:
            act(result)

    return run


def test_what_is_done_elsewhere_is_recorded_before_and_after(
    db: database.Database, announce: Callable[[Callable[[audit.Announced], None]], None]
) -> None:
    seen: list[Any] = []
    announce(lambda _result: seen.extend(rows(db)))
    assert seen == [("x", "y", None, "asked")]

    def nothing(result: audit.Announced) -> None:
        result.outcome = Outcome.NOTHING

    def fail(_result: audit.Announced) -> None:
        raise errors.QueueUnavailable("away")

    announce(nothing)
    with pytest.raises(errors.QueueUnavailable):
        announce(fail)
    assert [row[3] for row in rows(db)] == ["asked", "done", "asked", "nothing", "asked", "failed"]


def test_of_a_server_that_gave_no_answer_it_is_not_claimed_that_nothing_was_done(
    db: database.Database, announce: Callable[[Callable[[audit.Announced], None]], None]
) -> None:
    def fail(error: Exception) -> Callable[[audit.Announced], None]:
        def act(_result: audit.Announced) -> None:
            raise error

        return act

    for error in (errors.QueueUnavailable("Redis: TimeoutError"), errors.InvalidRequest("no such letter")):
        with pytest.raises(type(error)):
            announce(fail(error))
    told = [row.detail["reason"] for row in audit.page(db) if row.outcome == "failed"]
    assert told == ["no such letter", "Redis: TimeoutError: it may have been done"]


def test_a_level_is_recorded_with_what_came_of_it(
    arictl: Arictl, db: database.Database, redis_url: str, empty_database_url: str
) -> None:
    for words in (("debug", "--connection", "7"), ("default", "--connection", "7"), ("default", "--connection", "7")):
        assert arictl("log-level", *words, REDIS_URL=redis_url).returncode == 0
    subject = "log level of connection 7 in every process"
    assert [(row[1], row[3]) for row in rows(db)] == [
        (subject, "asked"), (subject, "done"), (subject, "asked"), (subject, "done"), (subject, "asked"),
        (subject, "nothing"),
    ]  # fmt: skip
    # It is needed most where Postgres is away, or its schema is not there yet.
    for url in ("postgresql://u@127.0.0.1:1/x", empty_database_url):
        done = arictl("log-level", "debug", REDIS_URL=redis_url, DATABASE_URL=url)
        assert (done.returncode, "not recorded in the audit" in done.stderr) == (0, True)


def test_numbers_in_what_is_recorded_are_masked(arictl: Arictl, db: database.Database, redis_url: str) -> None:
    done = arictl("call", "+4930 1234567", "-o", "1", "--workflow", "5", REDIS_URL=redis_url)
    assert done.returncode == 1
    (row,) = audit.page(db)
    assert (row.action, row.outcome) == ("call", "failed")
    assert "1234567" not in json.dumps(row.detail)


@pytest.mark.parametrize(
    "text", ["a\0b", "\ud800", "x" * 10_000, "postgresql://u:hunter2@h/d", str(uuid.uuid4())], ids=str.isprintable
)
def test_any_text_can_be_recorded_and_no_credentials(db: database.Database, text: str) -> None:
    with db.connection() as connection:
        audit.record(connection, ME, Action(name="x", subject=text, detail={"it": text, "all": [text, 1, None]}))
    (row,) = audit.page(db)
    assert len(row.subject) <= 500
    assert "hunter2" not in repr(row)
