"""Frozen sets of dead letters: those that matched a filter at one moment, to be retried or discarded together.

A set is in Postgres, and the leading scheduler works on it. So it outlives the page that ordered it and any process, is
worked on once, and never has what has failed meanwhile.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Literal

import redis

from shared import errors, keys, redaction
from shared.broker import letter_store as in_redis
from shared.broker.letter_store import Retried
from shared.operator import audit
from shared.operator import dead_letter_actions as dead_letters
from shared.operator.audit import Action, Actor, Outcome
from shared.operator.dead_letter_actions import Filter
from shared.storage import database

Order = Literal["retry", "discard"]

#: The scheduler works on so many letters between two commits, and for so long at once.
_BATCH = 100
_SECONDS = 0.5

_FREEZE = """
INSERT INTO ari.dead_letter_sets (who, via, reason, filter, oldest_at, newest_at, groups)
VALUES (%(who)s, %(via)s, %(reason)s, %(filter)s::jsonb, %(oldest)s, %(newest)s, %(groups)s::jsonb)
RETURNING set_id
"""
_LETTERS = """
INSERT INTO ari.dead_letter_set_letters (set_id, number, letter_id)
SELECT %(set)s, number, letter_id FROM unnest(%(letters)s::text[]) WITH ORDINALITY AS given (letter_id, number)
"""
_ORDER = """
UPDATE ari.dead_letter_sets SET action = %(order)s, ordered_at = clock_timestamp()
WHERE set_id = %(set)s AND ordered_at IS NULL RETURNING set_id
"""
_SELECT = """
SELECT s.set_id, s.at, s.who, s.via, s.reason, s.action, s.ordered_at, s.ended_at, s.oldest_at, s.newest_at, s.groups,
       count(l.*) AS total, count(*) FILTER (WHERE l.state = 'done') AS done,
       count(*) FILTER (WHERE l.state = 'gone') AS gone, count(*) FILTER (WHERE l.state = 'refused') AS refused
FROM ari.dead_letter_sets s LEFT JOIN ari.dead_letter_set_letters l USING (set_id)
"""
_GET = f"{_SELECT} WHERE s.set_id = %s GROUP BY s.set_id"
_RECENT = f"""
{_SELECT} WHERE s.set_id > (SELECT coalesce(max(set_id), 0) FROM ari.dead_letter_sets) - %s
GROUP BY s.set_id ORDER BY s.set_id DESC
"""  # noqa: S608 - built from a constant
_OPEN = """
SELECT set_id, action, who, via FROM ari.dead_letter_sets
WHERE ordered_at IS NOT NULL AND ended_at IS NULL ORDER BY set_id LIMIT 1
"""
#: Those that were begun may have been done: the process that was at work on them may have died.
_BEGIN = """
WITH next AS (
    SELECT number, state FROM ari.dead_letter_set_letters
    WHERE set_id = %(set)s AND state IN ('waiting', 'begun') ORDER BY number LIMIT %(batch)s
)
UPDATE ari.dead_letter_set_letters l SET state = 'begun' FROM next
WHERE l.set_id = %(set)s AND l.number = next.number
RETURNING l.number, l.letter_id, next.state = 'begun' AS was_begun
"""
#: What another process has done meanwhile, which is about to lose the lead or has taken it, is done.
_SETTLE = """
UPDATE ari.dead_letter_set_letters l SET state = given.state
FROM unnest(%(numbers)s::integer[], %(states)s::text[]) AS given (number, state)
WHERE l.set_id = %(set)s AND l.number = given.number AND l.state <> 'done'
"""
_END = """
UPDATE ari.dead_letter_sets SET ended_at = clock_timestamp() WHERE set_id = %(set)s AND ended_at IS NULL
RETURNING set_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSet:
    """A set, and how far it has come."""

    set_id: int
    at: datetime
    who: str
    via: str
    reason: str
    #: `retry` or `discard`; None until it is ordered.
    action: str | None
    ordered_at: datetime | None
    ended_at: datetime | None
    #: When its oldest and its newest letter failed; None if it has none.
    oldest_at: datetime | None
    newest_at: datetime | None
    #: Kind of failure → number of letters.
    groups: dict[str, int]
    total: int
    done: int
    #: Were not there any more: retried, discarded or dropped by others.
    gone: int
    #: Cannot be retried: they stay.
    refused: int


def freeze(db: database.Database, client: redis.Redis, actor: Actor, wanted: Filter, reason: str = "") -> FrozenSet:
    """Fix the letters that match now, the newest `dead_letters.MOST` of them. Nothing is done with them yet.

    Raises:
        QueueUnavailable, DatabaseUnavailable: No set was made.
    """
    letters = dead_letters.page(client, wanted, limit=dead_letters.MOST)
    groups: dict[str, int] = {}
    for letter in letters:
        groups[letter.kind] = groups.get(letter.kind, 0) + 1
    values = {
        "who": actor.who,
        "via": actor.via,
        "reason": reason[:200],
        "filter": json.dumps(asdict(wanted)),
        "oldest": letters[-1].at if letters else None,
        "newest": letters[0].at if letters else None,
        "groups": json.dumps(groups),
    }
    with db.transaction() as connection:
        row = connection.execute(_FREEZE, values).fetchone()
        assert row is not None
        # The oldest is settled first.
        connection.execute(_LETTERS, {"set": row["set_id"], "letters": [each.id for each in reversed(letters)]})
    return get(db, row["set_id"])


def order(db: database.Database, actor: Actor, set_id: int, what: Order) -> FrozenSet:
    """Let a set be retried or discarded, once. Raises InvalidRequest if there is none, or it was ordered before."""
    action = Action(name=f"dlq {what}", subject=f"dead letter set {set_id}")
    with audit.failures(db, actor, action):
        frozen = get(db, set_id)
        with db.transaction() as connection:
            if not connection.execute(_ORDER, {"set": set_id, "order": what}).rowcount:
                raise errors.InvalidRequest(f"set {set_id} was ordered already: {get(db, set_id).action}")
            detail = {"letters": frozen.total, "reason": frozen.reason}
            audit.record(connection, actor, replace(action, detail=detail), Outcome.ASKED)
    return get(db, set_id)


def get(db: database.Database, set_id: int) -> FrozenSet:
    """Return a set. Raises InvalidRequest if there is none."""
    with db.connection() as connection:
        row = connection.execute(_GET, [set_id]).fetchone()
    if row is None:
        raise errors.InvalidRequest(f"no set {set_id} of dead letters")
    return FrozenSet(**row)


def recent(db: database.Database, limit: int = 20) -> list[FrozenSet]:
    """Return the last sets, the newest first. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        return [FrozenSet(**row) for row in connection.execute(_RECENT, [limit]).fetchall()]


def work(db: database.Database, client: redis.Redis) -> None:
    """Go on with the oldest set that is ordered, for a bounded time. Raises QueueUnavailable, DatabaseUnavailable.

    A letter is written as begun before Redis is asked. One that was begun and is not there any more was done.
    """
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        with db.connection() as connection:
            ordered = connection.execute(_OPEN).fetchone()
            if ordered is None:
                return
            values = {"set": ordered["set_id"], "batch": _BATCH}
            begun = connection.execute(_BEGIN, values).fetchall()
        if not begun:
            _end(db, ordered)
            continue
        stream = in_redis.DeadLetters(client, keys.NAMESPACE)
        try:
            states = [_settled(stream, ordered["action"], row) for row in sorted(begun, key=lambda row: row["number"])]
        except redis.RedisError as exc:
            raise errors.QueueUnavailable(redaction.redact(f"Redis: {type(exc).__name__}: {exc}")) from exc
        numbers = sorted(row["number"] for row in begun)
        with db.connection() as connection:
            connection.execute(_SETTLE, {"set": ordered["set_id"], "numbers": numbers, "states": states})


def _settled(stream: in_redis.DeadLetters, order: Order, row: database.Row) -> str:
    if order == "discard":
        is_done = stream.discard(row["letter_id"])
    else:
        try:
            is_done = dead_letters.retry_one(stream, row["letter_id"]) is not Retried.GONE
        except errors.InvalidRequest:
            return "refused"
    return "done" if is_done or row["was_begun"] else "gone"


def _end(db: database.Database, ordered: database.Row) -> None:
    frozen = get(db, ordered["set_id"])
    actor = Actor(who=ordered["who"], via=ordered["via"])
    detail = {"done": frozen.done, "gone": frozen.gone, "refused": frozen.refused}
    action = Action(name=f"dlq {ordered['action']}", subject=f"dead letter set {frozen.set_id}", detail=detail)
    with db.transaction() as connection:
        if connection.execute(_END, {"set": frozen.set_id}).rowcount:
            audit.record(connection, actor, action)
