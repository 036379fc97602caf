"""Dead letters: messages that have failed for good. Which there are, by which errors, and what is done with them.

They are in Redis, the newest `DEAD_LETTERS` of the last seven days. Each left a row in the timeline, too, which stays.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import redis

from shared import errors, keys, messages, redaction
from shared.broker import letter_store
from shared.broker.letter_store import DeadLetter, Retried
from shared.operator import audit
from shared.operator.audit import Action, Actor, Outcome
from shared.storage import database

#: So many of the newest are looked at, at most.
MOST = 10_000
_ERROR = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
#: What differs between two failures of one kind: ids, numbers, addresses of objects.
_VARYING = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\b[0-9a-f]{16,}\b|\d+")
_ERROR_LENGTH = 200
#: The console refuses them in a link or a form, and Postgres stores no NUL. A tab may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
#: What the broker adds to a message that it tries again.
_OF_RETRIES = ("tries", "failed_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter. Texts have no credentials; numbers are masked."""

    id: str
    at: datetime
    #: As a link may carry it.
    queue: str
    #: What the message was for; empty if it cannot be read.
    actor: str
    #: The connection's id, or `organization-3`.
    group: str
    #: The call of a command; None of an event, or of a message that cannot be read.
    call_id: str | None
    #: The error in one line.
    error: str
    #: Letters of one kind of failure have the same.
    kind: str
    #: Why its message cannot be retried; empty if it can.
    unretriable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLetter:
    """A dead letter with what is in it."""

    letter: Letter
    #: The message; None if it cannot be read.
    message: dict[str, Any] | None
    #: Its bytes as text, where it cannot.
    body: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Letters of one kind of failure."""

    kind: str
    queue: str
    count: int
    oldest: datetime
    newest: datetime
    #: The id of the newest.
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant: those that have all that is named."""

    #: In the error, in whatever case.
    error: str | None = None
    queue: str | None = None
    #: A connection's id, or `organization-3`.
    group: str | None = None
    #: No letter that came later than this one.
    until: str | None = None

    def matches(self, letter: Letter) -> bool:
        """Return whether a letter is meant, its moment aside."""
        return (
            (self.error is None or self.error.lower() in letter.error.lower() or self.error == letter.kind)
            and self.queue in (None, letter.queue)
            and self.group in (None, letter.group)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How many dead letters there are, and of which kinds."""

    total: int
    #: Dropped for later ones within the last seven days.
    dropped: int
    #: False if there are more than were looked at.
    is_complete: bool
    groups: tuple[Group, ...]


def overview(client: redis.Redis, wanted: Filter) -> Overview:
    """Return the groups, those with most letters first. Raises QueueUnavailable."""
    groups: dict[tuple[str, str], Group] = {}
    with _reaching():
        letters = _letters(client)
        total, dropped = letters.count(), letters.dropped()
        for found in _matching(letters, wanted):
            of = (found.kind, found.queue)
            known = groups.get(of)
            groups[of] = Group(
                kind=found.kind,
                queue=found.queue,
                count=1 if known is None else known.count + 1,
                oldest=found.at,
                newest=found.at if known is None else known.newest,
                example=found.id if known is None else known.example,
            )
    in_order = sorted(groups.values(), key=lambda group: (-group.count, group.kind))
    return Overview(total=total, dropped=dropped, is_complete=total <= MOST, groups=tuple(in_order))


def page(client: redis.Redis, wanted: Filter, *, limit: int, before: str | None = None) -> list[Letter]:
    """Return letters, the newest first.

    Args:
        before: The id of the last letter of the page before; None for the first page.

    Raises:
        InvalidRequest: `before`, or the filter's `until`, is no letter's id.
        QueueUnavailable: Redis is away.
    """
    if before is not None and not letter_store.is_id(before):
        raise errors.InvalidRequest(f"{before[:50]!r} is no letter's id: arictl dlq list names them")
    if wanted.until is not None and not letter_store.is_id(wanted.until):
        raise errors.InvalidRequest(f"{wanted.until[:50]!r} is no letter's id")
    found: list[Letter] = []
    with _reaching():
        for letter in _matching(_letters(client), wanted, before):
            if len(found) >= limit:
                break
            found.append(letter)
    return found


def get(client: redis.Redis, name: str, *, unmasked: bool = False) -> OpenedLetter:
    """Return one letter. Raises InvalidRequest if there is none, QueueUnavailable."""
    with _reaching():
        found = _letters(client).get(name)
    if found is None:
        raise errors.InvalidRequest(f"no dead letter {name[:50]!r}: it was retried, discarded or dropped since")
    message = _message(found.body)
    text = found.body.decode(errors="backslashreplace") if message is None else ""
    return OpenedLetter(
        letter=letter(found),
        message=_cleaned(message, masks=not unmasked),
        body=_clean_text(text, masks=not unmasked),
        traceback=_clean_text(found.reason, masks=not unmasked),
    )


def retry(db: database.Database, client: redis.Redis, actor: Actor, name: str) -> Retried:
    """Enqueue a letter's message again, once, and delete the letter. It has all its tries again.

    Raises:
        InvalidRequest: Its message cannot be retried; the letter stays.
        QueueUnavailable, DatabaseUnavailable: Nothing was done, or it is not known whether.
    """
    with audit.announced(db, actor, Action(name="dlq retry", subject=f"dead letter {name}")) as result, _reaching():
        done = retry_one(_letters(client), name)
        if done is Retried.GONE:
            result.outcome = Outcome.NOTHING
    return done


def discard(db: database.Database, client: redis.Redis, actor: Actor, name: str) -> bool:
    """Delete a letter; return False if there was none. Raises QueueUnavailable, DatabaseUnavailable."""
    with audit.announced(db, actor, Action(name="dlq discard", subject=f"dead letter {name}")) as result, _reaching():
        done = _letters(client).discard(name)
        if not done:
            result.outcome = Outcome.NOTHING
    return done


def retry_one(letters: letter_store.DeadLetters, name: str) -> Retried:
    """Retry a letter without recording it. Raises InvalidRequest, redis.RedisError."""
    found = letters.get(name)
    if found is None:
        return Retried.GONE
    reason = _unretriable(found, _message(found.body))
    if reason:
        raise errors.InvalidRequest(f"dead letter {name} cannot be retried: {reason}")
    message = json.loads(found.body)
    message["options"] = {key: value for key, value in message["options"].items() if key not in _OF_RETRIES}
    return letters.retry(found, json.dumps(message, separators=(",", ":")).encode())


def letter(found: DeadLetter) -> Letter:
    """Return what is shown of a letter in a list."""
    message = _message(found.body)
    body: Any = message["kwargs"] if message is not None else {}
    error = _clean_text(_error(found.reason), masks=True)
    return Letter(
        id=found.id,
        at=datetime.fromtimestamp(found.at_ms / 1000, UTC),
        queue=_linkable(found.queue),
        actor=str(message["actor_name"]) if message is not None else "",
        group=found.message_key.rpartition("/")[0],
        call_id=_call_id(body.get("call_id")),
        error=error,
        kind=_VARYING.sub("…", error),
        unretriable=_unretriable(found, message),
    )


def _call_id(given: Any) -> str | None:
    """Return a call's id. What a message of others has in its place names no call, and may be any text."""
    try:
        return str(UUID(str(given)))
    except ValueError:
        return None


def _letters(client: redis.Redis) -> letter_store.DeadLetters:
    return letter_store.DeadLetters(client, keys.NAMESPACE)


def _matching(letters: letter_store.DeadLetters, wanted: Filter, before: str | None = None) -> Iterator[Letter]:
    for number, found in enumerate(letters.newest_first(before=before)):
        if number >= MOST:
            return
        if wanted.until is not None and _moment(found.id) > _moment(wanted.until):
            continue
        read = letter(found)
        if wanted.matches(read):
            yield read


def _cleaned(value: Any, key: str = "", *, masks: bool) -> Any:
    """Return a JSON value without credentials, and if it `masks` them without numbers: under their keys, and in text.

    Each text by itself: the JSON of all of them would be none any more where a credential ends at an escaped quote.
    """
    if isinstance(value, dict):
        return {_clean_text(name, masks=masks): _cleaned(each, name, masks=masks) for name, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each, key, masks=masks) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if redaction.SECRET_KEY.fullmatch(key):
        return redaction.REDACTED
    # A smaller whole number is none of a telephone.
    is_text = isinstance(value, str)
    if masks and redaction.NUMBER_KEY.fullmatch(key) and (is_text or value >= 1_000_000):
        return redaction.mask_number(redaction.redact(str(value)))
    return _clean_text(value, masks=masks) if is_text else value


def _clean_text(text: str, *, masks: bool) -> str:
    clean = redaction.redact(text)
    return redaction.mask_numbers(clean) if masks else clean


def _moment(name: str) -> tuple[int, int]:
    milliseconds, _, number = name.partition("-")
    return int(milliseconds), int(number)


def _message(body: bytes) -> dict[str, Any] | None:
    """Return a message of ours; None for what is none, or for the beginning of one."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("kwargs"), dict):
        return None
    return message if isinstance(message.get("options"), dict) and "actor_name" in message else None


def _unretriable(found: DeadLetter, message: dict[str, Any] | None) -> str:
    if message is None:
        return "only the beginning of its message was kept (DEAD_LETTER_BYTES), or it was none of ours"
    if found.queue not in messages.QUEUES:
        return f"there is no queue {found.queue[:50]!r} in this release"
    return ""


def _error(reason: str) -> str:
    """Return the error in one line: the first one, or the last one of a traceback that an earlier release kept."""
    lines = [line for line in reason.splitlines() if line.strip()] or ["unknown"]
    if lines[0].startswith("Traceback"):
        named = [line for line in lines if _ERROR.fullmatch(line)]
        lines = named[-1:] or ["unknown: only the beginning of its traceback was kept"]
    return _linkable(lines[0])


def _linkable(text: str) -> str:
    """Return the beginning of a text as a link to what has it may carry it, and come back the same."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.strip()[:_ERROR_LENGTH].strip())


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as exc:
        raise errors.QueueUnavailable(redaction.redact(f"Redis: {type(exc).__name__}: {exc}")) from exc
