"""What `arictl doctor` says of the platform beside us."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared.operator.checks import platform_checks, quota_checks
from shared.operator.checks.findings import Finding, Level
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.platform.ports import Route
from shared.storage import database
from tests import dograh_tables, stub_asterisk
from tests.dograh_tables import NUMBER, VALUE, configure, connect, execute, number, publish

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


def outbox(db: database.Database, *, redis_is_known: bool = True) -> list[Finding]:
    return platform_checks.check_outbox(db, redis_is_known=redis_is_known, setting=layouts.AUTO)


def test_a_platform_that_is_not_told_of_ended_runs_is_found(db: database.Database) -> None:
    assert outbox(db, redis_is_known=False) == [], "there is no platform"
    assert [each.level for each in outbox(db)] == [Level.OK]
    execute(db, "CREATE TABLE public.alembic_version (version_num varchar(32) NOT NULL)")
    execute(db, "INSERT INTO public.alembic_version VALUES ('abc')")
    (finding,) = outbox(db, redis_is_known=False)
    assert (finding.level, finding.what) == (Level.WARNING, "ended runs")
    assert "PLATFORM_REDIS_URL" in finding.todo


@pytest.mark.parametrize(
    ("status", "expected"), [(200, Level.OK), (404, Level.OK), (401, Level.OK), (503, Level.WARNING)]
)
def test_a_quota_service_that_answers_is_shown_no_key(status: int, expected: Level) -> None:
    with stub_asterisk.serving() as stub:
        stub.answer = stub_asterisk.answered(status)
        (finding,) = quota_checks.check("http", f"{stub.url}/prefix")
    assert (finding.what, finding.level) == ("quota service", expected)
    assert stub.lines == ["GET /prefix/"]
    assert not {"Authorization", "X-Secret-Key"} & stub.headers[0].keys()


def test_a_quota_service_that_is_not_reached_is_found_and_one_that_is_not_asked_is_said() -> None:
    (finding,) = quota_checks.check("http", "http://127.0.0.1:1/prefix")
    assert (finding.level, finding.seen) == (Level.WRONG, "127.0.0.1:1: request failed: ConnectionError")
    assert [each.seen for each in quota_checks.check("sql", "")] == ["not asked (QUOTA=sql)"]


@pytest.mark.parametrize(
    ("ours", "platforms", "expected"),
    [
        ("", "", []),
        ("a secret of enough letters", "", []),
        ("a secret of enough letters", "a secret of enough letters", []),
        ("hunter2", "", [("MEDIA_TOKEN_SECRET", Level.WARNING, "7 characters")]),
        ("", "a secret of enough letters\n", [("TELEPHONY_WS_TOKEN_SECRET", Level.WARNING, "white space")]),
        (
            "a secret of enough letters",
            "another of enough letters",
            [("MEDIA_TOKEN_SECRET and TELEPHONY_WS_TOKEN_SECRET", Level.WRONG, "differ")],
        ),
    ],
)
def test_a_secret_of_the_wrong_length_or_of_another_text_is_found(
    ours: str, platforms: str, expected: list[tuple[str, Level, str]]
) -> None:
    found = platform_checks.check_token_secrets(ours=ours, platforms=platforms)
    assert [(each.what, each.level) for each in found] == [(what, level) for what, level, _ in expected]
    for finding, (_, _, text) in zip(found, expected, strict=True):
        assert text in finding.seen
        assert finding.todo
        assert all(secret.strip() not in f"{finding}" for secret in (ours, platforms) if secret)


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
def test_defaults_of_which_there_are_several_are_found_and_callers_are_served(db: database.Database) -> None:
    """The platform's partial unique indexes are gone, after a restore without them."""
    publish(db)
    source_id = configure(db, json.dumps(VALUE))
    connection_id = connect(db, source_id)
    execute(
        db,
        "DO $$ DECLARE n text; BEGIN FOR n IN SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL"
        " AND indisunique AND indrelid IN ('telephony_configurations'::regclass, 'telephony_phone_numbers'::regclass)"
        " LOOP EXECUTE 'DROP INDEX ' || n; END LOOP; END $$",
    )
    for address in ("+4930111", "+4930222"):
        number(db, -source_id, 1, address=address)
    execute(db, "UPDATE telephony_phone_numbers SET is_default_caller_id = true")
    execute(
        db,
        "INSERT INTO telephony_configurations (organization_id, name, provider, credentials, is_default_outbound)"
        " VALUES (1, 'a', 'twilio', '{}', true), (1, 'b', 'twilio', '{}', true)",
    )
    route = dograh.Routes(db).inbound(connection_id, NUMBER)
    assert isinstance(route, Route)
    found = {each.what: each for each in platform_checks.check(db, "auto", run_completion="auto")}
    assert found["defaults"].level is Level.WARNING
    assert "outbound configuration of organization 1" in found["defaults"].seen
    assert f"caller id of configuration {-source_id}" in found["defaults"].seen


def test_ended_runs_that_wait_to_be_told_are_found(db: database.Database) -> None:
    execute(db, "INSERT INTO ari.outbox (workflow_run_id) VALUES (1)")
    assert [each.level for each in outbox(db)] == [Level.OK]
    execute(db, "INSERT INTO ari.outbox (workflow_run_id, written_at) VALUES (2, now() - interval '61 seconds')")
    for redis_is_known in (True, False):
        (finding,) = outbox(db, redis_is_known=redis_is_known)
        assert finding.level is Level.WRONG
        assert finding.seen.startswith("2 wait for the platform to be told of them, the oldest for 61 s")
