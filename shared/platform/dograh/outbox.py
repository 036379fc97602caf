"""The outbox: which ended runs the platform is to be told of. https://microservices.io/patterns/data/transactional-outbox

A row is written in the transaction that ends the run, so that no death in between loses it, and no leg waits for the
platform's Redis. The leading scheduler tells the platform and deletes the row: at least once, and once as a rule.
"""

from __future__ import annotations

import json

import redis
import structlog

from shared import errors
from shared.broker import redis_clients
from shared.platform.dograh import arq_jobs
from shared.storage import database

log = structlog.stdlib.get_logger(__name__)

#: The platform's: it runs what a workflow does after a call, such as webhooks.
JOB = "run_integrations_post_workflow_run"
CHANNEL = "campaign_events"
#: What one look tells the platform of at most.
_BATCH = 500

#: For a run whose end was forgotten by a fail-over and is written again.
_PUT = """
INSERT INTO ari.outbox (workflow_run_id, campaign_id, queued_run_id, retry_reason) VALUES (%s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""
_NEXT = """
SELECT workflow_run_id, campaign_id, queued_run_id, retry_reason, written_at, clock_timestamp() AS now,
       written_at < clock_timestamp() - make_interval(secs => %(seconds)s) AS is_old
FROM ari.outbox WHERE workflow_run_id > %(after)s ORDER BY workflow_run_id LIMIT %(batch)s
"""

#: Tells of one run. Returns 0 while no campaign listens to its event.
#: KEYS: what was told of the run, its job, the queue. ARGV: the job's id, the job, its expiry in ms, now in ms, the
#: channel, the event (empty for none), for how many seconds it is known what was told.
_TELL = """
local told = redis.call('GET', KEYS[1])
if not told then
  redis.call('PSETEX', KEYS[2], ARGV[3], ARGV[2])
  redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
  redis.call('SET', KEYS[1], 'job', 'EX', ARGV[7])
end
if ARGV[6] == '' or told == 'all' then
  return 1
end
-- The campaigns listen by the channel's name. PUBLISH also counts who listens by a pattern, such as an operator's tool.
if redis.call('PUBSUB', 'NUMSUB', ARGV[5])[2] == 0 then
  return 0
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
redis.call('SET', KEYS[1], 'all', 'EX', ARGV[7])
return 1
"""


def told_key(workflow_run_id: int) -> str:
    """Return the key in arq's database of a string `job` or `all`: what the platform was told of an ended run."""
    return f"ari:told:{workflow_run_id}"


def put(
    connection: database.Connection,
    workflow_run_id: int,
    *,
    campaign_id: int | None,
    queued_run_id: int | None,
    retry_reason: str | None,
) -> None:
    """Have the platform told of an ended run, once the caller's transaction is committed.

    Args:
        campaign_id: The campaign that placed the call; None for none.
        retry_reason: Why the campaign calls once more, `busy` or `no_answer`; None if it does not.
    """
    connection.send(_PUT, [workflow_run_id, campaign_id, queued_run_id, retry_reason])


class Outbox:
    """Tells the platform of ended runs, through its Redis.

    Args:
        redis_url: The platform's.
        hours: A run that could not be told of for so long is given up.
    """

    def __init__(self, db: database.Database, redis_url: str, *, hours: float) -> None:
        self._db = db
        self._client = redis_clients.client(arq_jobs.url_of(redis_url))
        self._tell = self._client.register_script(_TELL)
        self._after = 0
        self._seconds = hours * 3600

    def tell(self) -> int:
        """Tell of what waits, and return how many runs that were. Raises QueueUnavailable, DatabaseUnavailable."""
        with self._db.connection() as connection:
            values = {"after": self._after, "batch": _BATCH, "seconds": self._seconds}
            rows = connection.execute(_NEXT, values).fetchall()
        # What no one takes keeps none of those behind it waiting.
        self._after = rows[-1]["workflow_run_id"] if len(rows) == _BATCH else 0
        done = [row["workflow_run_id"] for row in rows if row["is_old"]]
        if done:
            log.error("ended runs given up: the platform could not be told of them", runs=len(done), first=done[0])
        told = 0
        try:
            for row in rows:
                if not row["is_old"] and self._tell_of(row):
                    done.append(row["workflow_run_id"])
                    told += 1
        except redis.RedisError as exc:
            # Its words may show an address.
            raise errors.QueueUnavailable(f"the platform's Redis: {type(exc).__name__}") from exc
        finally:
            if done:
                with self._db.connection() as connection:
                    connection.send("DELETE FROM ari.outbox WHERE workflow_run_id = ANY(%s)", [done])
        return told

    def _tell_of(self, row: database.Row) -> bool:
        run_id, now_ms = row["workflow_run_id"], int(row["now"].timestamp() * 1000)
        job_id = f"{JOB}:{run_id}"
        # A job is told of once, however often this is repeated, as long as the row could be there.
        known_seconds = int(self._seconds) + 3600
        return bool(
            self._tell(
                keys=[told_key(run_id), arq_jobs.key(job_id), arq_jobs.QUEUE],
                args=[
                    job_id,
                    arq_jobs.dumps(JOB, run_id, now_ms=now_ms),
                    arq_jobs.EXPIRES_MS,
                    now_ms,
                    CHANNEL,
                    _retry_needed(row) or "",
                    known_seconds,
                ],
            )
        )


def _retry_needed(row: database.Row) -> str | None:
    """Return the event by which a campaign calls a far end once more; None if none has to."""
    if row["campaign_id"] is None or row["retry_reason"] is None:
        return None
    event = {
        "type": "retry_needed",
        "campaign_id": row["campaign_id"],
        "timestamp": row["written_at"].isoformat(),
        "workflow_run_id": row["workflow_run_id"],
        "queued_run_id": row["queued_run_id"] or 0,
        "reason": row["retry_reason"],
        "metadata": {},
    }
    return json.dumps(event)
