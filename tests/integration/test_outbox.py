"""The platform is told of ended runs: a worker of arq and a campaign's subscription read it, as the platform's do."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from shared import errors
from shared.platform import dograh
from shared.platform.dograh import arq_jobs, outbox
from shared.storage import database
from tests.support import arq_worker

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=2)
    made.open()
    yield made
    made.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def campaigns(server: Any) -> Iterator[Any]:
    """The platform's subscription."""
    with server.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(outbox.CHANNEL)
        assert subscription.get_message(timeout=5) is None
        yield subscription


def put(db: database.Database, run_id: int, *, campaign_id: int | None = None, retry_reason: str | None = None) -> None:
    with db.transaction() as connection:
        outbox.put(
            connection, run_id, campaign_id=campaign_id, queued_run_id=campaign_id and 9, retry_reason=retry_reason
        )


def waiting(db: database.Database) -> list[int]:
    with db.connection() as connection:
        rows = connection.execute("SELECT workflow_run_id AS it FROM ari.outbox ORDER BY it").fetchall()
    return [row["it"] for row in rows]


def events(subscription: Any) -> list[dict[str, Any]]:
    found = []
    while (message := subscription.get_message(timeout=0.2)) is not None:
        found.append(json.loads(message["data"]))
    return found


def jobs(server: Any) -> list[Any]:
    return [pickle.loads(server.get(arq_jobs.key(each.decode()))) for each in server.zrange(arq_jobs.QUEUE, 0, -1)]


def test_a_worker_of_arq_runs_the_job_of_each_ended_run_once(
    db: database.Database, redis_url: str, server: Any
) -> None:
    try:
        python = arq_worker.python()
    except arq_worker.Unavailable as exc:
        pytest.skip(f"arq cannot be installed: {exc}")
    put(db, 41)
    put(db, 42)
    assert dograh.Outbox(db, redis_url, hours=1).tell() == 2
    where = urlsplit(redis_url)
    place = (where.hostname or "", where.port or 0, where.password or "")
    done = arq_worker.run(python, *place, function=outbox.JOB)
    assert done == [{"id": f"{outbox.JOB}:{run_id}", "try": 1, "args": [run_id], "given": {}} for run_id in (41, 42)]
    # The rows are there once more: the scheduler had died before it deleted them.
    put(db, 41)
    assert dograh.Outbox(db, redis_url, hours=1).tell() == 1
    assert arq_worker.run(python, *place, function=outbox.JOB) == []
    assert waiting(db) == []


def test_a_job_has_the_form_of_arq_s(db: database.Database, redis_url: str, server: Any) -> None:
    put(db, 41)
    dograh.Outbox(db, redis_url, hours=1).tell()
    ((job_id, score),) = server.zrange(arq_jobs.QUEUE, 0, -1, withscores=True)
    assert job_id == b"run_integrations_post_workflow_run:41"
    assert abs(score - time.time() * 1000) < 60_000
    (job,) = jobs(server)
    assert job == {"t": None, "f": "run_integrations_post_workflow_run", "a": (41,), "k": {}, "et": int(score)}
    assert 86_000_000 < server.pttl(arq_jobs.key(job_id.decode())) <= arq_jobs.EXPIRES_MS


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:6379/5", "redis://host:6379/0"),
        ("redis://:pass%2Fword@host", "redis://:pass%2Fword@host/0"),
        ("rediss://user:pass@host:1/2?db=3&ssl_cert_reqs=none", "rediss://user:pass@host:1/0?ssl_cert_reqs=none"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock"),
    ],
)
def test_arq_s_database_is_the_first_whichever_the_platform_has(url: str, expected: str) -> None:
    assert arq_jobs.url_of(url) == expected


def test_the_database_of_the_url_is_not_written(db: database.Database, redis_url: str, server: Any) -> None:
    put(db, 41)
    dograh.Outbox(db, redis_url.removesuffix("/0") + "/1", hours=1).tell()
    assert len(jobs(server)) == 1


@pytest.mark.parametrize("reason", ["busy", "no_answer"])
def test_a_campaign_is_told_that_it_calls_once_more(
    db: database.Database, redis_url: str, campaigns: Any, reason: str
) -> None:
    put(db, 41, campaign_id=3, retry_reason=reason)
    for _ in range(2):
        dograh.Outbox(db, redis_url, hours=1).tell()
        put(db, 41, campaign_id=3, retry_reason=reason)
    (event,) = events(campaigns)
    assert event.pop("timestamp")
    assert event == {
        "type": "retry_needed",
        "campaign_id": 3,
        "workflow_run_id": 41,
        "queued_run_id": 9,
        "reason": reason,
        "metadata": {},
    }


@pytest.mark.parametrize("of", [(None, "busy"), (3, None), (None, None)])
def test_what_no_campaign_has_to_call_again_is_a_job_only(
    db: database.Database,
    redis_url: str,
    server: Any,
    campaigns: Any,
    of: tuple[int | None, str | None],
) -> None:
    put(db, 41, campaign_id=of[0], retry_reason=of[1])
    assert dograh.Outbox(db, redis_url, hours=1).tell() == 1
    assert (events(campaigns), len(jobs(server)), waiting(db)) == ([], 1, [])


def test_a_campaign_that_is_not_there_is_told_when_it_is_back_and_the_job_is_not_repeated(
    db: database.Database, redis_url: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of the runs behind it waits for that."""
    monkeypatch.setattr(outbox, "_BATCH", 1)
    put(db, 41, campaign_id=3, retry_reason="busy")
    put(db, 42)
    telling = dograh.Outbox(db, redis_url, hours=1)
    for _ in range(3):
        telling.tell()
    assert (waiting(db), len(jobs(server))) == ([41], 2)
    server.delete(arq_jobs.QUEUE)
    with server.pubsub(ignore_subscribe_messages=True) as tool:
        # It shows everything, and is no campaign.
        tool.psubscribe("*")
        tool.get_message(timeout=5)
        telling.tell()
        assert (waiting(db), events(tool)) == ([41], [])
    with server.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(outbox.CHANNEL)
        subscription.get_message(timeout=5)
        for _ in range(2):
            telling.tell()
        assert [event["workflow_run_id"] for event in events(subscription)] == [41]
    assert (waiting(db), jobs(server)) == ([], [])


def test_what_the_platform_s_redis_did_not_take_waits_and_is_told_later(
    db: database.Database, redis_url: str, server: Any
) -> None:
    for run_id in (41, 42, 43):
        put(db, run_id)
    with pytest.raises(errors.QueueUnavailable, match="the platform's Redis") as caught:
        dograh.Outbox(db, "redis://:secret@127.0.0.1:1/0", hours=1).tell()
    assert "secret" not in str(caught.value)
    assert waiting(db) == [41, 42, 43]
    # In the middle of it: another type under the key of the second one.
    server.lpush(outbox.told_key(42), "odd")
    with pytest.raises(errors.QueueUnavailable):
        dograh.Outbox(db, redis_url, hours=1).tell()
    assert waiting(db) == [42, 43]
    server.delete(outbox.told_key(42))
    dograh.Outbox(db, redis_url, hours=1).tell()
    assert (waiting(db), len(jobs(server))) == ([], 3)


def test_what_could_not_be_told_for_too_long_is_given_up(db: database.Database, redis_url: str, server: Any) -> None:
    put(db, 41)
    put(db, 42)
    with db.connection() as connection:
        connection.execute(
            "UPDATE ari.outbox SET written_at = now() - interval '61 minutes' WHERE workflow_run_id = 41"
        )
    assert dograh.Outbox(db, redis_url, hours=1).tell() == 1
    assert (waiting(db), len(jobs(server))) == ([], 1)


def test_what_was_told_is_known_for_longer_than_a_row_waits(db: database.Database, redis_url: str, server: Any) -> None:
    put(db, 41)
    dograh.Outbox(db, redis_url, hours=24).tell()
    assert server.ttl(outbox.told_key(41)) > 24 * 3600
