"""The audit: who has done what, by which tool, and what came of it. Rows are only added: Postgres sees to it.

What is done in Postgres is recorded by the transaction that does it. What is done elsewhere is recorded before it is
done, as `asked`, and what came of it after. What is refused is recorded as `failed`, with the reason.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from shared import errors, redaction
from shared.storage import database

#: Longer text of a subject or a detail is cut.
_LENGTH = 500
#: Most rows of one page.
PAGE = 1000

#: A server that gave no answer may have done what it was asked for.
_NO_ANSWER = (errors.DatabaseAway, errors.QueueUnavailable, errors.PlatformRedisAway)
#: The end of its reason.
MAY_BE_DONE = "it may have been done"

_ROW = """
INSERT INTO ari.audit (who, via, action, subject, organization_id, detail, outcome)
SELECT %(who)s, %(via)s, %(action)s, %(subject)s, %(organization)s::integer, %(detail)s::jsonb, %(outcome)s
"""
#: At the end of a transaction that has written something: only such a one has an id.
_ROW_OF_WRITES = f"{_ROW} WHERE pg_current_xact_id_if_assigned() IS NOT NULL"

#: The newest first, each page by an index: that of one of the conditions, or the primary key.
_PAGE = """
SELECT id, at, who, via, action, subject, organization_id, detail, outcome FROM ari.audit
WHERE id < %(before)s {conditions} ORDER BY id DESC LIMIT %(limit)s
"""
_CONDITIONS = {
    "organization": "AND organization_id = %(organization)s",
    "subject": "AND subject = %(subject)s",
    "action": "AND action = %(action)s",
    "who": "AND who = %(who)s",
    "outcome": "AND outcome = %(outcome)s",
}


class Outcome(StrEnum):
    """What came of an action."""

    #: It is about to be done, outside of Postgres.
    ASKED = "asked"
    DONE = "done"
    #: There was nothing to do: it had been done before.
    NOTHING = "nothing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts."""

    #: As the tool knows them: a login of the system, a user of the console.
    who: str
    #: The tool: `arictl` or `console`.
    via: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What is done, and to what."""

    #: In the words of arictl: `hangup`, `quota set`.
    name: str
    #: What it is done to: `call 0f3a…`, `connection 7`, `organization 3`.
    subject: str
    organization_id: int | None = None
    #: Its parameters, as JSON values. Credentials are removed, and numbers in texts masked.
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the audit."""

    id: int
    #: By Postgres's clock.
    at: datetime
    who: str
    #: `arictl` or `console`.
    via: str
    #: Such as `quota set`.
    action: str
    #: Such as `connection 7`.
    subject: str
    organization_id: int | None
    #: The parameters, and the reason of what has failed.
    detail: dict[str, object]
    #: `asked` (before it is done outside of Postgres), `done`, `nothing` (it was so already) or `failed` (refused, or
    #: an error). Where a server gave no answer, the reason says that it may have been done.
    outcome: str


def record(
    connection: database.Connection, actor: Actor, action: Action, outcome: Outcome = Outcome.DONE, reason: str = ""
) -> None:
    """Add a row, in the connection's transaction if it is in one."""
    connection.execute(_ROW, _values(actor, action, outcome, reason))


@contextlib.contextmanager
def recorded(db: database.Database, actor: Actor, action: Action) -> Iterator[database.Database]:
    """Record an action in Postgres: each transaction of the database that is returned adds a row if it writes.

    An error of ours adds one as well, if Postgres takes it.
    """
    with failures(db, actor, action):
        yield db.ending_with(_ROW_OF_WRITES, _values(actor, action, Outcome.DONE))


@contextlib.contextmanager
def failures(db: database.Database, actor: Actor, action: Action) -> Iterator[None]:
    """Record an action that an error of ours ends, with its reason, if Postgres takes it; nothing of any other."""
    try:
        yield
    except errors.PipelineError as exc:
        _record_failure(db, actor, action, exc)
        raise


@contextlib.contextmanager
def announced(db: database.Database, actor: Actor, action: Action) -> Iterator[Announced]:
    """Record an action outside of Postgres, before and after it is done. Without the first row it is not done."""
    with db.connection() as connection:
        record(connection, actor, action, Outcome.ASKED)
    result = Announced()
    with failures(db, actor, action):
        yield result
    # It is done: that Postgres has gone away meanwhile undoes nothing.
    with contextlib.suppress(errors.PipelineError), db.connection() as connection:
        told = replace(action, detail={**action.detail, **result.detail})
        record(connection, actor, told, result.outcome)


class Announced:
    """What came of an action: done, unless told otherwise."""

    outcome = Outcome.DONE
    #: What is known of it besides, once it is done.
    detail: Mapping[str, object] = MappingProxyType({})


def page(
    db: database.Database,
    *,
    before: int | None = None,
    limit: int = 50,
    organization: int | None = None,
    subject: str | None = None,
    action: str | None = None,
    who: str | None = None,
    outcome: str | None = None,
) -> list[Row]:
    """Return rows, the newest first.

    Args:
        before: The id of the last row of the page before; None for the first page.
        limit: At most `PAGE`.
    """
    wanted = {"organization": organization, "subject": subject, "action": action, "who": who, "outcome": outcome}
    given = {name: value for name, value in wanted.items() if value is not None}
    query = _PAGE.format(conditions=" ".join(_CONDITIONS[name] for name in given))
    values = given | {"before": 2**63 - 1 if before is None else before, "limit": min(limit, PAGE)}
    with db.connection() as connection:
        rows = connection.execute(query, values).fetchall()
    return [Row(**row) for row in rows]


def refuse(db: database.Database, actor: Actor, action: Action, reason: str) -> None:
    """Record an action that was not begun, and why, if Postgres takes it."""
    with contextlib.suppress(errors.PipelineError), db.connection() as connection:
        record(connection, actor, action, Outcome.FAILED, reason)


def _record_failure(db: database.Database, actor: Actor, action: Action, exc: errors.PipelineError) -> None:
    refuse(db, actor, action, f"{exc}: {MAY_BE_DONE}" if isinstance(exc, _NO_ANSWER) else str(exc))


def _values(actor: Actor, action: Action, outcome: Outcome, reason: str = "") -> dict[str, object]:
    detail = dict(action.detail) | ({"reason": reason} if reason else {})
    return {
        "who": _text(actor.who),
        "via": _text(actor.via),
        "action": _text(action.name),
        "subject": _text(action.subject),
        "organization": action.organization_id,
        "detail": json.dumps({name: _detail(value) for name, value in detail.items()}),
        "outcome": str(outcome),
    }


def _detail(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_detail(each) for each in value[:100]]
    return redaction.mask_numbers(_text(str(value)))


def _text(text: str) -> str:
    """Return the beginning of a text, without credentials and without what Postgres cannot store."""
    shown = redaction.redact(text[: 10 * _LENGTH])[:_LENGTH]
    return shown.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
