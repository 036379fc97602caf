"""Leases in a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.call import facts
from shared.call.limits import Limits
from shared.storage import database, leases
from tests import databases

pytestmark = pytest.mark.services

LIMITS = Limits()
ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with databases.with_connection(database_url, size=2) as made:
        yield made


def test_a_lease_is_one_holder_s_until_it_is_released_or_runs_out(db: database.Database) -> None:
    claimed = leases.Leases(db)
    assert claimed.take("resync of 1", "a", 60) == 1
    assert claimed.take("resync of 1", "b", 60) is None
    assert claimed.take("resync of 2", "b", 60) == 1, "another lease"
    claimed.release("resync of 1", "b")
    assert claimed.take("resync of 1", "b", 60) is None, "only the holder releases it"
    claimed.release("resync of 1", "a")
    assert claimed.take("resync of 1", "b", 0) == 2
    assert claimed.take("resync of 1", "a", 60) == 3, "it ran out"


def test_the_leases_of_others_that_stand_are_found(db: database.Database) -> None:
    held = leases.Leases(db)
    held.take("resync of 1", "worker/0a/7", 60)
    held.take("resync of 2", "worker/1b/8", 60)
    held.take("resync of 3", "worker/0a/9", 0)
    held.take("scheduler", "scheduler/2c", 60)
    assert held.of_others(["worker/1b"], besides="scheduler") == [
        leases.Lease(name="resync of 1", holder="worker/0a/7")
    ]
    assert held.of_others(["worker/0a", "worker/1b"], besides="scheduler") == []
    assert {lease.worker for lease in held.of_others([], besides="scheduler")} == {"worker/0a", "worker/1b"}


def test_a_lease_that_ends_later_than_any_can_is_of_before_the_clock_was_set_back(db: database.Database) -> None:
    claimed = leases.Leases(db)
    claimed.take("resync of 1", "a", 26)
    with db.connection() as connection:
        connection.execute("UPDATE ari.leases SET expires_at = expires_at + interval '1 hour'")
    assert claimed.take("resync of 1", "b", 26) == 2
    assert claimed.take("resync of 1", "a", 26) is None
