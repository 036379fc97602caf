"""While calls come in fast, where a caller goes is assumed, and checked in the transaction that admits the call."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from devstack import platform_tables
from shared.call.states import Outcome
from shared.inbound_lookup import ASSUMED_SECONDS
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import execute, one, publish
from tests.support import admissions, round_trips
from tests.support.admissions import LOOK, WRITE, Worker

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True),
]

#: Both checks and the write, together.
ASSUMED = [[*LOOK, *WRITE]]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(db: database.Database, clock: Clock) -> Worker:
    """A worker that two callers have just come to: where the next one goes is assumed."""
    admissions.connected(db)
    worker = admissions.make(db, clock)
    worker.inbound.writer.store.now()
    for number in (1, 2):
        worker.receive(f"1762.{number}")
    return worker


@contextlib.contextmanager
def trips_of_a_caller(worker: Worker, channel_id: str = "1762.3") -> Iterator[list[list[str]]]:
    with round_trips.recorded() as trips:
        worker.receive(channel_id)
    yield trips


def test_a_caller_among_many_is_admitted_in_one_round_trip(worker: Worker) -> None:
    with trips_of_a_caller(worker) as trips:
        assert trips[:1] == ASSUMED
    assert worker.counts == (3, 3, 3)
    assert len({call.workflow_run_id for call in worker.began}) == 3


def test_a_lone_caller_s_destination_is_looked_up(worker: Worker, clock: Clock) -> None:
    clock.now += ASSUMED_SECONDS
    with trips_of_a_caller(worker) as trips:
        assert trips[:2] == [LOOK, WRITE]


def test_ids_are_reserved_for_as_many_callers_as_come(worker: Worker, clock: Clock) -> None:
    """An id that is not used is lost: few are, and none where callers come one by one."""
    looked = []
    for number in range(3, 60):
        with trips_of_a_caller(worker, f"1762.{number}") as trips:
            looked.append(trips[0] == LOOK)
    assert 3 <= looked.count(True) <= 6
    lone = []
    for number in range(60, 65):
        clock.now += ASSUMED_SECONDS
        worker.receive(f"1762.{number}")
        lone.append(worker.began[-1].workflow_run_id)
    assert [second - first for first, second in itertools.pairwise(lone[1:])] == [1, 1, 1]  # type: ignore[operator]


def archive(db: database.Database) -> None:
    execute(db, "UPDATE workflows SET status = 'archived'")


def block(db: database.Database) -> None:
    execute(db, "INSERT INTO ari.quotas (organization_id, blocked) VALUES (1, true)")


def limit(db: database.Database) -> None:
    execute(db, "INSERT INTO ari.quotas (organization_id, concurrent_calls) VALUES (1, 2)")


def suspend(db: database.Database) -> None:
    execute(db, "UPDATE ari.connections SET suspension = 'park'")


def remove(db: database.Database) -> None:
    execute(db, "UPDATE ari.connections SET state = 'removed', reason = 'configuration removed'")


@pytest.mark.parametrize("change", [archive, block, limit, suspend, remove])
def test_what_has_changed_since_holds_at_once(
    worker: Worker, db: database.Database, change: Callable[[database.Database], None]
) -> None:
    change(db)
    with trips_of_a_caller(worker) as trips:
        assert trips[1] == LOOK
    assert worker.counts == (3, 2, 2), "a call without an attempt and without a run"
    outcome = one(db, "SELECT outcome FROM ari.calls WHERE channel_id = '1762.3'")["outcome"]
    assert outcome == Outcome.REFUSED


def test_nobody_is_refused_by_what_was_so_before(worker: Worker, db: database.Database) -> None:
    block(db)
    for number in (3, 4):
        worker.receive(f"1762.{number}")
    execute(db, "UPDATE ari.quotas SET blocked = false")
    worker.receive("1762.5")
    assert worker.counts == (5, 3, 3)


def test_a_refusal_is_looked_up_before_it_is_written(worker: Worker, db: database.Database) -> None:
    execute(db, "INSERT INTO ari.quotas (organization_id, concurrent_calls) VALUES (1, 4)")
    for number in (3, 4):
        worker.receive(f"1762.{number}")
    with trips_of_a_caller(worker, "1762.5") as trips:
        assert trips == [
            ["BEGIN", *LOOK, "SELECT", "SELECT"],
            ["ROLLBACK"],
            LOOK,
            ["BEGIN", "SELECT", "SELECT"],
            ["INSERT ari.calls", "COMMIT"],
        ]
    assert worker.counts == (5, 4, 4)


def test_a_caller_who_is_reported_again_has_one_call(worker: Worker) -> None:
    worker.receive("1762.3")
    worker.receive("1762.3")
    assert worker.counts == (3, 3, 3)


def test_a_workflow_that_replaced_the_other_one_serves_the_call(worker: Worker, db: database.Database) -> None:
    owner = "user_id = 2" if one(db, "SELECT count(*) AS n FROM users")["n"] > 1 else "user_id = user_id"
    execute(db, f"UPDATE workflows SET {owner}")
    worker.receive("1762.3")
    newest = one(db, "SELECT user_id FROM workflows WHERE id = (SELECT workflow_id FROM ari.calls LIMIT 1)")
    assert worker.began[-1].user_id == newest["user_id"]


def test_a_check_that_postgres_refuses_is_followed_by_a_look(worker: Worker, db: database.Database) -> None:
    """As in the middle of the platform's upgrade: then the layout is looked at again."""
    execute(db, "ALTER TABLE ari.quotas RENAME TO elsewhere")
    with pytest.raises(Exception, match=r"ari\.quotas"):
        worker.receive("1762.3")
    execute(db, "ALTER TABLE ari.elsewhere RENAME TO quotas")
    worker.receive("1762.3")
    assert worker.counts == (3, 3, 3)
