"""`arictl usage`, on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.operator import organization_usage as usage
from shared.operator import overview_sample
from shared.storage import database, quotas
from tests import arictl_program
from tests.arictl_program import Arictl, failed
from tests.support import postgres_wire
from tests.support.postgres_wire import PostgresWire

pytestmark = pytest.mark.services

_CALLS = """
INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id, channel_created, entry,
    direction, state, received_at, state_since, lock_version, step_retries, channel_name, caller_number, called_number,
    args, attempt, legs_created, media_ready, caller_left, continue_in_dialplan, workflow_id, connected_at, ending_at,
    ended_at, outcome)
SELECT gen_random_uuid(), 1, 1, %(organization)s, 'c' || gen_random_uuid(), '', 1, 'inbound', %(state)s, at, at, 1, 0,
    '', '', '', '{}', 1, true, true, true, false, 5, CASE WHEN %(seconds)s::float > 0 THEN at END,
    at + make_interval(secs => %(seconds)s), at + make_interval(secs => %(seconds)s), %(outcome)s
FROM generate_series(1, %(number)s) n,
    LATERAL (SELECT date_trunc('day', now(), 'UTC') - make_interval(days => %(days)s, secs => -n) AS at) m
"""


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        with made.connection() as connection:
            connection.execute(
                "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 1, 'active')"
            )
            connection.execute(
                "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
                " VALUES (1, 1, 'http://a', 'a', 'a', 'x')"
            )
        yield made


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.runner(database_url, tmp_path)


def calls(db: database.Database, number: int, organization: int = 1, **changes: object) -> None:
    values = {"state": "ended", "days": 0, "seconds": 60, "outcome": "completed"} | changes
    with db.connection() as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute(_CALLS, {"number": number, "organization": organization, **values})


def test_usage_is_told_by_organization_and_day(arictl: Arictl, db: database.Database) -> None:
    assert "No calls since" in arictl("usage").stdout
    calls(db, 3)
    calls(db, 2, outcome="abandoned", seconds=0)
    calls(db, 1, days=1, seconds=90)
    calls(db, 4, organization=2, days=2)
    calls(db, 5, days=9)
    found = json.loads(arictl("usage", "--json").stdout)
    assert [(day["organization_id"], day["calls"], day["connected"], day["minutes"]) for day in found["days"]] == [
        (1, 5, 3, 3.0), (1, 1, 1, 1.5), (2, 4, 4, 4.0),
    ]  # fmt: skip
    assert found["days"][0]["outcomes"] == {"abandoned": 2, "completed": 3}
    assert (found["days"][0]["faults"], found["days"][1]["faults"]) == ({"unknown": 2}, {})
    assert found["limits"] == []
    one = json.loads(arictl("usage", "-o", "2", "--days", "92", "--json").stdout)
    assert [day["organization_id"] for day in one["days"]] == [2]
    assert [limit["organization_id"] for limit in one["limits"]] == [2]
    shown = arictl("usage").stdout
    assert "2 abandoned, 3 completed" in shown


def test_what_an_operator_wanted_is_no_fault(db: database.Database) -> None:
    calls(db, 2, outcome="refused", seconds=0)
    calls(db, 3, outcome="canceled", seconds=0)
    calls(db, 1, outcome="failed", seconds=0)
    with db.connection() as connection:
        connection.execute(
            "UPDATE ari.calls SET received_at = now(), reason = CASE outcome"
            " WHEN 'refused' THEN 'connection drained by an operator: an upgrade'"
            " WHEN 'canceled' THEN 'ended by an operator; not verified' ELSE 'it ended by an operator' END"
        )
    (day,) = usage.days_of(db, days=1)
    assert (day.faults, overview_sample.calls_of(db).faults) == ({"unknown": 1}, {"unknown": 1})


def test_limits_are_told_with_what_is_left(arictl: Arictl, db: database.Database) -> None:
    arictl("quota", "set", "-o", "1", "--calls", "3", "--minutes", "10")
    arictl("quota", "set", "-o", "2", "--blocked")
    calls(db, 2, state="connected", outcome=None, seconds=0)
    calls(db, 4)
    first, second = json.loads(arictl("usage", "--json").stdout)["limits"]
    assert (first["concurrent_calls"], first["calls_now"], first["calls_left"]) == (3, 2, 1)
    assert (first["minutes_per_month"], first["minutes_left"]) == (10, 10 - first["minutes_this_month"])
    assert (second["blocked"], second["calls_left"], second["minutes_left"]) == (True, None, None)
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO organization_configurations (organization_id, key, value)"
            " VALUES (1, 'CONCURRENT_CALL_LIMIT', '{\"value\": 1}')"
        )
    first, _ = json.loads(arictl("usage", "--json").stdout)["limits"]
    assert (first["platform_concurrent_calls"], first["calls_left"]) == (1, 0), "the lower limit holds"


def test_what_cannot_be_asked_is_refused(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("usage", "-o", "77"), "there is no organization 77")
    for words in (("--days", "93"), ("--days", "0"), ("--organization", "x")):
        assert arictl("usage", *words).returncode == 2


def test_what_takes_too_long_is_no_server_that_is_away(
    arictl: Arictl, db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_OF_EACH", "DO $$ BEGIN RAISE query_canceled USING MESSAGE = 'too long'; END $$")
    failed(arictl("usage", "--days", "92"), "too long: 92 days are too many at once, ask for fewer", status=3)


def test_usage_is_read_by_an_index(db: database.Database) -> None:
    # Each by a statement of its own, which has to end in time.
    for _ in range(5):
        calls(db, 4_000, days=40)
    calls(db, 200, organization=2)
    with db.connection() as connection:
        connection.execute("ANALYZE ari.calls")
        for query, organization in ((usage._OF_EACH, None), (usage._OF_ONE, 2)):
            row = connection.execute("SELECT now() - interval '7 days' AS since").fetchone()
            assert row is not None
            plan = connection.execute(
                f"EXPLAIN {query}", {"since": row["since"], "organization": organization}
            ).fetchall()
            assert not [line for line in plan if "Seq Scan" in line["QUERY PLAN"]], plan


def limits(arictl: Arictl, **environment: str) -> dict[int, dict[str, object]]:
    found = json.loads(arictl("quota", "list", "--json", **environment).stdout)["limits"]
    return {one["organization_id"]: one for one in found}


def test_the_limits_of_any_number_of_organizations_cost_the_same_statements(
    arictl: Arictl, db: database.Database, database_url: str
) -> None:
    said: list[int] = []
    for last in (2, 40):
        with db.connection() as connection:
            connection.execute(
                "INSERT INTO ari.quotas (organization_id) SELECT generate_series(1, %s) ON CONFLICT DO NOTHING", [last]
            )
        with PostgresWire(database_url) as wire:
            assert len(limits(arictl, DATABASE_URL=wire.url)) == last
            made = [text for trip in wire.round_trips for text in trip if not postgres_wire.is_bracket(text)]
            said.append(len(made))
    assert said[0] == said[1] <= 8, said


def test_what_organizations_use_is_the_same_together_as_of_each(
    arictl: Arictl, db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its month is summed up already, is behind, or has nothing yet."""
    with db.connection() as connection:
        connection.execute("INSERT INTO ari.quotas (organization_id, minutes_per_month) VALUES (1, 9), (2, 9), (3, 9)")
    calls(db, 5, seconds=60)
    calls(db, 2, 2, seconds=30)
    calls(db, 1, 2, seconds=0, state="connected", outcome=None)
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET ending_at = NULL, connected_at = now() WHERE state = 'connected'")
    for few in (500, 3, 1):
        monkeypatch.setattr(quotas, "_FEW", few)
        found = limits(arictl)
        told = [(one["calls_now"], one["minutes_this_month"], one["minutes_left"]) for one in found.values()]
        assert told == [(0, 5.0, 4.0), (1, 1.0, 8.0), (0, 0.0, 9.0)], few
