"""`arictl connection`, as the program it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.asterisk import circuit_breaker, rest
from shared.platform import dograh
from shared.platform.ports import Route
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
from tests import arictl_program, certificates, dograh_tables
from tests.arictl_program import Arictl, failed

pytestmark = pytest.mark.services

PASSWORD = "hunter2 & # % + :"
ADD = (
    "connection", "add", "--organization", "1", "--endpoint", "HTTP://Pbx:80/x/", "--app", "voiceai", "--ws-client",
    "media", "--workflow", "5",
)  # fmt: skip


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.runner(database_url, tmp_path)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


def stored(db: database.Database) -> dict[str, object] | None:
    with db.connection() as connection:
        row = connection.execute("SELECT value FROM organization_configurations").fetchone()
    return row["value"] if row is not None else None


@pytest.mark.parametrize("by", ["environment", "standard input"])
def test_a_connection_is_added_and_its_password_not_shown(arictl: Arictl, db: database.Database, by: str) -> None:
    done = arictl(*ADD, ARI_PASSWORD=PASSWORD) if by == "environment" else arictl(*ADD, stdin=f"{PASSWORD}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Organization 1: app voiceai on http://pbx/x." in done.stdout
    assert "hunter2" not in done.stdout
    assert stored(db) == {
        "provider": "ari",
        "ari_endpoint": "HTTP://Pbx:80/x/",
        "app_name": "voiceai",
        "app_password": PASSWORD,
        "ws_client_name": "media",
        "inbound_workflow_id": 5,
        "from_numbers": [],
    }


def test_a_password_is_no_argument(arictl: Arictl, db: database.Database) -> None:
    assert "password" not in arictl("connection", "add", "--help").stdout.replace("ARI password", "")
    done = arictl(*ADD, "--password", PASSWORD)
    assert done.returncode == 2
    assert stored(db) is None


@pytest.mark.parametrize("workflow", ["6", "77"], ids=["another-organization-s", "none-such"])
def test_a_workflow_that_cannot_serve_is_refused(arictl: Arictl, db: database.Database, workflow: str) -> None:
    done = arictl(*ADD[:-1], workflow, stdin="hunter2 hunter2")
    failed(done, f"organization 1 has no workflow {workflow}")
    assert stored(db) is None


def test_a_configuration_is_replaced_only_when_told(arictl: Arictl, db: database.Database) -> None:
    assert arictl(*ADD, stdin="one").returncode == 0
    failed(arictl(*ADD, stdin="two"), "organization 1 already has a configuration")
    assert arictl(*ADD, "--replace", stdin="two").returncode == 0
    value = stored(db)
    assert value is not None
    assert value["app_password"] == "two"


def test_what_cannot_be_added_is_said_in_a_line(arictl: Arictl, db: database.Database) -> None:
    failed(arictl(*ADD), "no password")
    failed(arictl(*ADD, "--organization", "99", stdin=PASSWORD), "no organization 99")
    failed(arictl(*ADD, "--endpoint", "ftp://x", stdin=PASSWORD), "ari_endpoint must begin with http")
    failed(arictl(*ADD, "--endpoint", "http://u:hunter2@x", stdin=PASSWORD), "must not contain credentials")
    assert stored(db) is None


@pytest.mark.parametrize("layout", ["stand-alone", "newest"], indirect=True)
def test_texts_that_the_platform_s_columns_do_not_hold_are_refused_in_a_line(
    database_url: str, tmp_path: Path, layout: str
) -> None:
    """Empty ones, blanks, control characters, 10 kB: for each option that is a text."""
    arictl = arictl_program.runner(database_url, tmp_path)
    with dograh_tables.filled(database_url):
        pass
    add = (*ADD, "--workflow", "1")
    names = ["--name"] if layout == "newest" else []
    for option in (*names, "--stasis-app", "--from-number", "--app", "--ws-client", "--endpoint", "--dial-template"):
        for text in ("", " ", " x", "a\tb", "x" * 10_000):
            if (option, text) in (("--dial-template", ""), ("--endpoint", " x")):
                continue
            done = arictl(*add, option, text, stdin=PASSWORD)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), (option, text, done.stderr[-2000:])
            assert len(done.stderr) < 400, option


def test_a_ca_bundle_comes_from_a_file(arictl: Arictl, db: database.Database, tmp_path: Path) -> None:
    bundle = tmp_path / "authority.pem"
    add = (*ADD, "--endpoint", "https://pbx", "--ca-bundle", str(bundle))
    failed(arictl(*add, stdin=PASSWORD), "cannot be read: No such file")
    for text, reason in (
        (b"", "is empty"),
        (b"\x30\x82\xff", "is not PEM: openssl x509 -inform der"),
        (b"-----BEGIN CERTIFICATE-----\nMAMBAQE=\n-----END CERTIFICATE-----\n", "a certificate that cannot be read"),
        (certificates.issue("a").pem.encode() * 100, "longer than 16384"),
    ):
        bundle.write_bytes(text)
        failed(arictl(*add, stdin=PASSWORD), reason)
    assert stored(db) is None
    authority = certificates.issue("authority", authority=True)
    bundle.write_text(f"subject=authority\n{authority.pem}")
    done = arictl(*add, stdin=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    value = stored(db)
    assert value is not None
    assert authority.pem in str(value["ari_ca_bundle"])
    failed(
        arictl(*ADD, "--replace", "--endpoint", "http://pbx", "--ca-bundle", str(bundle), stdin=PASSWORD), "no effect"
    )


def test_a_connection_is_removed(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("connection", "remove", "--organization", "1"), "has no ARI configuration")
    assert arictl(*ADD, stdin=PASSWORD).returncode == 0
    done = arictl("connection", "remove", "--organization", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(db) is None


def test_a_configuration_that_waits_for_a_scheduler_is_not_passed_over(arictl: Arictl, db: database.Database) -> None:
    assert arictl(*ADD, stdin=PASSWORD).returncode == 0
    listed = arictl("connection", "list").stdout
    assert "1 not connected yet" in listed
    assert "No connections." not in listed
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, reason)"
            " SELECT id, 1, 'refused', 'a reason' FROM organization_configurations"
        )
    assert "connected yet" not in arictl("connection", "list").stdout


def test_connections_are_listed_though_the_platform_s_configurations_cannot_be_read(
    arictl: Arictl, db: database.Database
) -> None:
    with db.connection() as connection:
        connection.execute("CREATE TABLE public.telephony_configurations (id integer)")
    listed = arictl("connection", "list")
    assert listed.returncode == 0
    assert "there is no workflows.released_definition_id, telephony_configurations.created_at" in listed.stderr


def test_connections_are_listed_whatever_a_tenant_called_them(arictl: Arictl, db: database.Database) -> None:
    assert "No connections." in arictl("connection", "list").stdout
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, reason, version) VALUES"
            " (1, 1, 'active', '', 1), (2, 2, 'refused', 'app_name is [missing]', 0), (3, 3, 'removed', '', 0)"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state, socket_since, last_error, listener_id, epoch) VALUES"
            " (1, 1, 'http://[::1]:8088', '[/bold] \x1b[2J', 'u', 'sealed', 'connecting', now(), 'HTTP 401', 'l', 3),"
            " (1, 2, 'http://b', 'b', 'u', 'sealed', 'connected', now(), '', 'host-7', 3),"
            " (1, 3, 'http://c', 'c', 'u', 'sealed', 'unassigned', now(), '', NULL, 0)"
        )
        connection.execute(
            "UPDATE ari.connection_versions SET reconnects = 17, previous_listener_id = 'host-8',"
            " past_error = 'connection refused', past_error_at = '2026-02-03 04:05:06+00' WHERE version = 2"
        )
    done = arictl("connection", "list")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("1:1", "http://[::1]:8088", "[/bold]", "connecting", "HTTP 401", "2:-", "app_name is [missing]"):
        assert text in done.stdout, text
    for text in ("host-7 (from host-8)", " 17 ", "no listener assigned"):
        assert text in done.stdout, text
    assert "(02-03 04:05:06 connection refused)" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert "sealed" not in done.stdout
    assert "3:-" not in done.stdout


def test_open_circuit_breakers_are_listed_until_they_close(arictl: Arictl, db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, version) VALUES (1, 1, 'active', 2)"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state) VALUES (1, 1, 'http://old', 'a', 'a', 'x', 'connected'),"
            " (1, 2, 'http://new', 'a', 'a', 'x', 'connected')"
        )

    def noted(who: str, name: str, detail: str, seconds_ago: int = 0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        store = PostgresCalls(db, who=who, prefix="aip-")
        store.append_timeline([TimelineEntry(kind="note", name=name, detail=detail, at=at)], connection_id=1)

    def shown(endpoint: str) -> str:
        lines = [line for line in arictl("connection", "list").stdout.splitlines() if endpoint in line]
        return lines[0].partition("circuit breaker open in ")[2].strip()

    noted("worker-1", circuit_breaker.OPENED, "2: connection refused")
    noted("worker-2", circuit_breaker.OPENED, "2: no answer in time")
    noted("worker-3", circuit_breaker.OPENED, "2: connection refused")
    noted("worker-3", circuit_breaker.CLOSED, "2: it answers again")
    noted("worker-dead", circuit_breaker.OPENED, "2: connection refused", 90)
    assert shown("http://new") == "worker-1 (connection refused), worker-2 (no answer in time)"
    assert shown("http://old") == ""
    noted("worker-1", circuit_breaker.CLOSED, "2: it answers again")
    noted("worker-2", circuit_breaker.CLOSED, "2: it answers again")
    assert shown("http://new") == ""


def test_denied_requests_are_listed_while_they_go_on(arictl: Arictl, db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, version) VALUES (1, 1, 'active', 2)"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state) VALUES (1, 2, 'http://new', 'a', 'a', 'x', 'connected')"
        )
    store = PostgresCalls(db, who="worker-1", prefix="aip-")

    def shown(version: int, seconds_ago: int) -> bool:
        at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        entry = TimelineEntry(kind="note", name=rest.DENIED, detail=f"{version}: 403 Write access denied", at=at)
        store.append_timeline([entry], connection_id=1)
        said = " ".join(arictl("connection", "list").stdout.split())
        return "requests are denied (403 Write access denied): is the ARI user read_only?" in said

    assert [shown(1, 0), shown(2, 600), shown(2, 5)] == [False, False, True]


def test_a_parked_connection_is_tried_again(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("connection", "unpark", "--organization", "7"), "organization 7 has no connection")
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, reason, version) VALUES"
            " (1, 7, 'active', '', 1), (2, 8, 'active', '', 1)"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " parked_at, preempted_at, reclaims, last_error)"
            " SELECT connection_id, 1, 'http://a', 'a', 'u', 'sealed', now(), now(), 1, 'taken' FROM ari.connections"
        )
    done = arictl("connection", "unpark", "--organization", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Connection 1 takes calls again.\n"
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT parked_at IS NULL AND preempted_at IS NULL AND reclaims = 0 AND last_error = '' AS again"
            " FROM ari.connection_versions ORDER BY connection_id"
        ).fetchall()
    assert [row["again"] for row in rows] == [True, False], "another organization's stays"


def test_a_connection_that_another_process_holds_is_shown_and_taken_over(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("connection", "take-over", "--organization", "7"), "has no connection that another process holds")
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, reason, version) VALUES"
            " (1, 7, 'active', '', 1), (2, 7, 'active', '', 1), (3, 8, 'active', '', 1)"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " asked_at, parked_at, socket_state, last_error)"
            " SELECT connection_id, 1, 'http://' || connection_id, 'a', 'u', 'sealed', now(),"
            " CASE WHEN connection_id <> 2 THEN now() END,"
            " CASE WHEN connection_id <> 2 THEN 'occupied' ELSE 'unassigned' END,"
            " CASE WHEN connection_id <> 2 THEN 'held by another process: app a' ELSE '' END FROM ari.connections"
        )
    listed = " ".join(arictl("connection", "list").stdout.split())
    assert "occupied" in listed
    assert "held by another process: app a" in listed
    assert "waits for a worker to tell whether another process has the app" in listed
    assert "arictl connection take-over" in arictl("connection", "unpark", "--organization", "7").stdout
    done = arictl("connection", "take-over", "--organization", "7", "--connection", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Connection 1:1: app a is taken over.\n"
    assert "Connection 2:1" in arictl("connection", "take-over", "--organization", "7").stdout
    with db.connection() as connection:
        connection.execute(
            "UPDATE ari.connection_versions SET past_error_at = now(), past_error = 'held by another process: app a'"
            " || ' exists on that Asterisk, and was never ours. Stop that process, then: arictl x',"
            " socket_state = 'connected'"
        )
    listed = " ".join(arictl("connection", "list").stdout.split())
    assert ("never ours)" in listed, "Stop that process" in listed) == (True, False), "what to do is over, too"
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT asked_at IS NULL AND parked_at IS NULL AND last_error = '' AND displaced_at IS NOT NULL AS taken"
            " FROM ari.connection_versions ORDER BY connection_id"
        ).fetchall()
    assert [row["taken"] for row in rows] == [True, True, False], "another organization's stays"


def test_the_readme_s_sql_and_command_make_a_connection_on_an_empty_database(database_url: str, tmp_path: Path) -> None:
    """The database has what `arictl db upgrade` makes. The two numbers are those that the SQL returns."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (sql,) = re.findall(r"```sql\n(INSERT.*?)```", readme, re.DOTALL)
    (command,) = re.findall(r"(arictl connection add .*?)\n```", readme, re.DOTALL)
    made = database.Database(database_url, size=1)
    made.open()
    with made.connection() as connection:
        *first, last = filter(str.strip, sql.split(";"))
        for statement in first:
            connection.execute(statement)
        row = connection.execute(last).fetchone()
    assert row == {"organization_id": 1, "workflow_id": 1}
    words = shlex.split(command.replace("\\\n", " "))
    done = arictl_program.runner(database_url, tmp_path)(*words[1:], stdin=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    (configuration,) = dograh.Configurations(made).all()
    assert configuration.read().app == "voiceai"
    assert isinstance(dograh.Routes(made).inbound(dograh_tables.connect(made, configuration.source_id), ""), Route)
    made.close()
