"""A database with a history: ended calls, each with an attempt and a timeline, made in SQL, and the plans of the
statements that read them.

One organization in ten thousand has a tenth of the calls. The calls came evenly over 89 days; a few are older, so that
the retention has something to delete. Some calls are open, and some of those overdue. Two in a hundred did not end
well; one in a thousand by our fault, and as many have no failure class, as those of an earlier release. All went to one
number.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

import psycopg

from devstack.pipeline import ROOT
from scheduler import looks, resyncs, retention, socket_rows
from shared import messages
from shared.call.ids import ConnectionVersion
from shared.call.states import Fault, Outcome, State
from shared.operator import breakers, call_queries, connection_list, connection_words, overview_sample
from shared.operator import organization_usage as usage
from shared.operator.call_queries import Cursor, Filter
from shared.operator.call_series import CallSeries
from shared.platform.ports import ConfigurationRow
from shared.storage import database, postgres_calls, quotas

CALLS = 1_000_000
TIMELINE_ROWS = 15
CONNECTIONS = 10_000
OPEN_CALLS = 2_000
#: So many calls are older than the retention keeps them.
OLD_CALLS = 1_000
#: The number that all callers have called.
CALLED = "+49800100"
#: A statement makes so many calls' rows.
BATCH = 50_000

_TENANTS = """
INSERT INTO ari.connections (source_id, organization_id, state, version)
SELECT n, n, 'active', 1 FROM generate_series(1, %(connections)s) AS n ORDER BY n;
INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password, socket_state)
SELECT connection_id, 1, 'http://pbx-' || connection_id || ':8088', 'voiceai', 'voiceai', 'x', 'connected'
FROM ari.connections;
INSERT INTO ari.timeline (at, connection_id, kind, name, who, detail)
SELECT now() - n * interval '1 day', connection_id, 'note', 'ResyncFinding', 'worker', 'an orphaned bridge was removed'
FROM ari.connections, generate_series(1, 3) AS n;
"""

#: The numbers rise with the time.
_NUMBERED = """
SELECT n, md5('call ' || n)::uuid AS call_id,
       CASE WHEN n %% 10 = 0 THEN 1 ELSE 1 + n %% %(connections)s END AS tenant,
       CASE WHEN n <= %(old)s THEN now() - interval '91 days'
            ELSE now() - (%(calls)s - n) * interval '89 days' / %(calls)s END AS came
FROM generate_series(%(first)s::integer, %(last)s::integer) AS n
"""

_CALLS = f"""
INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id, channel_created, entry,
    direction, state, received_at, state_since, deadline_at, lock_version, step_retries, channel_name, caller_number,
    called_number, args, entered_stamp, workflow_id, user_id, media_client, workflow_run_id, continue_in_dialplan,
    attempt, legs_created, media_ready, caller_left, connected_at, ending_at, ended_at, outcome, reason, fault)
SELECT call_id, tenant, 1, tenant, '17325' || n || '.' || n, '2026-11-01T10:00:00.000+0000', 1,
    'inbound', CASE WHEN is_open THEN 'connected' ELSE 'ended' END, came, came,
    CASE WHEN is_open THEN now() + interval '1 hour' END, 9, 0, 'PJSIP/trunk-' || to_hex(n), '+4930' || n, '{CALLED}',
    '{{}}', '2026-11-01T10:00:00.010+0000', tenant, tenant, 'media', n, false,
    1, true, true, not is_open, CASE WHEN outcome = 'completed' THEN came + interval '15 ms' END,
    CASE WHEN NOT is_open THEN came + interval '90 seconds' END,
    CASE WHEN NOT is_open THEN came + interval '91 seconds' END, CASE WHEN NOT is_open THEN outcome END,
    CASE WHEN NOT is_open THEN 'it was ' || outcome END,
    CASE WHEN is_open OR outcome = 'completed' OR n %% 1000 = 2 THEN NULL WHEN n %% 1000 = 102 THEN 'us'
         WHEN outcome = 'busy' THEN 'far-end' ELSE 'agent' END
FROM (SELECT *, n > %(calls)s - %(open)s AS is_open,
             CASE n %% 100 WHEN 1 THEN 'busy' WHEN 2 THEN 'failed' ELSE 'completed' END AS outcome
      FROM ({_NUMBERED}) AS numbered) AS made ORDER BY n
"""  # noqa: S608 - built from constants

_ATTEMPTS = f"""
INSERT INTO ari.attempts (call_id, attempt, media_id, bridge_id, begun_at, in_doubt_until, outcome, outcome_at)
SELECT call_id, 1, 'aip-' || call_id || '.m.1', 'aip-' || call_id || '.b.1', came, came + interval '10 seconds',
       'created', came + interval '5 ms'
FROM ({_NUMBERED}) AS numbered ORDER BY n
"""  # noqa: S608 - built from constants

_TIMELINE = f"""
INSERT INTO ari.timeline (at, call_id, connection_id, kind, name, state_from, state_to, attempt, took_ms, who, detail)
SELECT came + row * interval '3 ms', call_id, NULL, CASE WHEN row %% 2 = 0 THEN 'transition' ELSE 'request' END,
       CASE WHEN row %% 2 = 0 THEN 'LegsCreated' ELSE 'POST /channels/externalMedia' END,
       CASE WHEN row %% 2 = 0 THEN 'prepared' END, CASE WHEN row %% 2 = 0 THEN 'joining' END, 1, 2.5, 'worker-1',
       '200, media leg aip-' || call_id || '.m.1'
FROM ({_NUMBERED}) AS numbered, generate_series(1, %(rows)s) AS row ORDER BY n, row
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much history there is."""

    calls: int = CALLS
    rows: int = TIMELINE_ROWS
    connections: int = CONNECTIONS
    open_calls: int = OPEN_CALLS
    old_calls: int = OLD_CALLS


def fill(connection: psycopg.Connection, size: Size) -> Iterator[int]:
    """Write the history, batch by batch; yields how many calls there are so far."""
    cursor = psycopg.ClientCursor(connection)
    cursor.execute(_TENANTS.encode(), {"connections": size.connections})
    for first in range(1, size.calls + 1, BATCH):
        values = {
            "first": first, "last": min(first + BATCH - 1, size.calls), "calls": size.calls, "open": size.open_calls,
            "old": size.old_calls, "connections": size.connections, "rows": size.rows,
        }  # fmt: skip
        for statement in (_CALLS, _ATTEMPTS, _TIMELINE):
            cursor.execute(statement.encode(), values)
        yield values["last"]


class _DiscardedResyncs:
    """Takes the requests for resyncs, and does nothing with them."""

    def send_all(self, made: Iterable[messages.Message]) -> None:
        for _ in made:
            pass


def arictl_at(url: str) -> Callable[..., object]:
    """Return what runs a command of arictl on a database, as an operator does."""
    return partial(_arictl, url)


def readers(db: database.Database, size: Size, arictl: Callable[..., object]) -> dict[str, Callable[[], object]]:
    """Return name → what reads calls or timeline, each by the product's own code; for one organization, the 77th."""
    store = postgres_calls.PostgresCalls(db, who="bench", prefix="aip-")
    minutes = quotas.Quotas(db, now=store.now)
    sockets = socket_rows.SocketRows(db, drain_seconds=14_400, reclaim_seconds=10, quarantine_seconds=900)
    version, number = ConnectionVersion(77, 1), size.calls // 2 + 7
    call_id, channel = _call_id(number), f"17325{number}.{number}"
    middle = Cursor(received_at=datetime.now(UTC) - timedelta(days=45), call_id=call_id)

    def slots() -> int:
        with db.connection() as connection:
            return store.slots_used(connection, 1)

    return {
        "sweep: overdue calls": lambda: store.overdue(500),
        "sweep: runs of connected calls": store.connected_runs,
        "live calls, slots and the age of resyncs": looks.Looks(
            db, cast(Any, None), seconds=5, sweep_seconds=1, resync_seconds=15
        ).look_at_calls,
        "resyncs that are due": resyncs.Resyncs(db, _DiscardedResyncs(), seconds=15).request_resyncs,
        "sockets": sockets.wanted,
        "sockets, fingerprint": sockets.fingerprint,
        "resync: open calls": lambda: store.open_calls(version),
        "event: the call": lambda: store.load(call_id),
        "event: the channel's last entry": lambda: store.last_entry(77, channel, "x"),
        "event: an originated leg": lambda: store.originated(77, channel),
        "event: the leg that a call was transferred to": lambda: store.transferred(77, channel),
        "outbound: asked for before": lambda: store.requested(77, "request-1"),
        "slots in use": slots,
        "minutes of the largest tenant, first look": lambda: minutes.used_seconds(1),
        "minutes of the largest tenant, later": lambda: minutes.used_seconds(1),
        "retention": retention.Retention(db, days=90).delete_old,
        "overview: a quarter of an hour of calls": lambda: CallSeries().read(db),
        "overview: open circuit breakers": lambda: breakers.open_breakers(db),
        "arictl calls": lambda: arictl("calls"),
        "arictl calls --organization 77": lambda: arictl("calls", "--organization", "77"),
        "arictl calls --live": lambda: arictl("calls", "--live"),
        **{f"calls: {name}": partial(_listed, db, wanted) for name, wanted in searches(size).items()},
        "calls: the page after half of them": lambda: _listed(db, Filter(), after=middle),
        "calls: the page after half of those of a number": lambda: _listed(db, Filter(number=CALLED), after=middle),
        "arictl trace, by call": lambda: arictl("trace", str(call_id)[:8]),
        "arictl trace, by run": lambda: arictl("trace", str(number)),
        "arictl trace, by channel": lambda: arictl("trace", channel),
        "arictl usage": lambda: arictl("usage"),
        "arictl usage --organization 77 --days 92": lambda: usage.days_of(db, days=92, organization=77),
        "arictl losses": lambda: arictl("losses"),
        "arictl steps": lambda: arictl("steps", "--since", "7d"),
        "arictl top, once a second": lambda: overview_sample.calls_of(db),
        "arictl connection list": lambda: connection_list.read(db, _NoConfigurations()),
        "console: the notes of a connection": lambda: connection_words.notes(db, 77),
    }


class _NoConfigurations:
    """The platform's tables do not grow with the calls."""

    def all(self) -> Sequence[ConfigurationRow]:
        return ()


def searches(size: Size, number: int | None = None) -> dict[str, Filter]:
    """Return name → what the operator asks of calls: each filter, and some together.

    Args:
        number: Of the call that is searched for; None for one in the middle, and the 77th connection.
    """
    connection = 77 if number is None else 1 + number % size.connections
    number = number or size.calls // 2 + 7
    since = datetime.now(UTC) - timedelta(days=90 * number / size.calls)
    return {
        "ended": Filter(is_live=False),
        "of a caller": Filter(number=f"+4930{number}"),
        "of a number that all called": Filter(number=CALLED),
        "of a number that all called, live": Filter(number=CALLED, is_live=True),
        "of a number that none called": Filter(number="+1"),
        "of a channel": Filter(channel=f"17325{number}.{number}"),
        "of a run": Filter(workflow_run_id=number),
        "of a connection": Filter(connection_id=connection),
        "busy": Filter(outcome=Outcome.BUSY),
        "canceled, none": Filter(outcome=Outcome.CANCELED),
        "our fault": Filter(fault=Fault.US),
        "the caller's fault, none": Filter(fault=Fault.CALLER),
        "our fault, of the largest organization": Filter(fault=Fault.US, organization_id=1),
        "failed, of a number that all called": Filter(outcome=Outcome.FAILED, number=CALLED),
        "connected": Filter(state=State.CONNECTED),
        "being set up, none": Filter(state=State.JOINING),
        "of an hour": Filter(since=since, until=since + timedelta(hours=1)),
        "our fault, of an hour": Filter(since=since, until=since + timedelta(hours=1), fault=Fault.US),
    }


def search_seconds(url: str, size: Size, times: int) -> dict[str, list[float]]:
    """Return name → how long each of so many searches took, in s, each for another call."""
    took: dict[str, list[float]] = defaultdict(list)
    drawn = random.Random(1)  # noqa: S311 - no secret
    db = database.Database(url, size=1)
    db.open()
    for _ in range(times):
        for name, wanted in searches(size, drawn.randint(1, size.calls)).items():
            began = time.perf_counter()
            call_queries.list_calls(db, wanted)
            took[name].append(time.perf_counter() - began)
    db.close()
    return took


def _listed(db: database.Database, wanted: Filter, *, after: Cursor | None = None) -> None:
    call_queries.list_calls(db, wanted, after=after)


def _arictl(url: str, *words: str) -> None:
    command = [sys.executable, "-m", "arictl.main", *words]
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)  # noqa: S603 - the product's own command


def _call_id(number: int) -> UUID:
    return UUID(hashlib.md5(f"call {number}".encode(), usedforsecurity=False).hexdigest())
