"""One scheduler leads, by a lease in a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scheduler.leader import Leader, LeaderDatabase
from shared import errors
from shared.storage import database
from tests.support.scheduler_harness import until

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=6)
    made.open()
    yield made
    made.close()


def test_one_leads_and_the_other_waits(db: database.Database) -> None:
    one, two = Leader(db, holder="one", seconds=5), Leader(db, holder="two", seconds=5)
    one.renew()
    two.renew()
    assert (one.is_leader, one.term, two.is_leader) == (True, 1, False)
    one.renew()
    assert one.term == 1


def test_a_lease_that_ran_out_is_displaced_with_a_higher_term(db: database.Database) -> None:
    one, two = Leader(db, holder="one", seconds=0.2), Leader(db, holder="two", seconds=5)
    one.renew()

    def displaced() -> bool:
        two.renew()
        return two.is_leader

    until(displaced, "taken over")
    assert not one.is_leader, "it ends here before it ends for others"
    assert (one.term, two.term) == (1, 2)
    one.renew()
    assert not one.is_leader


def test_a_released_lease_can_be_taken_at_once(db: database.Database) -> None:
    one, two = Leader(db, holder="one", seconds=60), Leader(db, holder="two", seconds=60)
    one.renew()
    two.release()
    two.renew()
    assert not two.is_leader, "only the holder can release it"
    one.release()
    two.renew()
    assert (one.is_leader, two.is_leader, two.term) == (False, True, 2)


def test_postgres_s_clock_was_set_back_and_a_dead_leader_is_followed_all_the_same(db: database.Database) -> None:
    one, two = Leader(db, holder="one", seconds=5), Leader(db, holder="two", seconds=5)
    one.renew()
    execute(db, "UPDATE ari.leases SET expires_at = expires_at + interval '1 hour'")
    two.renew()
    assert (two.is_leader, two.term) == (True, 2)


# ── what a leader writes ─────────────────────────────────────────────────────────────────────────────────────────────

WRITE = "INSERT INTO ari.id_prefixes (number, prefix) VALUES (%s, 'x') RETURNING number"


def execute(db: database.Database, statement: str) -> None:
    with db.connection() as connection:
        connection.execute(statement)


def written(db: database.Database) -> list[int]:
    with db.connection() as connection:
        rows = connection.execute("SELECT number FROM ari.id_prefixes WHERE prefix = 'x' ORDER BY number").fetchall()
    return [row["number"] for row in rows]


@pytest.fixture
def leader(db: database.Database) -> Leader:
    made = Leader(db, holder="one", seconds=60)
    made.renew()
    assert made.begin_job()
    return made


@pytest.fixture
def leader_db(leader: Leader, database_url: str) -> Iterator[LeaderDatabase]:
    made = LeaderDatabase(leader, database_url, size=2)
    made.open()
    yield made
    made.close()


def test_a_leader_writes_by_itself_and_in_transactions(leader_db: LeaderDatabase, db: database.Database) -> None:
    with leader_db.connection() as connection:
        row = connection.execute(WRITE, [101]).fetchone()
        assert row == {"number": 101}, "the result is the statement's"
        connection.send(WRITE, [102])
    with leader_db.transaction() as connection:
        connection.execute(WRITE, [103])
        connection.send(WRITE, [104])
    assert written(db) == [101, 102, 103, 104]


#: What may have become of the lease while its holder was frozen.
LOST = pytest.mark.parametrize(
    "change",
    [
        pytest.param("holder = 'two', term = term + 1", id="another leads"),
        pytest.param("expires_at = clock_timestamp() - interval '1 ms'", id="it ran out"),
        pytest.param("term = term + 2", id="another has led"),
    ],
)


@LOST
def test_who_leads_no_more_writes_nothing(leader_db: LeaderDatabase, db: database.Database, change: str) -> None:
    """However far it had come when it was frozen."""
    execute(db, f"UPDATE ari.leases SET {change}")
    with pytest.raises(errors.LeadershipLost), leader_db.connection() as connection:
        connection.execute(WRITE, [101])
    with pytest.raises(errors.LeadershipLost), leader_db.connection() as connection:
        connection.send(WRITE, [102])
    with pytest.raises(errors.LeadershipLost), leader_db.transaction() as connection:
        connection.send(WRITE, [103])
    assert written(db) == []


@LOST
def test_who_leads_no_more_when_a_transaction_ends_has_written_nothing(
    leader_db: LeaderDatabase, db: database.Database, change: str
) -> None:
    def freeze_within() -> None:
        with leader_db.transaction() as connection:
            connection.execute(WRITE, [101])
            execute(db, f"UPDATE ari.leases SET {change}")
            connection.execute(WRITE, [102])

    with pytest.raises(errors.LeadershipLost):
        freeze_within()
    assert written(db) == []
    with pytest.raises(errors.LeadershipLost), leader_db.connection() as connection:
        connection.execute("SELECT 1")


def test_a_job_that_began_under_an_earlier_term_does_not_go_on_under_the_next(
    leader_db: LeaderDatabase, leader: Leader, db: database.Database
) -> None:
    """It was frozen; another one led, and died; this process leads again."""
    execute(db, "UPDATE ari.leases SET holder = 'two', term = term + 1, expires_at = clock_timestamp()")
    leader.renew()
    assert (leader.is_leader, leader.term) == (True, 3)
    with pytest.raises(errors.LeadershipLost), leader_db.connection() as connection:
        connection.execute(WRITE, [101])
    assert leader.begin_job()
    with leader_db.connection() as connection:
        connection.execute(WRITE, [102])
    assert written(db) == [102]


def test_the_connection_of_a_leader_is_anyone_s_afterwards(leader_db: LeaderDatabase, db: database.Database) -> None:
    with leader_db.connection() as connection:
        connection.execute("SELECT 1")
    assert connection.guard is None


def test_a_term_is_raised_above_another_one_only_while_the_lease_is_held(leader: Leader, db: database.Database) -> None:
    """Postgres was restored, and Redis knows a leader of the time after the backup."""
    leader.raise_term(7)
    assert (leader.is_leader, leader.term) == (True, 8)
    leader.raise_term(3)
    assert leader.term == 8
    execute(db, "UPDATE ari.leases SET holder = 'two', term = 9")
    leader.raise_term(9)
    assert not leader.is_leader


def test_a_leader_without_a_database_leads_no_longer_than_its_lease(db: database.Database) -> None:
    leader = Leader(db, holder="one", seconds=0.3)
    leader.renew()
    db.close()
    leader.renew()
    assert leader.is_leader
    until(lambda: not leader.is_leader, "given up")
