"""`arictl dlq`, and the sets of dead letters that the scheduler works on: real Redis, real Postgres."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis

from shared import errors, keys, messages, queues
from shared.broker import letter_store as in_redis
from shared.call import commands
from shared.operator import audit, dead_letter_sets
from shared.operator import dead_letter_actions as dead_letters
from shared.operator.audit import Actor
from shared.operator.dead_letter_actions import Filter
from shared.storage import database
from tests import arictl_program
from tests.arictl_program import Arictl, failed
from tests.support import queued

pytestmark = pytest.mark.services

ME = Actor(who="alice@host", via="arictl")
STREAM = f"{keys.NAMESPACE}:dead-letters"


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(queues.client(redis_url)) as made:
        yield made


@pytest.fixture
def arictl(database_url: str, redis_url: str, tmp_path: Path, db: database.Database) -> Arictl:
    run = arictl_program.runner(database_url, tmp_path)
    return lambda *words, **given: run(*words, **({"REDIS_URL": redis_url} | given))


def put(client: redis.Redis, error: str = "PermanentError: no", *, connection_id: int = 1, **more: Any) -> str:
    """Add a dead letter, as poll.lua does; return its id."""
    message = messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=connection_id)
    message.options.update(tries=5, failed_ms=1)
    fields = {
        "queue": "teardown",
        "message_key": f"{connection_id}/{message.message_id}",
        "body": message.encode(),
        "reason": f"{error}\nTraceback (most recent call last):\n  in _fail\n{error}\n",
    }
    name: Any = client.xadd(STREAM, fields | more)
    return str(name.decode())


def waiting(client: redis.Redis) -> list[dict[str, Any]]:
    return queued.messages(client, "teardown")


def test_letters_are_grouped_by_error(arictl: Arictl, client: redis.Redis) -> None:
    assert arictl("dlq", "list").stdout == "No dead letters.\n"
    for number in range(3):
        put(client, f"InvalidMessage: not a call id: {uuid.uuid4()} of {number}")
    example = put(client, "DatabaseRefused: no such column")
    shown = arictl("dlq", "list").stdout
    first, second = shown.splitlines()[1:]
    assert first.split()[:2] == ["3", "teardown"]
    assert "InvalidMessage: not a call id: … of …" in first
    assert second.split()[0] == "1"
    assert example in second
    found = json.loads(arictl("dlq", "list", "--json").stdout)
    assert (found["total"], [group["count"] for group in found["groups"]]) == (4, [3, 1])
    # An earlier release kept the traceback alone.
    old = put(client, reason="Traceback (most recent call last):\n  File x\nshared.errors.InvalidEvent: odd\n")
    assert dead_letters.get(client, old).letter.error == "shared.errors.InvalidEvent: odd"
    cut = put(client, reason="Traceback (most recent call last):\n  File x\n    a line that was c")
    assert "only the beginning" in dead_letters.get(client, cut).letter.error


def test_letters_are_paged_and_filtered(arictl: Arictl, client: redis.Redis) -> None:
    names = [put(client, f"E: {number % 2}", connection_id=number) for number in range(1, 7)]
    page = json.loads(arictl("dlq", "list", "--each", "--limit", "4", "--json").stdout)
    assert [letter["id"] for letter in page["letters"]] == names[:1:-1]
    rest = json.loads(arictl("dlq", "list", "--each", "--before", page["next"], "--json").stdout)
    assert ([letter["id"] for letter in rest["letters"]], rest["next"]) == (names[1::-1], None)
    for words, count in (
        (("--error", "e: 1"), 3), (("--connection", "2"), 1), (("--queue", "media"), 0), (("--queue", "teardown"), 6),
    ):  # fmt: skip
        found = json.loads(arictl("dlq", "list", "--each", *words, "--json").stdout)
        assert len(found["letters"]) == count, words
    failed(arictl("dlq", "list", "--each", "--before", "x"), "is no letter's id")


def test_a_letter_is_shown_without_credentials_and_numbers(arictl: Arictl, client: redis.Redis) -> None:
    body = {"queue_name": "originate", "actor_name": "request_call", "args": [], "options": {}, "message_id": "m",
            "kwargs": {"number": "+4930123456", "organization_id": 3, "call_id": "abc\x1b[2J"}}  # fmt: skip
    name = put(client, "E: user:hunter2 of +4930123456 Bearer abcdefgh", body=json.dumps(body))
    shown = arictl("dlq", "show", name)
    assert shown.returncode == 0
    for text in ("request_call", '"organization_id": 3', "in _fail"):
        assert text in shown.stdout, text
    for text in ("30123456", "\x1b"):
        assert text not in shown.stdout
    failed(arictl("dlq", "show", "1-1"), "no dead letter '1-1'")
    failed(arictl("dlq", "show", "*"), "no dead letter '*'")


def test_a_letter_is_retried_once(arictl: Arictl, client: redis.Redis, db: database.Database) -> None:
    name, other = put(client), put(client)
    done = arictl("dlq", "retry", name)
    assert (done.returncode, done.stdout) == (0, f"Dead letter {name}: its message is in its queue again.\n")
    (message,) = waiting(client)
    assert "tries" not in message["options"]
    assert "failed_ms" not in message["options"], "it has all its tries again"
    done = arictl("dlq", "retry", name)
    assert (done.returncode, "is not there" in done.stdout) == (0, True)
    assert len(waiting(client)) == 1
    done = arictl("dlq", "discard", other, other, "--json")
    assert [each["outcome"] for each in json.loads(done.stdout)["letters"]] == ["discarded", "gone"]
    assert client.xlen(STREAM) == 0
    outcomes = [(row.action, row.outcome) for row in reversed(audit.page(db))]
    assert outcomes == [
        ("dlq retry", "asked"), ("dlq retry", "done"), ("dlq retry", "asked"), ("dlq retry", "nothing"),
        ("dlq discard", "asked"), ("dlq discard", "done"), ("dlq discard", "asked"), ("dlq discard", "nothing"),
    ]  # fmt: skip


def test_a_letter_that_cannot_be_retried_keeps_none_of_the_others_from_it(arictl: Arictl, client: redis.Redis) -> None:
    first, odd, last = put(client), put(client, body=b"{"), put(client)
    done = arictl("dlq", "retry", first, odd, last, "--json")
    assert [each["outcome"] for each in json.loads(done.stdout)["letters"]] == ["enqueued", "refused", "enqueued"]
    assert (done.returncode, done.stderr.count("\n"), odd in done.stderr) == (1, 1, True)
    assert len(waiting(client)) == 2


@pytest.mark.parametrize("text", ['token=abc"d', "\0", "password: '", "://a:b@c", "\ud800"])
def test_no_text_of_a_peer_keeps_a_letter_from_being_shown_and_settled(
    arictl: Arictl, client: redis.Redis, db: database.Database, text: str
) -> None:
    body = {"queue_name": "teardown", "actor_name": "tear_down", "args": [], "options": {}, "message_id": "m",
            "kwargs": {"of": json.dumps({"name": text}), "ari_password": "hunter2", "number": 5550100}}  # fmt: skip
    name = put(client, f"E: {text.encode(errors='replace').decode()}", body=json.dumps(body))
    shown = json.loads(arictl("dlq", "show", name, "--json").stdout)
    assert (shown["message"]["kwargs"]["ari_password"], shown["message"]["kwargs"]["number"]) == (
        "[redacted]",
        "****100",
    )
    arictl("dlq", "list")
    assert arictl("dlq", "discard", "--all").returncode == 0
    dead_letter_sets.work(db, client)
    assert client.xlen(STREAM) == 0


def test_two_who_retry_a_letter_at_once_retry_it_once(client: redis.Redis) -> None:
    """Both have read it."""
    stream = in_redis.DeadLetters(client, keys.NAMESPACE)
    letter = stream.get(put(client))
    assert letter is not None
    first = stream.retry(letter, letter.body)
    # A worker is at it by now, or has done it.
    client.delete(*client.keys(f"{keys.NAMESPACE}:queue:*"))
    assert (first, stream.retry(letter, letter.body)) == (in_redis.Retried.ENQUEUED, in_redis.Retried.GONE)
    assert waiting(client) == []


def test_a_message_that_is_in_its_queue_already_is_there_once(client: redis.Redis, db: database.Database) -> None:
    """The end of a media leg has an id that says what it is about."""
    name = put(client)
    letter = in_redis.DeadLetters(client, keys.NAMESPACE).get(name)
    assert letter is not None
    client.hset(f"{keys.NAMESPACE}:queue:teardown", letter.message_key, letter.body)
    assert dead_letters.retry(db, client, ME, name) is in_redis.Retried.WAS_QUEUED
    assert waiting(client) == []
    assert client.xlen(STREAM) == 0


@pytest.mark.parametrize("body", [b"\xff\0{", b"[" * 100_000, b'{"v": 1}', b'{"actor_name": "x", "kwargs": {"a":'])
def test_what_cannot_be_read_is_shown_and_not_retried(arictl: Arictl, client: redis.Redis, body: bytes) -> None:
    name = put(client, body=body)
    assert "cannot be retried" in arictl("dlq", "show", name).stdout
    failed(arictl("dlq", "retry", name), "cannot be retried: only the beginning")
    assert client.xlen(STREAM) == 1
    assert arictl("dlq", "discard", name).returncode == 0


def test_of_a_release_to_come_nothing_is_retried(arictl: Arictl, client: redis.Redis) -> None:
    failed(arictl("dlq", "retry", put(client, queue="another")), "there is no queue 'another' in this release")


def test_what_is_meant_has_to_be_said(arictl: Arictl, client: redis.Redis) -> None:
    name = put(client)
    for verb in ("retry", "discard"):
        failed(arictl("dlq", verb), "name letters, or a filter")
        failed(arictl("dlq", verb, name, "--all"), "name letters, or a filter")
    assert client.xlen(STREAM) == 1
    done = arictl("dlq", "retry", name, REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 3
    assert done.stderr.startswith("arictl: Redis: ")


# ── sets ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_set_is_frozen_and_settled_once(arictl: Arictl, client: redis.Redis, db: database.Database) -> None:
    for number in range(250):
        put(client, "E: of these" if number % 5 else "F: no")
    done = arictl("dlq", "retry", "--error", "of these", "--reason", "fixed", "--json")
    frozen = json.loads(done.stdout)["set"]
    assert (frozen["total"], frozen["done"], frozen["groups"], frozen["reason"]) == (
        200,
        0,
        {"E: of these": 200},
        "fixed",
    )
    late = put(client, "E: of these")
    # One look may leave a part to the next: each is bounded in time.
    for _ in range(10):
        dead_letter_sets.work(db, client)
    assert len(waiting(client)) == 200
    assert client.xlen(STREAM) == 51
    assert client.xrange(STREAM, late, late), "what came meanwhile is none of them"
    shown = arictl("dlq", "set", str(frozen["set_id"])).stdout
    assert "to retry, ended" in shown
    assert "200 of 200 done" in shown
    dead_letter_sets.work(db, client)
    assert len(waiting(client)) == 200
    with pytest.raises(errors.InvalidRequest, match="was ordered already: retry"):
        dead_letter_sets.order(db, ME, frozen["set_id"], "discard")
    outcomes = [(row.action, row.subject, row.outcome) for row in reversed(audit.page(db))]
    subject = f"dead letter set {frozen['set_id']}"
    assert outcomes == [
        ("dlq retry", subject, "asked"), ("dlq retry", subject, "done"), ("dlq discard", subject, "failed"),
    ]  # fmt: skip
    failed(arictl("dlq", "set", "77"), "no set 77")
    arictl("dlq", "discard", "--all")
    assert [each["total"] for each in json.loads(arictl("dlq", "set", "--json").stdout)["sets"]] == [51, 200]


def test_a_set_that_is_only_looked_at_does_nothing(client: redis.Redis, db: database.Database) -> None:
    put(client)
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    dead_letter_sets.work(db, client)
    assert (frozen.total, client.xlen(STREAM)) == (1, 1)


def test_a_set_survives_whom_it_was_worked_on_by(client: redis.Redis, db: database.Database) -> None:
    """Killed after Redis was asked, and before Postgres knows."""
    names = [put(client) for _ in range(150)]
    unreadable = put(client, body=b"{")
    gone = put(client)
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    dead_letter_sets.order(db, ME, frozen.set_id, "retry")
    client.xdel(STREAM, gone)
    with mock.patch.object(dead_letter_sets, "_SETTLE", "SELECT 'x'::integer"), pytest.raises(errors.DatabaseRefused):
        dead_letter_sets.work(db, client)
    assert 0 < len(waiting(client)) < 150
    for _ in range(10):
        dead_letter_sets.work(db, client)
    after = dead_letter_sets.get(db, frozen.set_id)
    assert (after.total, after.done, after.gone, after.refused) == (152, 150, 1, 1)
    assert after.ended_at is not None
    assert len(waiting(client)) == len(names)
    assert client.xrange(STREAM, unreadable, unreadable)


def test_what_another_scheduler_has_done_of_a_set_is_done(
    client: redis.Redis, db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken the lead while the one before was at work."""
    settled = dead_letter_sets._settled
    overtaken: list[bool] = []

    def settle_later(*arguments: Any) -> str:
        if not overtaken:
            overtaken.append(True)
            dead_letter_sets.work(db, client)
        return settled(*arguments)

    for _ in range(5):
        put(client)
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    dead_letter_sets.order(db, ME, frozen.set_id, "retry")
    monkeypatch.setattr(dead_letter_sets, "_settled", settle_later)
    dead_letter_sets.work(db, client)
    after = dead_letter_sets.get(db, frozen.set_id)
    assert (after.done, after.gone, len(waiting(client))) == (5, 0, 5)


def test_a_set_has_its_bound(client: redis.Redis, db: database.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MOST", 5)
    names = [put(client) for _ in range(8)]
    frozen = dead_letter_sets.freeze(db, client, ME, Filter())
    dead_letter_sets.order(db, ME, frozen.set_id, "discard")
    dead_letter_sets.work(db, client)
    left: Any = client.xrange(STREAM)
    assert [name.decode() for name, _ in left] == names[:3]
    assert not dead_letters.overview(client, Filter()).is_complete or client.xlen(STREAM) <= 5
