"""The pipelined connection: several statements in one round trip, errors among them, and what is left behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from devstack import tcp_proxy
from shared import errors
from shared.storage import database, postgres_connection
from tests.support import round_trips

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    """A pool of one connection: each use finds what the one before has left."""
    made = database.Database(database_url, size=1)
    made.open()
    with made.connection() as connection:
        connection.execute("CREATE TEMP TABLE things (id integer PRIMARY KEY, name text)")
    yield made
    made.close()


def things(db: database.Database) -> list[int]:
    with db.connection() as connection:
        return [row["id"] for row in connection.execute("SELECT id FROM things ORDER BY id").fetchall()]


def pid(db: database.Database) -> int:
    with db.connection() as connection:
        row = connection.execute("SELECT pg_backend_pid() AS pid").fetchone()
    assert row is not None
    return int(row["pid"])


def send_all(db: database.Database, *statements: tuple[str, list[Any]]) -> None:
    with db.transaction() as connection:
        for text, values in statements:
            connection.send(text, values)


INSERT = "INSERT INTO things (id, name) VALUES (%s, %s)"


def test_statements_that_were_sent_travel_with_the_one_that_is_waited_for(db: database.Database) -> None:
    with round_trips.recorded() as trips, db.connection() as connection:
        first = connection.send(INSERT, [1, "a"])
        second = connection.execute("SELECT name FROM things WHERE id = %(id)s AND %(id)s > 0", {"id": 1})
        assert (first.rowcount, second.fetchone()) == (1, {"name": "a"})
    assert trips == [["INSERT things", "SELECT"]]


def test_what_is_left_unsent_is_sent_when_the_connection_is_given_back(db: database.Database) -> None:
    with db.connection() as connection:
        connection.send(INSERT, [1, "a"])
    assert things(db) == [1]


def test_a_result_cannot_be_read_before_it_is_there(db: database.Database) -> None:
    with db.connection() as connection:
        early = connection.send("SELECT 1 AS one")
        with pytest.raises(AssertionError, match="not waited for"):
            early.fetchone()
        connection.flush()
        assert early.fetchone() == {"one": 1}


def test_a_transaction_of_writes_alone_is_one_round_trip(db: database.Database) -> None:
    with round_trips.recorded() as trips, db.transaction() as connection:
        connection.send(INSERT, [1, "a"])
        connection.send(INSERT, [2, "b"])
    assert trips == [["INSERT things", "INSERT things"]], "what is sent together is one transaction"
    assert things(db) == [1, 2]


def test_a_transaction_of_writes_alone_is_written_whole_or_not_at_all(db: database.Database) -> None:
    def write(*ids: int) -> None:
        with db.transaction() as connection:
            for each in ids:
                connection.send(INSERT, [each, "a"])
            if 3 in ids:
                raise KeyError

    with pytest.raises(errors.DuplicateKey):
        write(1, 2, 1)
    with pytest.raises(KeyError):
        write(3)
    assert things(db) == []


def test_a_transaction_in_which_nothing_happens_is_none(db: database.Database) -> None:
    with round_trips.recorded() as trips, db.transaction():
        pass
    assert trips == []


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_transaction_that_breaks_off_is_rolled_back(db: database.Database, *, is_sent: bool) -> None:
    def break_off() -> None:
        with db.transaction() as connection:
            (connection.send if is_sent else connection.execute)(INSERT, [1, "a"])
            raise errors.TransientError("after it")

    before = pid(db)
    with pytest.raises(errors.TransientError):
        break_off()
    assert (things(db), pid(db)) == ([], before)


def test_what_a_transaction_had_sent_is_forgotten_with_it(db: database.Database) -> None:
    def break_off(connection: database.Connection) -> None:
        with connection.transaction():
            connection.send(INSERT, [1, "a"])
            raise errors.TransientError("after it")

    with db.connection() as connection:
        with pytest.raises(errors.TransientError):
            break_off(connection)
        connection.execute(INSERT, [2, "b"])
    assert things(db) == [2]


def test_an_error_among_the_statements_undoes_the_transaction_and_leaves_the_connection_clean(
    db: database.Database,
) -> None:
    before = pid(db)
    with pytest.raises(errors.DuplicateKey, match="things_pkey"):
        send_all(db, (INSERT, [1, "a"]), (INSERT, [1, "b"]), (INSERT, [2, "c"]))
    assert (things(db), pid(db)) == ([], before)
    # Each of them can be prepared, or has been, as if nothing had happened.
    with db.transaction() as connection:
        connection.send(INSERT, [1, "a"])
    assert things(db) == [1]


def test_the_results_before_an_error_are_there_and_those_after_it_are_not(db: database.Database) -> None:
    with db.connection() as connection:
        before, _, after = connection.send("SELECT 1 AS one"), connection.send("SELECT 1 / 0"), connection.send(
            "SELECT 2 AS two"
        )  # fmt: skip
        with pytest.raises(Exception, match="division by zero"):
            connection.flush()
        assert before.fetchone() == {"one": 1}
        with pytest.raises(AssertionError):
            after.fetchone()


def test_a_transaction_whose_error_was_swallowed_is_not_committed_in_silence(db: database.Database) -> None:
    def swallow() -> None:
        with db.transaction() as connection:
            connection.send(INSERT, [1, "a"])
            with pytest.raises(Exception, match="division by zero"):
                connection.execute("SELECT 1 / 0")

    with pytest.raises(errors.DatabaseRefused, match="has failed"):
        swallow()
    assert things(db) == []


def test_a_statement_that_takes_too_long_ends_the_batch(db: database.Database, database_url: str) -> None:
    hasty = database.Database(database_url, size=1, statement_seconds=0.2)
    hasty.open()
    try:
        before = pid(hasty)
        with pytest.raises(errors.DatabaseUnavailable, match="statement timeout"):
            send_all(hasty, ("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())", []), ("SELECT pg_sleep(5)", []))
        assert pid(hasty) == before
        with hasty.connection() as connection:
            assert connection.execute("SELECT FROM ari.leases").rowcount == 0
    finally:
        hasty.close()


def test_a_deadlock_ends_one_of_the_two_transactions(database_url: str) -> None:
    db = database.Database(database_url, size=2)
    db.open()
    barrier, outcomes = threading.Barrier(2), []

    def lock(first: int, second: int) -> None:
        try:
            with db.transaction() as connection:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [first])
                barrier.wait(5)
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [second])
            outcomes.append("locked")
        except errors.DatabaseUnavailable as exc:
            outcomes.append(str(exc))

    threads = [threading.Thread(target=lock, args=keys) for keys in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.close()
    assert sorted(outcomes) == ["deadlock detected", "locked"]


def test_a_connection_that_is_lost_in_the_middle_is_replaced(db: database.Database) -> None:
    before = pid(db)
    with pytest.raises(errors.DatabaseUnavailable, match="connection"):
        send_all(db, ("SELECT 1", []), ("SELECT pg_terminate_backend(pg_backend_pid())", []), ("SELECT 2", []))
    assert pid(db) != before


def test_a_connection_that_is_cut_is_replaced(database_url: str) -> None:
    with tcp_proxy.TcpProxy(database_url) as proxy:
        db = database.Database(proxy.url, size=1)
        db.open()
        try:
            pid(db)
            proxy.cut()
            with pytest.raises(errors.DatabaseUnavailable):
                pid(db)
            proxy.mend()
            assert pid(db)
        finally:
            db.close()


def test_a_server_that_stands_still_is_waited_for_no_longer_than_its_time_outs_take(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "_GRACE_SECONDS", -0.8)
    db = database.Database(database_url, size=1, statement_seconds=1.0)
    db.open()
    try:
        pid(db)
        began = time.monotonic()
        with pytest.raises(errors.DatabaseUnavailable, match="no answer"), db.connection() as connection:
            connection.execute("SELECT pg_sleep(0.9)")
        assert time.monotonic() - began < 0.9
        # What comes late is nobody's answer.
        assert pid(db)
    finally:
        db.close()


def test_the_connection_that_was_given_back_last_is_taken_first(database_url: str) -> None:
    db = database.Database(database_url, size=3)
    db.open()
    try:
        with db.connection(), db.connection(), db.connection():
            pass
        assert len({pid(db) for _ in range(3)}) == 1
    finally:
        db.close()


def pids(db: database.Database, count: int) -> list[int]:
    """The connections that so many uses at once get; idle ones are there for all of them."""
    with contextlib.ExitStack() as stack:
        used = [stack.enter_context(db.connection()) for _ in range(count)]
        rows = [connection.execute("SELECT pg_backend_pid() AS pid").fetchone() for connection in used]
    return [row["pid"] for row in rows if row is not None]


def test_of_connections_that_are_not_needed_the_one_that_lay_longest_is_closed(database_url: str) -> None:
    db = database.Database(database_url, size=3)
    db.open()
    try:
        # Given back in the opposite order.
        newest, middle, _ = pids(db, 3)
        # As if one had not been needed for long.
        db._pool._nconns_min = 1
        db._pool._shrink_pool()
        assert len(db._pool._pool) == 2
        assert pids(db, 2) == [newest, middle]
    finally:
        db.close()


def test_after_a_restart_of_the_server_no_old_connection_is_used(database_url: str) -> None:
    with tcp_proxy.TcpProxy(database_url) as proxy:
        db = database.Database(proxy.url, size=4)
        db.open()
        try:
            before = pids(db, 4)
            with db.connection() as connection:
                row = connection.execute("SELECT pg_backend_pid() AS pid").fetchone()
            proxy.cut()
            proxy.mend()
            with pytest.raises(errors.DatabaseUnavailable):
                pid(db)
            assert row == {"pid": before[0]}
            assert not set(pids(db, 4)) & set(before)
        finally:
            db.close()


def test_connections_that_were_in_use_at_a_restart_do_not_replace_the_new_ones(database_url: str) -> None:
    with tcp_proxy.TcpProxy(database_url) as proxy:
        db = database.Database(proxy.url, size=4)
        db.open()
        try:
            pids(db, 4)
            late = db.connection()
            late.__enter__()
            proxy.cut()
            proxy.mend()
            with pytest.raises(errors.DatabaseUnavailable):
                pid(db)
            renewed = pids(db, 3)
            with pytest.raises(errors.DatabaseUnavailable):
                late.__exit__(psycopg.OperationalError, psycopg.OperationalError("lost"), None)
            assert set(renewed) <= set(pids(db, 4))
        finally:
            db.close()


def test_a_statement_is_prepared_once(db: database.Database) -> None:
    prepared = "SELECT count(*) AS count FROM pg_prepared_statements WHERE starts_with(statement, 'INSERT INTO things')"
    for number in range(3):
        with db.connection() as connection:
            connection.send(INSERT, [2 * number, "a"])
            connection.execute(INSERT, [2 * number + 1, "b"])
    with db.connection() as connection:
        assert connection.execute(prepared).fetchone() == {"count": 1}


def test_so_many_statements_are_prepared_and_no_more(db: database.Database) -> None:
    with db.connection() as connection:
        for number in range(postgres_connection._MOST_PREPARED + 20):
            assert connection.execute(f"SELECT {number} AS number").fetchone() == {"number": number}
        found = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    assert len(found) == postgres_connection._MOST_PREPARED


def test_statements_of_two_processes_have_one_name_only_if_they_are_one(db: database.Database) -> None:
    """A pooler may lead a transaction to a connection on which another process has prepared its own."""
    mine, other = postgres_connection.Statements(), postgres_connection.Statements()
    texts = [INSERT, "DELETE FROM things WHERE id = %s", "SELECT id FROM things WHERE id = %s"]
    names = {text: mine.of(text).name for text in texts}
    assert {text: other.of(text).name for text in reversed(texts)} == names
    assert len(set(names.values())) == 3
    with db.connection() as connection:
        connection.execute(INSERT, [1, "a"])
        found = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    assert names[INSERT].decode() in [row["name"] for row in found]


@pytest.mark.parametrize("spoil", ["DEALLOCATE ALL", "PREPARE s{} AS SELECT 1"])
def test_behind_a_pooler_that_loses_prepared_statements_none_are_used_after_the_first_error(
    db: database.Database, spoil: str
) -> None:
    query = "SELECT name FROM ari.leases WHERE name = %s"
    before = pid(db)
    if "{}" in spoil:
        spoil = spoil.format(db._statements.of(query).name.decode().removeprefix("s"))
    with db.connection() as connection:
        if spoil.startswith("DEALLOCATE"):
            connection.execute(query, ["a"])
        connection.execute(spoil)
    with pytest.raises(errors.DatabaseUnavailable, match="pooler"), db.connection() as connection:
        connection.execute(query, ["a"])
    for _ in range(2):
        with db.transaction() as connection:
            connection.execute("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")
            assert connection.execute(query, ["a"]).fetchone() == {"name": "a"}
            connection.execute("DELETE FROM ari.leases")
    assert pid(db) != before
    with db.connection() as connection:
        assert connection.execute("SELECT FROM pg_prepared_statements").rowcount == 0


def test_a_table_that_is_altered_costs_each_connection_one_failure_at_most(database_url: str) -> None:
    db = database.Database(database_url, size=3)
    db.open()

    def read() -> str:
        with db.connection() as connection:
            row = connection.execute("SELECT * FROM altered").fetchone()
        return str(row)

    try:
        with db.connection() as connection:
            connection.execute("CREATE TABLE altered (id integer)")
            connection.execute("INSERT INTO altered VALUES (1)")
        with db.connection() as first, db.connection() as second, db.connection() as third:
            for connection in (first, second, third):
                connection.execute("SELECT * FROM altered")
        with db.connection() as connection:
            connection.execute("ALTER TABLE altered ALTER COLUMN id TYPE text")
        said = []
        for _ in range(10):
            try:
                said.append(read())
            except errors.DatabaseUnavailable as exc:
                said.append(str(exc))
        failures = [text for text in said if text != "{'id': '1'}"]
        assert 1 <= len(failures) <= 3
        assert all("cached plan" in text for text in failures)
    finally:
        db.close()


def test_a_connection_to_a_server_that_is_read_only_is_not_used_again(db: database.Database, database_url: str) -> None:
    before = pid(db)
    with db.connection() as connection:
        connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(errors.DatabaseUnavailable, match="read-only"), db.transaction() as connection:
        connection.execute("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")
    for number in range(3):
        with db.transaction() as connection:
            connection.execute("INSERT INTO ari.leases VALUES (%s, 'b', 1, now())", [str(number)])
    assert pid(db) != before


@pytest.mark.parametrize(
    ("text", "values"),
    [("SELECT %s", []), ("SELECT %s", [1, 2]), ("SELECT %(a)s", [1])],
)
def test_values_that_do_not_fit_the_placeholders_are_refused(
    db: database.Database, text: str, values: list[Any]
) -> None:
    with pytest.raises(errors.DatabaseRefused, match="placeholders"), db.connection() as connection:
        connection.execute(text, values)


def test_a_text_with_a_nul_is_refused_and_nothing_is_sent(db: database.Database) -> None:
    before = pid(db)
    with pytest.raises(errors.DatabaseRefused, match="NUL"):
        send_all(db, (INSERT, [1, "a"]), (INSERT, [2, "\0"]))
    assert (things(db), pid(db)) == ([], before)


@pytest.mark.parametrize("left", ["SELECT 1", "SELECT 'x'::integer"])
def test_a_transaction_that_is_left_open_is_not_the_next_user_s(db: database.Database, left: str) -> None:
    before = pid(db)
    with contextlib.suppress(errors.DatabaseRefused), db.connection() as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")
        connection.execute(left)
    with db.connection() as connection:
        assert connection.execute("SELECT FROM ari.leases").rowcount == 0
    assert pid(db) != before


def test_what_was_sent_in_a_block_that_breaks_off_is_not_run(db: database.Database) -> None:
    def break_off() -> None:
        with db.connection() as connection:
            connection.send(INSERT, [1, "a"])
            raise errors.TransientError("after it")

    with pytest.raises(errors.TransientError):
        break_off()
    assert things(db) == []
