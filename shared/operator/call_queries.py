"""What the operator asks of calls: which there are, which one is meant, and what happened to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared import errors
from shared.call import faults
from shared.call.states import Fault, Outcome, State
from shared.storage import database

#: The largest page of a list.
LARGEST_PAGE = 10_000
#: A call has fewer rows of the timeline than this.
_MOST_ROWS = 5_000
#: A page is filled up by so many statements at most, where an earlier release has ended many calls. Those after the
#: first read so many calls.
_MOST_READS = 4
_LATER_READ = 300
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)
_OUTCOMES = frozenset(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which calls are listed: those that have all that is named."""

    #: True: it has not ended; False: it has.
    is_live: bool | None = None
    #: The caller's or the called number, in full.
    number: str | None = None
    #: The channel that the call came with, or one that has taken its place.
    channel: str | None = None
    workflow_run_id: int | None = None
    organization_id: int | None = None
    connection_id: int | None = None
    state: State | None = None
    outcome: Outcome | None = None
    fault: Fault | None = None
    #: When it was received: from the first moment on, and before the second one.
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cursor:
    """Where a page ends: the next one begins with the call received before this one."""

    received_at: datetime
    call_id: UUID

    def __str__(self) -> str:
        return f"{(self.received_at - _EPOCH) // _MICROSECOND}-{self.call_id.hex}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that `str` has written. Raises PermanentError for any other text."""
        match = re.fullmatch(r"([0-9]{1,17})-([0-9a-f]{32})", text)
        if match is None:
            raise errors.PermanentError(f"no cursor {text[:100]!r}: a page that has a next one names it")
        return cls(received_at=_EPOCH + int(match[1]) * _MICROSECOND, call_id=UUID(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCall:
    """A call as it was when it was read. All times are Postgres's."""

    call_id: UUID
    organization_id: int
    connection_id: int
    direction: str
    #: Of a newer release it may be a word that this one does not know; `outcome`, too.
    state: str
    outcome: str | None
    reason: str | None
    #: Whose fault the outcome is, as `Fault` names it; None for a call that ended well.
    fault: str | None
    caller_number: str
    called_number: str
    workflow_run_id: int | None
    received_at: datetime
    connected_at: datetime | None
    ending_at: datetime | None
    ended_at: datetime | None
    read_at: datetime

    @property
    def cursor(self) -> Cursor:
        """Where the call stands in a list."""
        return Cursor(received_at=self.received_at, call_id=self.call_id)

    @property
    def setup_seconds(self) -> float | None:
        """Seconds from received to connected; None for a call that was never connected."""
        return (self.connected_at - self.received_at).total_seconds() if self.connected_at is not None else None

    @property
    def talk_seconds(self) -> float | None:
        """Seconds from connected to its end, or until it was read; None for a call that was never connected."""
        if self.connected_at is None:
            return None
        return ((self.ending_at or self.read_at) - self.connected_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Calls, newest first. There may be fewer than asked for, though a next page follows."""

    calls: tuple[ListedCall, ...]
    #: To be given as `after` for the next page; None: there is none.
    next: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to create media leg and bridge."""

    attempt: int
    media_id: str
    bridge_id: str
    begun_at: datetime
    #: `created`, `refused` or `unknown`; None: not known yet.
    outcome: str | None
    outcome_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineRow:
    """What happened to a call: a row of its timeline."""

    at: datetime
    #: `transition`, `fact`, `request`, `refusal`, `dead-letter` or `note`.
    kind: str
    name: str
    state_from: str | None
    state_to: str | None
    attempt: int | None
    took_ms: float | None
    who: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHistory:
    """One call, and all that is known of it."""

    call: ListedCall
    workflow_id: int | None
    connection_version: int
    channel_id: str
    #: The channels that have taken its place, one after the other.
    replacements: tuple[str, ...]
    hangup_cause: int | None
    dial_status: str | None
    #: What the technology of the leg that ended told: the code of SIP, or of a websocket (from Asterisk 22.7 on).
    tech_cause: int | None
    #: Asterisk's timestamp of the StasisStart; None: none was received, or a resync has found the leg.
    entered_stamp: str | None
    #: It has ended without proof that nothing is left of it.
    unverified: bool
    attempts: tuple[Attempt, ...]
    timeline: tuple[TimelineRow, ...]

    @property
    def dead_letters(self) -> tuple[TimelineRow, ...]:
        """The messages about the call that failed for good."""
        return tuple(row for row in self.timeline if row.kind == "dead-letter")


_LISTED = """call_id, organization_id, connection_id, direction, state, outcome, reason, fault, caller_number,
    called_number, workflow_run_id, received_at, connected_at, ending_at, ended_at, clock_timestamp() AS read_at"""

_OF_IDS = f"SELECT {_LISTED} FROM ari.calls WHERE call_id = ANY(%s)"  # noqa: S608 - built from constants

_OF_CHANNEL = "SELECT * FROM ari.calls WHERE channel_id = %(channel)s"
_REPLACED_BY = "SELECT * FROM ari.calls WHERE replacements @> ARRAY[%(channel)s]"


def list_calls(
    db: database.Database, wanted: Filter = Filter(), *, after: Cursor | None = None, limit: int = 30
) -> Page:
    """Return the newest calls that are wanted, or those that follow a page.

    Args:
        after: `next` of the page before.
        limit: The most calls of the page, `LARGEST_PAGE` at most.
    """
    limit = min(limit, LARGEST_PAGE)
    found: list[ListedCall] = []
    size = limit
    for _ in range(_MOST_READS):
        text, values = statement(wanted, after=after, limit=size + 1)
        with db.connection() as connection:
            rows = connection.execute(text, values).fetchall()
        read = [_listed(row) for row in rows[:size]]
        after = read[-1].cursor if len(rows) > size else None
        # Those without a class are read along: many of them have another one.
        found += (call for call in read if wanted.fault in (None, call.fault))
        if after is None or len(found) >= limit:
            break
        size = max(limit, _LATER_READ)
    if len(found) > limit:
        after = found[limit - 1].cursor
    return Page(calls=tuple(found[:limit]), next=after)


def of_ids(db: database.Database, call_ids: Collection[UUID]) -> list[ListedCall]:
    """Return the calls of these ids, as far as there are any."""
    with db.connection() as connection:
        rows = connection.execute(_OF_IDS, [list(call_ids)]).fetchall()
    return [_listed(row) for row in rows]


def now(db: database.Database) -> datetime:
    """Return Postgres's clock."""
    with db.connection() as connection:
        row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    found: datetime = row["now"]
    return found


def _listed(row: database.Row) -> ListedCall:
    """Return a call from its row. The fault that an earlier release has not written is told from the reason."""
    if row["fault"] is None and row["outcome"] in _OUTCOMES:
        row["fault"] = faults.fault_of(Outcome(row["outcome"]), row["reason"])
    return ListedCall(**row)


def statement(wanted: Filter, *, after: Cursor | None, limit: int) -> tuple[str, dict[str, object]]:
    """Return the statement that lists calls, and its values.

    Words of ours stand in the text: so Postgres plans for the word, though the statement is prepared.
    """
    values: dict[str, object] = {
        "number": wanted.number,
        "channel": wanted.channel,
        "run": wanted.workflow_run_id,
        "organization": wanted.organization_id,
        "connection": wanted.connection_id,
        "since": wanted.since,
        "until": wanted.until,
        "limit": limit,
    }
    conditions = [text for name, text in _CONDITIONS.items() if values[name] is not None]
    conditions += [
        f"{name} = '{word}'" for name, word in (("state", wanted.state), ("outcome", wanted.outcome)) if word
    ]
    if after is not None:
        conditions.append("(received_at, call_id) < (%(after_at)s, %(after_id)s)")
        values |= {"after_at": after.received_at, "after_id": after.call_id}
    return _newest_of([[*conditions, *branch] for branch in _branches(wanted)]), values


_CONDITIONS = {
    "channel": f"call_id = ANY (ARRAY(SELECT call_id FROM ({_OF_CHANNEL} UNION ALL {_REPLACED_BY}) AS named))",  # noqa: S608 - built from constants
    "run": "workflow_run_id = %(run)s",
    "organization": "organization_id = %(organization)s",
    # There is no index by connection: that of its organization has few calls of others.
    "connection": "connection_id = %(connection)s AND organization_id ="
    " (SELECT organization_id FROM ari.connections WHERE connection_id = %(connection)s)",
    "since": "received_at >= %(since)s",
    "until": "received_at < %(until)s",
}


def _branches(wanted: Filter) -> list[list[str]]:
    """Return the conditions of each part of the list: what one index does not find together is looked up apart.

    The indexes by number, outcome and fault have the ended calls alone. Those that have not ended are few.
    """
    is_live = wanted.is_live
    if wanted.state is not None:
        is_live = wanted.state is not State.ENDED if is_live is None else is_live
    parts: list[list[str]] = [[]]
    if is_live is not None:
        parts = [[_IS_LIVE[is_live]]]
    elif wanted.number is not None or wanted.outcome is not None or wanted.fault is not None:
        parts = [[_IS_LIVE[True]], [_IS_LIVE[False]]]
    if wanted.number is not None:
        parts = [[*part, number] for part in parts for number in _NUMBERS]
    if wanted.fault is not None:
        # Without one: of an earlier release.
        of_fault = (f"coalesce(fault, '') = '{wanted.fault}'", "coalesce(fault, '') = ''")
        parts = [[*part, "outcome <> 'completed'", fault] for part in parts for fault in of_fault]
    return parts


_IS_LIVE = {True: "state <> 'ended'", False: "state = 'ended'"}
_NUMBERS = ("caller_number = %(number)s", "called_number = %(number)s AND caller_number <> %(number)s")


def _newest_of(branches: list[list[str]]) -> str:
    """Return the statement for the newest calls of all branches, each of which is read to the limit at most."""
    newest = "ORDER BY received_at DESC, call_id DESC LIMIT %(limit)s"
    parts = [
        f"(SELECT {_LISTED} FROM ari.calls WHERE {' AND '.join(conditions) or 'true'} {newest})"  # noqa: S608
        for conditions in branches
    ]
    return parts[0] if len(parts) == 1 else f"{' UNION ALL '.join(parts)} {newest}"


#: A call is named in full by its run, a channel of its caller or its id, or by the beginning of its id. Of several
#: calls of a channel the newest is meant.
_OF_ORGANIZATION = "(%(organization)s::integer IS NULL OR organization_id = %(organization)s)"
FIND = f"""
SELECT *, coalesce(workflow_run_id = %(run)s OR call_id = %(first)s AND call_id = %(last)s, false) AS whole FROM (
    SELECT * FROM ari.calls WHERE call_id BETWEEN %(first)s AND %(last)s
    UNION SELECT * FROM ari.calls WHERE workflow_run_id = %(run)s
) AS named
WHERE {_OF_ORGANIZATION} ORDER BY whole DESC, received_at DESC LIMIT 2
"""  # noqa: S608 - built from constants
FIND_CHANNEL = f"""
SELECT DISTINCT ON (connection_id) * FROM ({_OF_CHANNEL}) AS of_channel
WHERE {_OF_ORGANIZATION} ORDER BY connection_id, received_at DESC LIMIT 2
"""  # noqa: S608 - built from constants
_FIND_REPLACEMENT = f"{_REPLACED_BY} AND {_OF_ORGANIZATION} ORDER BY received_at DESC LIMIT 1"

_ID_BEGINS = re.compile(r"[0-9a-f]{4,32}")
_LARGEST_RUN = 2**31 - 1


def find(db: database.Database, name: str, organization: int | None = None) -> UUID:
    """Return the call that is meant, of those named in full if there are any.

    A channel's id may be any text that the Asterisk's own programs choose: digits as of a run, or of a call id.

    Args:
        name: A call id, or its first 4 or more digits; a run id, or a channel's id.
        organization: Whose calls alone are looked at; None for those of all.

    Raises:
        PermanentError: No call is named so, or several are.
    """
    name = name.strip()
    values = named(name, organization)
    with db.connection() as connection:
        rows = connection.execute(FIND, values).fetchall()
        in_full = [row for row in rows if row["whole"]]
        for query in (FIND_CHANNEL, _FIND_REPLACEMENT):
            in_full += connection.execute(query, values).fetchall()
    meant = {row["call_id"] for row in in_full or rows}
    if not meant:
        raise errors.PermanentError(f"no call {name!r}: arictl calls lists them")
    if len(meant) > 1:
        raise errors.PermanentError(f"{name!r} is ambiguous: give the call id, or more digits of it")
    call_id = meant.pop()
    assert isinstance(call_id, UUID)
    return call_id


def named(name: str, organization: int | None = None) -> dict[str, object]:
    """Return each way to read a name, None where it cannot be read so: the values of `FIND` and `FIND_CHANNEL`."""
    begins = name.lower().replace("-", "")
    first = last = run = None
    if _ID_BEGINS.fullmatch(begins):
        first, last = UUID(begins.ljust(32, "0")), UUID(begins.ljust(32, "f"))
    if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= _LARGEST_RUN:
        run = int(name)
    return {"channel": name, "first": first, "last": last, "run": run, "organization": organization}


_ATTEMPTS = """
SELECT attempt, media_id, bridge_id, begun_at, outcome, outcome_at FROM ari.attempts WHERE call_id = %s ORDER BY attempt
"""
_TIMELINE = """
SELECT at, kind, name, state_from, state_to, attempt, took_ms, who, detail FROM ari.timeline
WHERE call_id = %s ORDER BY at, id LIMIT %s
"""
_OF_HISTORY = (
    "workflow_id", "connection_version", "channel_id", "hangup_cause", "dial_status", "tech_cause", "entered_stamp",
    "unverified",
)  # fmt: skip
_COLUMNS = f"{_LISTED}, replacements, {', '.join(_OF_HISTORY)}"
_CALL = f"SELECT {_COLUMNS} FROM ari.calls WHERE call_id = %s"  # noqa: S608 - built from constants
_NEWEST = f"""
SELECT {_COLUMNS} FROM ari.calls WHERE received_at >= now() - %s * interval '1 second'
ORDER BY received_at DESC LIMIT %s
"""  # noqa: S608 - built from constants
#: Each call's rows by an index, of a call that has very many the first ones.
_TIMELINES = """
SELECT t.* FROM unnest(%s::uuid[]) AS wanted (call_id) CROSS JOIN LATERAL (
    SELECT call_id, at, kind, name, state_from, state_to, attempt, took_ms, who, detail FROM ari.timeline
    WHERE call_id = wanted.call_id ORDER BY id LIMIT 500
) AS t ORDER BY t.at
"""


def get(db: database.Database, call_id: UUID) -> CallHistory:
    """Return a call with its timeline. Raises PermanentError if there is none of this id."""
    with db.connection() as connection:
        call = connection.execute(_CALL, [call_id]).fetchone()
        if call is None:
            raise errors.PermanentError(f"no call {call_id}: arictl calls lists them")
        attempts = connection.execute(_ATTEMPTS, [call_id]).fetchall()
        timeline = connection.execute(_TIMELINE, [call_id, _MOST_ROWS]).fetchall()
    return _history(call, [Attempt(**row) for row in attempts], [TimelineRow(**row) for row in timeline])


def newest(db: database.Database, within: timedelta, *, limit: int) -> list[CallHistory]:
    """Return the newest calls received within a time, with their timelines and without their attempts."""
    with db.connection() as connection:
        calls = connection.execute(_NEWEST, [within.total_seconds(), limit]).fetchall()
        rows = connection.execute(_TIMELINES, [[call["call_id"] for call in calls]]).fetchall()
    timelines: dict[UUID, list[TimelineRow]] = {call["call_id"]: [] for call in calls}
    for row in rows:
        timelines[row.pop("call_id")].append(TimelineRow(**row))
    return [_history(call, (), timelines[call["call_id"]]) for call in calls]


def _history(row: database.Row, attempts: Sequence[Attempt], timeline: Sequence[TimelineRow]) -> CallHistory:
    more = {name: row.pop(name) for name in _OF_HISTORY}
    replacements = tuple(row.pop("replacements") or ())
    return CallHistory(
        call=_listed(row), replacements=replacements, attempts=tuple(attempts), timeline=tuple(timeline), **more
    )
