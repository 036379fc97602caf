"""`arictl calls` and `arictl trace`, as the program it is."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from shared import errors
from shared.call import facts, transitions
from shared.call.calls import Call, Change, replace
from shared.call.limits import Limits
from shared.call.states import Direction, State
from shared.operator import call_queries
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
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


@pytest.fixture
def call(db: database.Database) -> Call:
    """A made-up call: received, admitted, hung up."""
    with db.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 1, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x')"
        )
    store = PostgresCalls(db, who="worker-1", prefix="aip-")
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
        (facts.LegReplaced(replaced_id="1762.1", channel_id="1762.9", channel_name="Local/1001-1;1"), []),
        (facts.CallerLeft(), []),
    ]
    for fact, notes in happened:
        after, _ = transitions.advance(made, fact, store.now(), Limits())
        change = Change(before=made, after=after, fact=fact)
        saved = store.save([change], timeline=notes, owner="", claim=None)
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
    assert "No such calls." in arictl("calls", "--organization", "2").stdout


#: Options → whether the call has what they want.
WANTED = {
    "--live": True, "--past": False, "--number 5551234": True, "--number 1": False, "--channel 1762.9": True,
    "--run 77": True, "--run 78": False, "--connection 1": True, "--state ending": True, "--state joining": False,
    "--outcome abandoned": True, "--outcome failed": False, "--fault caller": True, "--fault us": False,
    "--since 1h": True, "--since 2100-01-01": False, "--until 1h": False, "--until 2100-01-01T00:00+01:00": True,
    "--live --fault caller --number 5551234 --since 1d": True,
}  # fmt: skip


def test_calls_are_listed_by_what_is_wanted_of_them(arictl: Arictl, call: Call) -> None:
    for words, is_listed in WANTED.items():
        done = arictl("calls", *words.split(), "--json")
        assert (done.returncode, done.stderr) == (0, ""), words
        found = [(one["call_id"], one["fault"]) for one in json.loads(done.stdout)["calls"]]
        assert found == [(str(call.call_id), "caller")] * is_listed, words


def test_wrong_options_of_calls_are_refused(arictl: Arictl) -> None:
    for words in (
        "--live --past", "--since yesterday", "--until 5w", "--fault mine", "--state gone", "--follow --until 1h",
        "--follow --after 1", "--limit 0", "--run x",
    ):  # fmt: skip
        done = arictl("calls", *words.split())
        assert (done.returncode, done.stdout) == (2, ""), words


def test_the_next_page_of_calls_is_named(arictl: Arictl, db: database.Database, call: Call) -> None:
    older = another(db, call, channel_id="1762.3", received_at=call.received_at - timedelta(seconds=1))
    first = arictl("calls", "--limit", "1").stdout
    assert f"More: --after {call.call_id}" in first
    second = arictl("calls", "--limit", "1", "--after", str(call.call_id)).stdout
    assert str(older.call_id)[:8] in second
    assert "More" not in second
    page = json.loads(arictl("calls", "--limit", "1", "--json").stdout)
    assert page["next"]["call_id"] == str(call.call_id)
    failed(arictl("calls", "--after", "ffffffff"), "no call 'ffffffff'")


@pytest.mark.parametrize("as_json", [False, True])
def test_calls_are_followed_until_ctrl_c(
    db: database.Database, database_url: str, tmp_path: Path, call: Call, *, as_json: bool
) -> None:
    words = ["calls", "--follow", "--fault", "caller", *(["--json"] if as_json else [])]
    with arictl_program.started(database_url, tmp_path, *words) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert str(call.call_id)[:8] in first
        came = another(db, call, channel_id="1762.4", received_at=call.received_at + timedelta(minutes=1))
        line = process.stdout.readline()
        assert str(came.call_id)[:8] in line
        assert not as_json or json.loads(line)["call_id"] == str(came.call_id)
        with db.connection() as connection:
            connection.execute("UPDATE ari.calls SET state = 'ended', ended_at = now()")
        ended = {process.stdout.readline()[:300] for _ in range(2)}
        assert all("ended" in line for line in ended)
        process.send_signal(signal.SIGINT)
        assert (process.wait(10), process.stdout.read()) == (0, "")


@pytest.mark.parametrize("name", ["id", "short", "upper", "hex", "run", "channel", "replacement"])
def test_a_call_is_traced_by_any_of_its_names(arictl: Arictl, call: Call, name: str) -> None:
    text = str(call.call_id)
    names = {
        "id": text,
        "short": text[:8],
        "upper": text.upper(),
        "hex": call.call_id.hex,
        "run": "77",
        "channel": "1762.1",
        "replacement": "1762.9",
    }
    done = arictl("trace", names[name])
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    for part in (
        f"Call {text} of organization 1, run 77",
        "[red]+49151",
        "channel 1762.1, replaced by 1762.9 on connection 1:1",
        "replaced_id=1762.1, channel_id=1762.9",
        "ending: abandoned",
        "fault: caller",
    ):
        assert part in shown, part
    steps = ["→ received", "received → admitted (Admitted)", "GET /x[/]", "admitted → prepared", "prepared → ending"]
    assert [shown.find(step) for step in steps] == sorted(shown.find(step) for step in steps)
    assert all(step in shown for step in steps)
    assert "12.5" in shown
    assert "worker-1" in shown
    assert "\x1b" not in shown


def test_the_causes_of_an_end_are_shown(arictl: Arictl, db: database.Database, call: Call) -> None:
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET hangup_cause = 17, tech_cause = 486")
    assert "fault: caller, hang-up cause 17, tech cause 486" in arictl("trace", "77").stdout
    history = json.loads(arictl("trace", "77", "--json").stdout)["history"]
    assert (history["call"]["fault"], history["hangup_cause"], history["tech_cause"]) == ("caller", 17, 486)


def test_a_call_is_found_among_many_without_reading_them_all(db: database.Database, call: Call) -> None:
    with db.connection() as connection:
        # It is the test that may take long, on a busy machine.
        connection.execute("SET statement_timeout = 0")
        connection.execute(
            "INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id,"
            " channel_created, entry, direction, state, received_at, state_since, lock_version, step_retries,"
            " channel_name, caller_number, called_number, args, attempt, legs_created, media_ready, caller_left,"
            " continue_in_dialplan, workflow_run_id)"
            " SELECT gen_random_uuid(), 1, 1, 1, 'other-' || n, '', 1, 'inbound', 'ended', now(), now(), 1, 0, '', '',"
            " '', '{}', 1, true, true, true, false, 1000 + n FROM generate_series(1, 20000) AS n"
        )
        connection.execute("ANALYZE ari.calls")
        for name, statement in (
            (str(call.call_id), call_queries.FIND), (call.call_id.hex[:8], call_queries.FIND),
            ("77", call_queries.FIND), ("1762.1", call_queries.FIND_CHANNEL),
        ):  # fmt: skip
            for organization in (None, 1):
                values = call_queries.named(name, organization)
                rows = connection.execute(f"EXPLAIN {statement}", values).fetchall()
                assert not [row for row in rows if "Seq Scan on calls" in row["QUERY PLAN"]], rows
                found = [row["call_id"] for row in connection.execute(statement, values).fetchall()]
                assert found[:1] == [call.call_id]


def another(db: database.Database, call: Call, **changes: object) -> Call:
    """Store another call like this one."""
    made = replace(call, call_id=uuid.uuid4(), workflow_run_id=None, **changes)  # type: ignore[arg-type]
    assert PostgresCalls(db, who="worker-1", prefix="aip-").insert(made, [], None)
    return made


def test_a_channel_in_full_is_meant_rather_than_the_beginning_of_an_id(db: database.Database, call: Call) -> None:
    of_channel = another(db, call, channel_id=call.call_id.hex[:8])
    assert call_queries.find(db, call.call_id.hex[:8]) == of_channel.call_id
    assert call_queries.find(db, call.call_id.hex[:9]) == call.call_id


def test_what_names_two_calls_in_full_names_none(db: database.Database, call: Call) -> None:
    another(db, call, channel_id="77")
    with pytest.raises(errors.PermanentError, match="'77' is ambiguous: give the call id"):
        call_queries.find(db, "77")


def test_of_the_calls_of_a_channel_the_newest_is_meant_if_the_asterisk_is_one(
    db: database.Database, call: Call
) -> None:
    newest = another(db, call, entry=2, received_at=call.received_at + timedelta(seconds=1))
    assert call_queries.find(db, call.channel_id) == newest.call_id
    with db.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (2, 2, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (2, 1, 'http://b', 'a', 'a', 'x')"
        )
    others = another(db, call, connection_id=2, organization_id=2)
    with pytest.raises(errors.PermanentError, match="ambiguous"):
        call_queries.find(db, call.channel_id)
    for organization, meant in ((newest.organization_id, newest), (2, others)):
        assert call_queries.find(db, call.channel_id, organization) == meant.call_id
    with pytest.raises(errors.PermanentError, match="no call"):
        call_queries.find(db, call.channel_id, 3)


@pytest.mark.parametrize(
    "name", ["", "nothing", "f---", "ffffffff", "f" * 33, "9" * 5000, "99999999999", "'; DROP TABLE ari.calls; --"]
)
def test_a_call_that_is_not_there_is_said_so(arictl: Arictl, call: Call, name: str) -> None:
    failed(arictl("trace", name), "no call ")
