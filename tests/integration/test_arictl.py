"""The operator's command line, as the program it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from arictl import call_commands, main
from shared.asterisk import circuit_breaker
from shared.call import calls, facts
from shared.call.calls import Call, Change, Direction, State
from shared.call.limits import Limits
from shared.storage import database
from shared.storage.call_store import PostgresStore, TimelineEntry
from tests import certificates

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2 & # % + :"
Arictl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    """Runs a command with these settings; standard input is empty unless given."""

    def run(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"DATABASE_URL": database_url, "SECRET_KEY": "a key for arictl's tests", "PYTHONPATH": str(ROOT)}
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        return subprocess.run(
            [sys.executable, "-m", "arictl.main", *words],
            check=False, input=stdin, capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env=kept | {"COLUMNS": "250", "PYTHONWARNINGS": "error"} | settings | environment,
        )  # fmt: skip

    return run


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=2)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO organizations (provider_id) VALUES ('o1'), ('o2')")
        connection.execute(
            "INSERT INTO workflows (id, name, organization_id, workflow_definition, template_context_variables,"
            " call_disposition_codes) VALUES (5, 'w', 1, '{}', '{}', '{}'), (6, 'w', 2, '{}', '{}', '{}')"
        )
    yield made
    made.close()


ADD = (
    "connection", "add", "--organization", "1", "--endpoint", "HTTP://Pbx:80/x/", "--app", "voiceai", "--ws-client",
    "media", "--workflow", "5",
)  # fmt: skip


def stored(db: database.Database) -> dict[str, object] | None:
    with db.connection() as connection:
        row = connection.execute("SELECT value FROM organization_configurations").fetchone()
    return row["value"] if row is not None else None


def failed(done: subprocess.CompletedProcess[str], *said: str, lines: int = 1) -> None:
    """It failed, and said why in one clear line."""
    assert done.returncode == 1, done
    assert len(done.stderr.strip().splitlines()) == lines, done.stderr
    assert done.stderr.startswith("arictl: ")
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr


def test_a_database_is_upgraded(arictl: Arictl, empty_database_url: str) -> None:
    for _ in range(2):
        done = arictl("db", "upgrade", DATABASE_URL=empty_database_url)
        assert (done.returncode, done.stderr) == (0, "")
        assert "The database is at revision" in done.stdout


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
    failed(arictl(*ADD, "--replace", "--endpoint", "http://pbx", "--ca-bundle", str(bundle), stdin=PASSWORD), "no effect")


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
        store = PostgresStore(db, who=who, prefix="aip-")
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


def test_a_parked_connection_is_tried_again(arictl: Arictl, db: database.Database) -> None:
    failed(arictl("connection", "unpark", "--organization", "7"), "organization 7 has no parked connection")
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
    assert "Connection 1:1: app a is connected again." in done.stdout
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT parked_at IS NULL AND preempted_at IS NULL AND reclaims = 0 AND last_error = '' AS again"
            " FROM ari.connection_versions ORDER BY connection_id"
        ).fetchall()
    assert [row["again"] for row in rows] == [True, False], "another organization's stays"


@pytest.fixture
def call(db: database.Database) -> Call:
    """A made-up call: received, admitted, hung up."""
    with db.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 1, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x')"
        )
    store = PostgresStore(db, who="worker-1", prefix="aip-")
    now = store.now()
    made = Call(
        call_id=uuid.uuid4(), connection_id=1,
        connection_version=1, organization_id=1, channel_id="1762.1", channel_created="c", entry=1,
        direction=Direction.INBOUND, state=State.RECEIVED, received_at=now, state_since=now,
        deadline_at=now + timedelta(seconds=3), caller_number="[red]+49151\x1b[2J", called_number="5551234",
    )  # fmt: skip
    assert store.insert(made, [], None)
    happened: list[tuple[facts.Fact, list[TimelineEntry]]] = [
        (facts.Admitted(workflow_id=1, user_id=1, media_client="media"), []),
        (
            facts.RunCreated(workflow_run_id=77),
            [TimelineEntry(kind="request", name="GET /x[/]", detail="200", took_ms=12.5)],
        ),
        (facts.CallerLeft(), []),
    ]
    for fact, notes in happened:
        after, _ = calls.advance(made, fact, store.now(), Limits())
        change = Change(before=made, after=after, fact=fact)
        saved = store.save([change], timeline=notes, owner="", hold=None)
        assert saved is not None
        made = saved
    return made


def test_calls_are_listed(arictl: Arictl, call: Call) -> None:
    done = arictl("calls")
    assert (done.returncode, done.stderr) == (0, "")
    for text in (str(call.call_id)[:8], "[red]+49151", "5551234", "77", "ending", "abandoned"):
        assert text in done.stdout, text
    assert "\x1b" not in done.stdout
    assert str(call.call_id)[:8] in arictl("calls", "--live", "--organization", "1").stdout
    assert "No calls yet." in arictl("calls", "--organization", "2").stdout


@pytest.mark.parametrize("name", ["id", "short", "upper", "hex", "run", "channel"])
def test_a_call_is_traced_by_any_of_its_names(arictl: Arictl, call: Call, name: str) -> None:
    text = str(call.call_id)
    names = {
        "id": text,
        "short": text[:8],
        "upper": text.upper(),
        "hex": call.call_id.hex,
        "run": "77",
        "channel": "1762.1",
    }
    done = arictl("trace", names[name])
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    for part in (
        f"Call {text} of organization 1, run 77",
        "[red]+49151",
        "channel 1762.1 on connection 1:1",
        "ending: abandoned",
    ):
        assert part in shown, part
    steps = ["→ received", "received → admitted (Admitted)", "GET /x[/]", "admitted → prepared", "prepared → ending"]
    assert [shown.find(step) for step in steps] == sorted(shown.find(step) for step in steps)
    assert all(step in shown for step in steps)
    assert "12.5" in shown
    assert "worker-1" in shown
    assert "\x1b" not in shown


def test_a_call_is_found_among_many_without_reading_them_all(db: database.Database, call: Call) -> None:
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id,"
            " channel_created, entry, direction, state, received_at, state_since, lock_version, step_retries, channel_name,"
            " caller_number, called_number, args, attempt, legs_created, media_ready, caller_left, continue_in_dialplan,"
            " workflow_run_id)"
            " SELECT gen_random_uuid(), 1, 1, 1, 'other-' || n, '', 1, 'inbound', 'ended', now(), now(), 1, 0, '', '',"
            " '', '{}', 1, true, true, true, false, 1000 + n FROM generate_series(1, 20000) AS n"
        )
        connection.execute("ANALYZE ari.calls")
        for name in (str(call.call_id), call.call_id.hex[:8], "77", "1762.1"):
            values = call_commands._named(name)
            rows = connection.execute(f"EXPLAIN {call_commands._FIND}", values).fetchall()
            assert not [row for row in rows if "Seq Scan on calls" in row["QUERY PLAN"]], rows
            assert [row["call_id"] for row in connection.execute(call_commands._FIND, values)][:1] == [call.call_id]


@pytest.mark.parametrize(
    "name", ["", "nothing", "f---", "ffffffff", "f" * 33, "9" * 5000, "99999999999", "'; DROP TABLE ari.calls; --"]
)
def test_a_call_that_is_not_there_is_said_so(arictl: Arictl, call: Call, name: str) -> None:
    failed(arictl("trace", name), "no call ")


def test_a_database_that_is_away_is_said_so(arictl: Arictl) -> None:
    done = arictl("db", "upgrade", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    failed(done, "Postgres cannot be reached")
    assert "hunter2" not in done.stderr


def test_wrong_settings_are_named(arictl: Arictl) -> None:
    done = arictl("calls", DATABASE_URL="mysql://u:hunter2@h/d")
    failed(done, "DATABASE_URL: must begin with postgresql://", lines=2)
    assert "hunter2" not in done.stderr


def test_every_command_explains_itself(arictl: Arictl) -> None:
    for command in (
        "db upgrade",
        "connection add",
        "connection remove",
        "connection unpark",
        "connection list",
        "calls",
        "trace",
    ):
        done = arictl(*command.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert "[/prefix]" in done.stdout or command != "connection add"


def test_a_database_without_the_schema_is_told_what_to_do(arictl: Arictl, empty_database_url: str) -> None:
    failed(arictl("connection", "list", DATABASE_URL=empty_database_url), "arictl db upgrade", lines=1)


def test_a_command_that_is_none_is_explained(arictl: Arictl) -> None:
    assert "Usage" in arictl("--help").stdout
    assert arictl("unheard-of").returncode == 2


def numbers(app: typer.Typer) -> Iterator[tuple[str, str, Any]]:
    """Every number that a command takes: the command's function, the parameter, and its option."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *options = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {int, float} & {kind, *get_args(kind)}:
                yield command.callback.__name__, name, *options
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from numbers(group.typer_instance)


def test_every_number_has_bounds() -> None:
    found = list(numbers(main.app))
    assert len(found) > 10
    assert [(command, name) for command, name, option in found if option.min is None or option.max is None] == []


@pytest.mark.parametrize(
    ("words", "option", "bound"),
    [
        ("calls -o 99999999999", "--organization", "2147483647"),
        ("calls -o 0", "--organization", "1"),
        ("calls --limit 10001", "--limit", "10000"),
        ("quota show -o -1", "--organization", "1"),
        ("call 100 -o 1 --run 2147483648", "--run", "2147483647"),
        ("call 100 -o 1 --workflow 5 --ring-seconds 601", "--ring-seconds", "600"),
        ("call 100 -o 1 --workflow 5 --ring-seconds 0", "--ring-seconds", "1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(arictl: Arictl, words: str, option: str, bound: str) -> None:
    done = arictl(*words.split(), DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert (done.returncode, done.stdout) == (2, "")
    said = done.stderr.splitlines()[-1]
    assert option in said
    assert bound in said


# ── quota ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    store = PostgresStore(db, who="test", prefix="aip-")
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


def test_the_version_is_that_of_the_distribution(arictl: Arictl) -> None:
    done = arictl("--version")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"arictl {version}\n", "")
