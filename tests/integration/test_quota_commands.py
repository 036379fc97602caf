"""`arictl quota`, as the program it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from shared.call.calls import Call
from shared.call.states import Direction, State
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests import arictl_program
from tests.arictl_program import Arictl, failed

pytestmark = pytest.mark.services


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.runner(database_url, tmp_path)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


def rows(db: database.Database) -> list[tuple[object, ...]]:
    with db.connection() as connection:
        found = connection.execute(
            "SELECT organization_id, blocked, concurrent_calls, minutes_per_month FROM ari.quotas ORDER BY 1"
        ).fetchall()
    return [tuple(row.values()) for row in found]


def test_limits_are_set_one_by_one_and_lifted(arictl: Arictl, db: database.Database) -> None:
    done = arictl("quota", "set", "--organization", "1", "--calls", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Organization 1: allowed; simultaneous calls: 2; minutes per month: no limit.\n"
    assert arictl("quota", "set", "-o", "1", "--minutes", "100", "--blocked").returncode == 0
    assert arictl("quota", "set", "-o", "2", "--calls", "0").returncode == 0
    assert rows(db) == [(1, True, 2, 100), (2, False, 0, None)]
    assert arictl("quota", "set", "-o", "1", "--calls", "none", "--allowed").returncode == 0
    assert rows(db) == [(1, False, None, 100), (2, False, 0, None)]
    done = arictl("quota", "remove", "-o", "1")
    assert (done.returncode, done.stdout) == (0, "Organization 1: limits removed.\n")
    assert rows(db) == [(2, False, 0, None)]
    failed(arictl("quota", "remove", "-o", "1"), "organization 1 has no limits", "arictl quota list")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-o", "1"), "nothing to set: give --calls, --minutes, --blocked or --allowed"),
        (("-o", "77", "--calls", "1"), "there is no organization 77"),
        (("-o", "1", "--calls", "-1"), "--calls must be a whole number from 0 to 2147483647, or none for no limit"),
        (("-o", "1", "--calls", "two"), "--calls must be a whole number"),
        (("-o", "1", "--calls", ""), "--calls must be a whole number"),
        (("-o", "1", "--minutes", "1.5"), "--minutes must be a whole number"),
        (("-o", "1", "--minutes", "99999999999"), "--minutes must be a whole number"),
        (("-o", "1", "--minutes", "9" * 5000), "--minutes must be a whole number"),
        (("-o", "1", "--minutes", "\u0663"), "--minutes must be a whole number"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    arictl: Arictl, db: database.Database, words: tuple[str, ...], reason: str
) -> None:
    failed(arictl("quota", "set", *words), reason)
    assert rows(db) == []


def test_limits_are_shown_with_what_is_used(arictl: Arictl, db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 1, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x')"
        )
    store = PostgresCalls(db, who="test", prefix="aip-")
    now = store.now()
    for state, connected_at, ending_at in (
        (State.RECEIVED, None, None),
        (State.ADMITTED, None, None),
        (State.CONNECTED, now - timedelta(seconds=90), None),
        (State.ENDING, now - timedelta(seconds=70), now - timedelta(seconds=61)),
    ):
        call = Call(
            call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=1,
            channel_id=uuid.uuid4().hex, channel_created="c", entry=1, direction=Direction.INBOUND, state=state,
            received_at=now, state_since=now, deadline_at=now, workflow_id=5, connected_at=connected_at,
            ending_at=ending_at,
        )  # fmt: skip
        assert store.insert(call, [], None)
    assert arictl("quota", "list").stdout == "No limits. Set one: arictl quota set --help\n"
    shown = arictl("quota", "show", "-o", "1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Organization 1: allowed" in shown.stdout
    assert "2 (limit: CONCURRENT_CALLS of the workers, if set)" in shown.stdout
    arictl("quota", "set", "-o", "1", "--calls", "3", "--minutes", "60")
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO organization_configurations (organization_id, key, value)"
            " VALUES (1, 'CONCURRENT_CALL_LIMIT', '{\"value\": 10}')"
        )
    shown = arictl("quota", "show", "-o", "1")
    assert "2 (limit: 3 by us, 10 by the platform)" in shown.stdout
    listed = arictl("quota", "list")
    assert [line.split("  ") for line in listed.stdout.splitlines()][1][0] == "1"
    assert "2 of 3" in listed.stdout
    assert "of 60" in listed.stdout
    failed(arictl("quota", "show", "-o", "77"), "there is no organization 77")
