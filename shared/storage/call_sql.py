"""The statements of the calls' store. `postgres_calls.py` runs them."""

from __future__ import annotations

import functools
from dataclasses import fields

from shared.call import states
from shared.call.call_requests import LONGEST_RING_SECONDS
from shared.call.calls import Call
from shared.storage import app_instances, owners

_FIXED = frozenset({
    "call_id", "connection_id", "connection_version", "organization_id", "entry", "direction", "received_at",
    "lock_version", "args", "id_prefix", "request_id", "dial_endpoint", "ring_seconds",
})  # fmt: skip
COLUMNS = [field.name for field in fields(Call)]
#: The columns that a save may change.
CHANGEABLE = [name for name in COLUMNS if name not in _FIXED]
_SELECT = ", ".join(COLUMNS)
_VALUES = ", ".join(f"%({name})s" for name in COLUMNS)

#: Calls as they are, and the time.
CALLS = f"SELECT {_SELECT}, clock_timestamp() AS now FROM ari.calls"  # noqa: S608 - built from constants
LOCK = f"SELECT {_SELECT} FROM ari.calls WHERE call_id = %s FOR UPDATE"  # noqa: S608 - built from constants
LOAD_ALL = f"{CALLS} WHERE call_id = ANY(%s)"
_OF_APP = f"connection_id IN ({app_instances.SHARING})"
LAST_ENTRY = f"""{CALLS}
WHERE {_OF_APP} AND channel_id = %s AND channel_created = %s ORDER BY entry DESC, received_at DESC LIMIT 1"""
ORIGINATED = f"""{CALLS}
WHERE {_OF_APP} AND channel_id = %s AND request_id IS NOT NULL ORDER BY received_at DESC LIMIT 1"""
#: The newest of each channel.
ORIGINATED_ALL = f"""
SELECT DISTINCT ON (channel_id) {_SELECT}, clock_timestamp() AS now FROM ari.calls
WHERE {_OF_APP} AND channel_id = ANY(%s) AND request_id IS NOT NULL ORDER BY channel_id, received_at DESC
"""  # noqa: S608 - built from constants
#: Nothing else is looked up by the index of this column.
TRANSFERRED = f"{CALLS} WHERE {_OF_APP} AND destination_id = %s ORDER BY received_at DESC LIMIT 1"
#: By the channel that a call came with, whatever its creation time; else by one that has taken its place.
OF_CHANNEL = f"""{CALLS}
WHERE {_OF_APP} AND channel_id = %s ORDER BY received_at DESC LIMIT 1"""
REPLACED_BY = f"""{CALLS}
WHERE {_OF_APP} AND replacements @> ARRAY[%s] ORDER BY received_at DESC LIMIT 1"""
REQUESTED = f"""{CALLS}
WHERE request_id = %s AND connection_id IN (SELECT connection_id FROM ari.connections WHERE organization_id = %s)
ORDER BY received_at LIMIT 1"""  # noqa: S608 - built from constants

#: With now(), which does not change within a statement: the index is searched by it, not read from end to end.
OVERDUE = f"""{CALLS}
WHERE state <> 'ended' AND state = ANY(%s) AND deadline_at <= now()
  AND (claim_until IS NULL OR claim_until <= clock_timestamp()) ORDER BY deadline_at LIMIT %s"""

#: Claims that stand, of others than these workers. A state with a step has its deadline soon: so connected calls, of
#: which there are many, are not read.
CLAIMED_BY_OTHERS = f"""
SELECT {_SELECT}, clock_timestamp() AS now, claim_owner FROM ari.calls
WHERE state <> 'ended' AND deadline_at <= now() + interval '5 minutes' AND claim_until > clock_timestamp()
  AND {owners.process_in_sql("claim_owner")} <> ALL(%s) ORDER BY deadline_at LIMIT %s
"""  # noqa: S608 - built from constants

#: Deadlines and claims later than any can be: Postgres's clock was set back since. Only connected calls last for hours.
#: The owner of a claim may be alive: it keeps it for as long as any claim lasts.
RECALL_MISDATED = f"""
UPDATE ari.calls SET deadline_at = least(deadline_at, clock_timestamp() - interval '1 second'),
    -- NULL stays: least() leaves it out.
    claim_until = CASE WHEN claim_until IS NOT NULL THEN least(claim_until, clock_timestamp() + %(wait)s::interval) END
WHERE state NOT IN ('ended', 'connected')
  AND (deadline_at > clock_timestamp() + %(wait)s::interval
           + CASE state WHEN 'ringing' THEN interval '{LONGEST_RING_SECONDS} seconds' ELSE interval '0' END
       OR claim_until > clock_timestamp() + 2 * %(wait)s::interval)
"""  # noqa: S608 - built from constants

#: Of all connection versions of the organization in the same app instance.
OPEN_CALLS = f"""
SELECT {_SELECT}, clock_timestamp() AS now, coalesce(changed_at, state_since) AS changed,
       coalesce(claim_until > clock_timestamp(), false) AS claimed
FROM ari.calls WHERE state <> 'ended' AND (connection_id, connection_version) IN (
    SELECT o.connection_id, o.version FROM {app_instances.VERSIONS}
    WHERE v.connection_id = %(connection_id)s AND v.version = %(number)s)
"""  # noqa: S608 - built from constants

#: Of a transferred call the run is over while its parties talk.
CONNECTED_RUNS = """
SELECT workflow_run_id, call_id FROM ari.calls
WHERE state = 'connected' AND workflow_run_id IS NOT NULL AND destination_id IS NULL
"""

_TIMELINE_COLUMNS = "at, call_id, connection_id, kind, name, state_from, state_to, attempt, took_ms, who, detail"
_TIMELINE_ROWS = """
    SELECT coalesce(at, clock_timestamp()), call_id, connection_id, kind, name, state_from, state_to, attempt, took_ms,
           who, coalesce(detail, '')
    FROM jsonb_to_recordset(%(timeline)s::jsonb) AS row (
        at timestamptz, call_id uuid, connection_id integer, kind text, name text, state_from text, state_to text,
        attempt integer, took_ms real, who text, detail text)
"""
APPEND_TIMELINE = f"INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS}"
#: Of a call, unless it has a row of this name.
APPEND_ONCE = f"""{APPEND_TIMELINE}
WHERE NOT EXISTS (SELECT 1 FROM ari.timeline WHERE call_id = %(call)s AND name = %(name)s)
"""  # noqa: S608 - built from constants
#: Of the newest rows of a connection: it may have any number of older ones.
RECENT_NOTES = """
SELECT DISTINCT name, detail FROM (
    SELECT name, detail, kind, at FROM ari.timeline WHERE connection_id = %s AND call_id IS NULL
    ORDER BY id DESC LIMIT 1000
) AS newest WHERE kind = 'note' AND at > now() - %s::interval
"""

#: The first entry of a call's timeline.
ARRIVALS = {states.State.RECEIVED: "CallReceived", states.State.ORIGINATING: "CallRequested"}

#: Of 2^30, so that a release that counts has room to. 0 is a call as first written.
_NEW_VERSION = "lock_version = 1 + (random() * 1073741823)::integer"

CLAIM = f"""
UPDATE ari.calls SET claim_owner = %(owner)s, claim_step = %(step)s, {_NEW_VERSION},
    claim_until = clock_timestamp() + %(claim)s::interval
WHERE call_id = %(call_id)s AND state = %(state)s AND (claim_until IS NULL OR claim_until <= clock_timestamp())
RETURNING {_SELECT}, clock_timestamp() AS now
"""  # noqa: S608 - built from constants

RELEASE = f"""
UPDATE ari.calls SET claim_owner = NULL, claim_step = NULL, claim_until = NULL, {_NEW_VERSION}
WHERE call_id = %s AND claim_owner = %s
"""  # noqa: S608 - built from constants

#: The parts of a save. A save contains only the parts it needs, so each is short and few different ones exist.
CLAIM_TAKEN = ", claim_owner = %(owner)s, claim_step = %(step)s, claim_until = clock_timestamp() + %(claim)s::interval"
CLAIM_ENDED = ", claim_owner = NULL, claim_step = NULL, claim_until = NULL"
OWN_CLAIM_ENDED = "".join(
    f", {name} = CASE WHEN claim_owner = %(owner)s THEN NULL ELSE {name} END"
    for name in ("claim_owner", "claim_step", "claim_until")
)
IF_CLAIMED = " AND claim_owner = %(owner)s AND claim_until > clock_timestamp()"
IF_UNCLAIMED = " AND (claim_until IS NULL OR claim_until <= clock_timestamp())"
ATTEMPT_BEGUN = """, begun AS (
    INSERT INTO ari.attempts (call_id, attempt, media_id, bridge_id, in_doubt_until)
    SELECT call_id, %(begun)s, %(media_id)s, %(bridge_id)s, %(begun_in_doubt_until)s FROM saved
)"""
ATTEMPT_OUTCOME = """, outcome AS (
    UPDATE ari.attempts SET outcome = %(attempt_outcome)s, outcome_at = clock_timestamp()
    WHERE call_id = (SELECT call_id FROM saved) AND attempt = %(outcome_attempt)s
)"""


@functools.cache
def insert(*, begun: bool, or_nothing: bool) -> str:
    """Return the first write of a call, with its timeline.

    Args:
        begun: Its attempt is begun.
        or_nothing: `done` is false when there is such a call; if not set, that is an error.
    """
    attempts = ATTEMPT_BEGUN.replace("FROM saved", "FROM inserted") if begun else ""
    return f"""
WITH inserted AS (
    INSERT INTO ari.calls ({_SELECT}, claim_owner, claim_step, claim_until)
    VALUES ({_VALUES}, %(owner)s, %(step)s, clock_timestamp() + %(claim)s::interval)
    {"ON CONFLICT DO NOTHING" if or_nothing else ""} RETURNING call_id
){attempts}, appended AS (
    INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS} WHERE EXISTS (SELECT 1 FROM inserted)
)
SELECT EXISTS (SELECT 1 FROM inserted) AS done
"""  # noqa: S608 - built from constants


@functools.cache
def save(changed: tuple[str, ...], claim: str, condition: str, attempts: str, *, or_nothing: bool) -> str:
    """Return the compare-and-set of a call, with its timeline.

    Args:
        or_nothing: `lock_version` is NULL on a version conflict; if not set, that is an error (a division by zero:
            not of the version, as NULL divided by zero is NULL).
    """
    found = "max(lock_version) AS lock_version" + ("" if or_nothing else ", 1 / count(*) AS saved")
    sets = ", ".join([*(f"{name} = %({name})s" for name in changed), _NEW_VERSION]) + claim
    return f"""
WITH saved AS (
    UPDATE ari.calls SET {sets}
    WHERE call_id = %(call_id)s AND lock_version = %(lock_version)s{condition}
    RETURNING call_id, lock_version
){attempts}, appended AS (
    INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS}
    WHERE kind = 'request' OR EXISTS (SELECT 1 FROM saved)
)
SELECT {found} FROM saved
"""  # noqa: S608 - built from constants
