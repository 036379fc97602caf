"""One scheduler leads, by a lease in a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scheduler.leader import Leader
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


def test_a_lease_that_ran_out_is_taken_over_with_a_higher_term(db: database.Database) -> None:
    one, two = Leader(db, holder="one", seconds=0.2), Leader(db, holder="two", seconds=5)
    one.renew()

    def taken_over() -> bool:
        two.renew()
        return two.is_leader

    until(taken_over, "taken over")
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


def test_a_leader_without_a_database_leads_no_longer_than_its_lease(db: database.Database) -> None:
    leader = Leader(db, holder="one", seconds=0.3)
    leader.renew()
    db.close()
    leader.renew()
    assert leader.is_leader
    until(lambda: not leader.is_leader, "given up")
