"""`arictl doctor`: every finding provoked, and no secret in any output."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from arictl import main
from shared import keys
from shared.asterisk import config_files
from shared.operator.checks import server_checks
from shared.operator.checks.findings import Level
from shared.process import sealing
from shared.storage import database
from tests.canned_asterisk import PASSWORD, Canned

ROOT = Path(__file__).parents[2]
KEY = "a key for the doctor's tests"
VARIABLES = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ASTERISK_SESSIONS", "LISTENER_TIMEOUT_SECONDS",
             "ENDPOINT_GUARD", "ENDPOINT_ALLOW", "ENDPOINT_DENY", "PLATFORM_LAYOUT")  # fmt: skip
Doctor = Callable[..., str]


@pytest.fixture
def canned() -> Iterator[Canned]:
    with Canned() as made:
        yield made


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    """Runs it with these settings; returns what it printed, after a look for secrets and at the status."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **environment: str) -> str:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(main.app, ["doctor", *words], catch_exceptions=False)
        assert "hunter2" not in done.output
        assert KEY not in done.output
        assert done.exit_code == (1 if re.search(r"^  wrong ", done.output, re.MULTILINE) else 0), done.output
        for line in re.findall(r"^  (?:wrong|warning) .*\n.*$", done.output, re.MULTILINE):
            assert "\n           → " in line, line
        return done.output

    return run


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=2)
    made.open()
    execute(made, "INSERT INTO organizations (provider_id) VALUES ('o1'), ('o2')")
    execute(made, "INSERT INTO users (provider_id) VALUES ('u')")
    execute(
        made,
        "INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,"
        " call_disposition_codes) VALUES ('w', 1, 1, '{}', '{}', '{}')",
    )
    yield made
    made.close()


@pytest.fixture
def settings(database_url: str, redis_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": KEY}


@pytest.fixture
def queues(redis_url: str) -> Iterator[redis.Redis]:
    made = redis.Redis.from_url(redis_url)
    before = made.config_get("maxmemory*")
    yield made
    for name in ("maxmemory", "maxmemory-policy"):
        made.config_set(name, before[name] or 0)
    made.close()


def execute(db: database.Database, statement: str, *values: object) -> None:
    with db.connection() as connection:
        connection.execute(statement, values)


def configure(db: database.Database, endpoint: str, organization: int = 1, **more: object) -> None:
    value = {
        "provider": "ari", "ari_endpoint": endpoint, "app_name": "voiceai", "app_password": PASSWORD,
        "ws_client_name": "media", "inbound_workflow_id": 1,
    } | more  # fmt: skip
    execute(
        db,
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (%s, 'TELEPHONY_CONFIGURATION', %s)",
        organization,
        json.dumps(value),
    )


def take_up(
    db: database.Database, endpoint: str, *, state: str = "connected", key: str = KEY, password: str = PASSWORD
) -> None:
    """As scheduler and listener would."""
    execute(db, "INSERT INTO ari.connections (source_id, organization_id, state, version) VALUES (1, 1, 'active', 1)")
    execute(
        db,
        "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
        " socket_state, socket_since) VALUES (1, 1, %s, 'voiceai', 'voiceai', %s, %s, now())",
        endpoint,
        sealing.Sealer((key,)).seal(password),
        state,
    )


def record(db: database.Database, state: str, *, ending_ago: str | None = None, deadline_ago: str = "-1 hour") -> None:
    execute(
        db,
        "INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id,"
        " channel_created, entry, direction, state, received_at, state_since, lock_version, step_retries, channel_name,"
        " caller_number, called_number, args, attempt, legs_created, media_ready, caller_left,"
        " continue_in_dialplan, deadline_at, ending_at)"
        " VALUES (%s, 1, 1, 1, %s, 'c', 1, 'inbound', %s, now(), now(), 1, 0, 'n', '1', '2', '{}', 1, false, false,"
        " false, false, now() - %s::interval, now() - %s::interval)",
        uuid.uuid4(), uuid.uuid4().hex, state, deadline_ago, ending_ago,
    )  # fmt: skip


def lead(db: database.Database, seconds: int) -> None:
    execute(
        db,
        "INSERT INTO ari.leases VALUES ('scheduler', 'host-7', 4, now() + %s * interval '1 second')"
        " ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at",
        seconds,
    )


def said(output: str, level: str, text: str) -> None:
    """There is a line of this level that begins so."""
    assert re.search(rf"^  {level} +{re.escape(text)}", output, re.MULTILINE), f"{level} {text}\n{output}"


# ── settings, Redis, Postgres ────────────────────────────────────────────────────────────────────────────────────────


def test_each_missing_variable_is_a_finding(doctor: Doctor) -> None:
    output = doctor()
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY"):
        said(output, "wrong", f"{name}: is not set")


def test_a_wrong_variable_is_named_and_its_value_not_shown(doctor: Doctor) -> None:
    output = doctor(SECRET_KEY="hunter2", DATABASE_URL="mysql://u:hunter2@h/d", ASTERISK_SESSIONS="hunter2")
    said(output, "wrong", "SECRET_KEY: each key needs")
    said(output, "wrong", "DATABASE_URL: must begin with")
    said(output, "wrong", "ASTERISK_SESSIONS: ")


def test_servers_that_do_not_answer_are_said_once(doctor: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    output = doctor(
        SECRET_KEY=KEY,
        DATABASE_URL=f"postgresql://u:hunter2@127.0.0.1:{port}/d",
        REDIS_URL=f"redis://u:hunter2@127.0.0.1:{port}/0",
    )
    said(output, "wrong", "Redis: not usable: Error")
    said(output, "wrong", "Postgres: Postgres cannot be reached")
    assert output.count("  wrong") == 2


def test_urls_that_cannot_be_read_do_not_leak(doctor: Doctor) -> None:
    output = doctor(SECRET_KEY=KEY, DATABASE_URL="postgresql://u:a@h:hunter2/d", REDIS_URL="redis://u:a@h:hunter2#x/0")
    said(output, "wrong", "REDIS_URL: is not a usable URL")
    said(output, "wrong", "DATABASE_URL: is not a usable URL")


@pytest.mark.services
def test_a_layout_that_is_not_served_is_said(doctor: Doctor, settings: dict[str, str], db: database.Database) -> None:
    configure(db, "http://127.0.0.1:1")
    said(doctor(**settings), "ok", "layout: 2026-02, found, the tables of an installation without the platform")
    execute(db, "ALTER TABLE workflow_runs RENAME COLUMN mode TO kind")
    said(doctor(**settings), "wrong", "configuration: the platform's database has a layout that this release does not")
    execute(db, "CREATE TABLE telephony_configurations (id serial PRIMARY KEY)")
    output = doctor(**settings, PLATFORM_LAYOUT="2026-02")
    said(output, "ok", "layout: 2026-02, by PLATFORM_LAYOUT")
    said(output, "wrong", "PLATFORM_LAYOUT: 2026-02, and the tables have the layout newest")
    said(doctor(**settings, PLATFORM_LAYOUT="hunter2"), "wrong", "PLATFORM_LAYOUT: must be one of")


@pytest.mark.services
def test_a_redis_that_would_lose_messages_is_found(
    doctor: Doctor, settings: dict[str, str], queues: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = doctor(**settings)
    for text in ("Redis version: ", "Redis maxmemory-policy: noeviction", "Redis database: ", "Redis clock: "):
        said(output, "ok", text)
    queues.config_set("maxmemory-policy", "allkeys-lru")
    queues.config_set("maxmemory", "1gb")
    queues.set("session:hunter2", "x")
    queues.set("celery", "x")
    queues.set("ari:channel:1", "the platform's")
    monkeypatch.setattr(server_checks, "_OLDEST_REDIS", (99, 0))
    monkeypatch.setattr(server_checks, "_FULL", 0.0)
    monkeypatch.setattr(server_checks, "_CLOCK_SECONDS", -1.0)
    output = doctor(**settings)
    said(output, "wrong", "Redis version: ")
    said(output, "wrong", "Redis maxmemory-policy: allkeys-lru")
    said(output, "wrong", "Redis memory: ")
    said(output, "warning", "Redis database: contains foreign keys, such as celery, session:…")
    said(output, "warning", "Redis clock: ")
    said(output, "warning", "Postgres clock: ")


@pytest.mark.services
def test_a_redis_that_is_master_no_more_is_found(redis_url: str, queues: redis.Redis) -> None:
    """It answers everything that the doctor asks."""
    queues.replicaof("127.0.0.1", 1)
    found = {each.what: (each.level, each.seen) for each in server_checks.check_redis(redis_url)}
    queues.replicaof("NO", "ONE")
    assert found["Redis role"] == (Level.WRONG, "slave: it refuses every message")
    assert "Redis role" not in {each.what for each in server_checks.check_redis(redis_url)}


@pytest.mark.services
def test_a_postgres_that_lacks_something_is_found(
    doctor: Doctor, settings: dict[str, str], db: database.Database, empty_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = doctor(**settings)
    for text in ("Postgres version: ", "Postgres clock: ", "migrations: current", "platform's tables: "):
        said(output, "ok", text)
    execute(db, "ALTER TABLE workflow_runs DROP COLUMN logs")
    monkeypatch.setattr(server_checks, "_OLDEST_POSTGRES", 99)
    output = doctor(**settings)
    said(output, "wrong", "Postgres version: ")
    said(output, "wrong", "platform's tables: missing, or not visible to this user: workflow_runs.logs\n")
    output = doctor(**settings | {"DATABASE_URL": empty_database_url})
    said(output, "wrong", "migrations: ")
    said(output, "wrong", "platform's tables: missing")
    said(output, "wrong", "scheduler: relation")


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_absent_processes_are_found(doctor: Doctor, settings: dict[str, str], db: database.Database) -> None:
    output = doctor(**settings)
    said(output, "wrong", "scheduler: none has ever led")
    said(output, "wrong", "listener: none has a heartbeat")
    said(output, "wrong", "workers: none is connected")
    said(output, "warning", "Redis boot marker: missing")
    said(output, "ok", "queues: all empty")
    said(output, "ok", "overdue calls: none")
    said(output, "ok", "dead letters: none")
    said(output, "warning", "connections: none")


@pytest.mark.services
def test_processes_at_work_are_told_from_dead_ones(
    doctor: Doctor, settings: dict[str, str], db: database.Database, queues: redis.Redis
) -> None:
    now = int(queues.time()[0]) * 1000
    queues.zadd(keys.LISTENERS, {"old": now - 60_000})
    lead(db, -5)
    output = doctor(**settings)
    said(output, "wrong", "scheduler: none leads since")
    said(output, "wrong", "listener: none is live; the last was old")
    lead(db, 60)
    queues.zadd(keys.LISTENERS, {"young": now + 60_000})
    queues.set(keys.BOOT_MARKER, "1")
    sessions = {"one/set-up/a": 0, "one/teardown/b": 0, "two/set-up/c": 0, "dead/set-up/d": -90_000}
    queues.zadd(f"{keys.NAMESPACE}:sessions", {name: now + 60_000 + at_ms for name, at_ms in sessions.items()})
    output = doctor(**settings)
    said(output, "ok", "scheduler: host-7 leads, term 4")
    said(output, "ok", "listener: young (1 live)")
    said(output, "ok", "workers: 2 connected")
    said(output, "ok", "oldest work: no worker has a message")
    said(output, "ok", "sessions: up to 60 of all workers")
    assert "boot marker" not in output
    said(doctor(**settings, ASTERISK_SESSIONS="100"), "warning", "sessions: up to 100 of all workers")


@pytest.mark.services
def test_work_that_is_not_done_is_found(
    doctor: Doctor, settings: dict[str, str], db: database.Database, queues: redis.Redis
) -> None:
    queues.rpush(f"{keys.NAMESPACE}:queue:media:rotation", "7")
    queues.rpush(f"{keys.NAMESPACE}:queue:media:group:7", *map(str, range(101)))
    take_up(db, "http://a")
    record(db, "admitted", deadline_ago="1 minute")
    execute(db, "INSERT INTO ari.timeline (kind, name, who) VALUES ('dead-letter', 'start_media', 'w')")
    output = doctor(**settings)
    said(output, "wrong", "queue media: 101 waiting messages")
    said(output, "wrong", "overdue calls: 1, ")
    said(output, "warning", "dead letters: 1 in the last day")
    assert "dropped" not in output
    queues.set(f"{keys.NAMESPACE}:dead-letters-dropped", 4)
    said(doctor(**settings), "warning", "dead letters in Redis: 4 were dropped for later ones")


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_a_healthy_connection_is_all_well(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url)
    take_up(db, canned.url)
    output = doctor("--organization", "1", **settings).partition("\norganization 1, connection 1\n")[2]
    assert output
    assert "  wrong" not in output
    assert "  warning" not in output
    for text in ("configuration: ", "connection: version 1", "event socket: connected", "inbound workflow: workflow 1",
                 "reachable: ", "credentials: ", "rights: ", "paths: ", "Stasis app: ", "version: 22.11.0",
                 "modules: all 9", "websocket client: [media] exists", "media URL: "):  # fmt: skip
        said(output, "ok", text)


@pytest.mark.services
def test_the_known_faults_of_an_asterisk_are_named_with_what_to_do(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url)
    take_up(db, canned.url)
    canned.answers["GET /asterisk/info"] = (200, {"system": {"version": "22.10.0+dfsg-1"}})
    output = doctor("--organization", "1", **settings)
    said(output, "ok", "version: 22.10.0+dfsg-1")
    said(output, "warning", "known fault: an ARI user can run commands on the Asterisk's machine")
    said(output, "ok", "known fault: a second externalMedia request with one id crashes Asterisk")


@pytest.mark.services
def test_unusable_configurations_are_found(doctor: Doctor, settings: dict[str, str], db: database.Database) -> None:
    configure(db, "ftp://x")
    output = doctor(**settings)
    said(output, "wrong", "configuration: ari_endpoint must begin with")
    said(doctor("--organization", "2", **settings), "warning", "connections: organization 2 has none")


@pytest.mark.services
def test_what_our_tables_make_of_a_configuration_is_shown(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url, app_password="hunter2 ", inbound_workflow_id=99)
    configure(db, canned.url, 2)
    output = doctor(**settings)
    said(output, "wrong", "configuration: the password begins or ends with a blank")
    said(output, "wrong", "configuration: the same endpoint and app as organization 2")
    said(output, "wrong", "configuration: the same endpoint and app as organization 1")
    said(output, "wrong", "connection: the scheduler has not read the configuration")
    take_up(db, canned.url, state="connecting")
    said(doctor(**settings), "wrong", "connection: version 1 is older")
    said(doctor(**settings), "wrong", "inbound workflow: inbound workflow does not exist")
    with_another = settings | {"SECRET_KEY": "another key that is long enough"}
    said(doctor(**with_another), "wrong", "connection: none of the SECRET_KEYs")
    execute(db, "UPDATE ari.connections SET state = 'refused', reason = 'app_name is missing'")
    said(doctor(**settings), "wrong", "connection: refused: app_name is missing")


@pytest.mark.services
def test_calls_that_stay_in_ending_are_found(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url)
    take_up(db, canned.url)
    record(db, "ending", ending_ago="5 seconds")
    assert "calls in ending" not in doctor(**settings)
    record(db, "ending", ending_ago="5 minutes")
    said(doctor(**settings), "warning", "calls in ending: 1 for over a minute")
    execute(db, "UPDATE ari.calls SET replacements = '{1.7,1.9}'")
    said(doctor(**settings), "ok", "transferred calls: 2 with another leg, one with 1.9 in place of ")


@pytest.mark.services
def test_callers_who_were_refused_as_too_many_are_told(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url)
    take_up(db, canned.url)
    execute(
        db,
        "INSERT INTO ari.timeline (connection_id, kind, name, detail, at, who)"
        " SELECT connection_id, 'note', 'TooManyCalls', 'channel 1.7', clock_timestamp() - interval '59 minutes', 'w'"
        " FROM ari.connections",
    )
    said(doctor(**settings), "warning", "callers: more than CALLS_PER_HOUR, some were refused")
    execute(db, "UPDATE ari.timeline SET at = at - interval '2 minutes'")
    assert "CALLS_PER_HOUR" not in doctor(**settings)


@pytest.mark.services
@pytest.mark.parametrize(
    "case",
    [
        ("connected", True, "ok", "Stasis app: voiceai is connected to our listener"),
        ("connected", False, "wrong", "Stasis app: our listener reports voiceai connected, Asterisk does not know it"),
        ("replaced", True, "wrong", "Stasis app: voiceai was taken over by a competing client"),
        ("occupied", True, "wrong", "Stasis app: voiceai is held by another process, and was never ours"),
        ("connecting", True, "wrong", "Stasis app: Asterisk knows voiceai, but our event socket is connecting"),
        ("unassigned", False, "wrong", "Stasis app: no client is connected to voiceai: our event socket is unassigned"),
    ],
)
def test_which_client_has_the_app_is_shown(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned, case: tuple[str, bool, str, str]
) -> None:  # fmt: skip
    state, known, level, text = case
    configure(db, canned.url)
    take_up(db, canned.url, state=state)
    if not known:
        canned.answers["GET /applications/voiceai"] = (404, {"message": "Application not found"})
    output = doctor(**settings)
    said(output, level, text)
    said(output, "ok" if state == "connected" else "wrong", f"event socket: {state}")


@pytest.mark.services
def test_an_endpoint_that_the_guard_refuses_is_not_asked(
    doctor: Doctor, settings: dict[str, str], db: database.Database, canned: Canned
) -> None:
    configure(db, canned.url)
    strict = {"ENDPOINT_GUARD": "strict"}
    refused = f"endpoint guard: {canned.url}: the endpoint is"
    said(doctor(**settings, **strict), "wrong", f"{refused} a loopback address: ENDPOINT_GUARD is strict")
    said(doctor(**settings, ENDPOINT_DENY="127.0.0.0/8"), "wrong", f"{refused} an address in ENDPOINT_DENY")
    said(doctor(**settings, **strict, ENDPOINT_ALLOW="127.0.0.1"), "ok", "reachable")


@pytest.mark.services
def test_a_list_of_networks_that_is_none_is_a_finding(doctor: Doctor, settings: dict[str, str]) -> None:
    said(doctor(**settings, ENDPOINT_ALLOW="10.0.0.0/33"), "wrong", "ENDPOINT_ALLOW: '10.0.0.0/33' is not a network")


# ── the files of an Asterisk ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_the_files_for_a_connection_are_printed(
    doctor: Doctor, settings: dict[str, str], db: database.Database
) -> None:
    configure(db, "https://pbx.example/asterisk/", app_name="acme", ws_client_name="agent")
    output = doctor("--dialplan", "1", DATABASE_URL=settings["DATABASE_URL"])
    assert config_files.dialplan("acme") in output
    for line in ("; ──── http.conf ────", "prefix=asterisk", "tlsbindaddr=0.0.0.0:443", "[acme]", "[agent]",
                 f"password={config_files.PASSWORD}", f"uri={config_files.MEDIA_URL}"):  # fmt: skip
        assert f"\n{line}\n" in f"\n{output}", line
    assert "written as \\; because" in output


@pytest.mark.services
def test_the_program_ends_with_a_status(settings: dict[str, str], db: database.Database, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    run = [sys.executable, "-m", "arictl.main", "doctor"]
    environment = kept | settings | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    said(done.stdout, "wrong", "scheduler: none has ever led")
    done = subprocess.run(
        [*run, "--dialplan", "7"], check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "arictl: organization 7 has no ARI configuration\n"
