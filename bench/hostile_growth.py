"""What grows: `python -m bench.hostile_growth [PART ...]`.

- `minutes`: the answer to "how long has this organization talked this month?" with millions of calls in the month.
- `retention`: how fast old calls go, and old rows of connections.

Prints Markdown tables; docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from bench import history
from bench.failover import heading, say
from devstack import folders, servers
from scheduler import retention
from shared.storage import database, migrations, quotas

ORGANIZATION = 1
TALKED = 3_000_000
OLD_CALLS = 60_000
OLD_ROWS = 60_000
#: The last moment of a month that has 31 days.
_END = datetime(2026, 3, 31, 23, 59, tzinfo=UTC)
_MONTH_SECONDS = timedelta(days=30).total_seconds()
_BATCH = 250_000

#: Calls of one organization, evenly over the month, and nothing beside them.
_CALLS = """
INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id, channel_created, entry,
    direction, state, received_at, state_since, lock_version, step_retries, channel_name, caller_number, called_number,
    args, continue_in_dialplan, attempt, legs_created, media_ready, caller_left, connected_at, ending_at, ended_at)
SELECT gen_random_uuid(), 1, 1, 1, n::text, '', 1, 'inbound', 'ended', came, came, 9, 0, '', '', '', '{}', false, 1,
       true, true, true, came, came + interval '90 seconds', came + interval '91 seconds'
FROM (SELECT n, %(end)s::timestamptz - make_interval(secs => %(month)s * (1 - n / %(calls)s::float)) AS came
      FROM generate_series(%(first)s::integer, %(last)s::integer) AS n) AS made ORDER BY n
"""

#: What such a fill does not need and would wait for.
_UNUSED = """
DROP INDEX ari.calls_by_organization, ari.calls_by_time, ari.calls_slots, ari.calls_open, ari.calls_identity;
ALTER TABLE ari.calls DISABLE TRIGGER ALL
"""

_OLD_ROWS = """
INSERT INTO ari.timeline (at, connection_id, kind, name, who, detail)
SELECT now() - interval '91 days', 1, 'note', 'ForeignMedia', 'worker', n::text
FROM generate_series(1, %(rows)s::integer) AS n
"""


@contextlib.contextmanager
def _migrated(folder: Path) -> Iterator[servers.Postgres]:
    with servers.Postgres(folders.make(folder / uuid.uuid4().hex[:8], mode=0o711)) as postgres:
        migrations.upgrade(postgres.url)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
            connection.execute("SELECT pg_reload_conf()")
        yield postgres


@contextlib.contextmanager
def _pool(url: str) -> Iterator[database.Database]:
    db = database.Database(url, size=2)
    db.open()
    yield db
    db.close()


def _milliseconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) * 1000


def minutes(folder: Path, options: argparse.Namespace) -> None:
    """Measure the looks at a month: the first ever, until it is summed up, and those of new processes after that."""
    with _migrated(folder) as postgres, psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(_UNUSED)
        cursor = psycopg.ClientCursor(connection)
        for first in range(1, options.calls + 1, _BATCH):
            last = min(first + _BATCH - 1, options.calls)
            values = {"end": _END, "month": _MONTH_SECONDS, "calls": options.calls, "first": first, "last": last}
            cursor.execute(_CALLS.encode(), values)
        connection.execute("VACUUM ANALYZE ari.calls")
        heading("calls in the month", "first look, ms", "looks until summed up", "longest of them, ms",
                "a new process, ms (median of 20)", "longest, ms", "minutes")  # fmt: skip
        with _pool(postgres.url) as db:
            own = quotas.Quotas(db, now=lambda: _END)
            own.used_seconds(ORGANIZATION + 1)
            looks, used, before = [], 0.0, -1.0
            while used != before:
                before = used
                began = time.perf_counter()
                used = own.used_seconds(ORGANIZATION)
                looks.append((time.perf_counter() - began) * 1000)
        new = []
        for _ in range(20):
            with _pool(postgres.url) as db:
                own = quotas.Quotas(db, now=lambda: _END)
                own.of(ORGANIZATION)
                new.append(_milliseconds(lambda own=own: own.used_seconds(ORGANIZATION)))  # type: ignore[misc]
        say(options.calls, f"{looks[0]:.1f}", len(looks) - 1, f"{max(looks):.1f}", f"{statistics.median(new):.1f}",
            f"{max(new):.1f}", f"{used / 60:.0f}")  # fmt: skip


def old(folder: Path, options: argparse.Namespace) -> None:
    """Measure how fast the retention deletes, run after run as on its clock, without the pauses."""
    with _migrated(folder) as postgres, psycopg.connect(postgres.url, autocommit=True) as connection:
        size = history.Size(calls=options.old, connections=100, open_calls=0, old_calls=options.old)
        for _ in history.fill(connection, size):
            pass
        connection.execute("VACUUM ANALYZE")
        heading("old calls", "rows of the timeline", "deleted, calls/s", "vacuum, s for 1,000 calls",
                "rows without a call, rows/s")  # fmt: skip
        with _pool(postgres.url) as db:
            kept = retention.Retention(db, days=90)
            calls = _emptied(connection, kept, "SELECT count(*) FROM ari.calls")
            vacuum = _milliseconds(lambda: connection.execute("VACUUM ari.calls, ari.attempts, ari.timeline")) / 1000
            psycopg.ClientCursor(connection).execute(_OLD_ROWS.encode(), {"rows": OLD_ROWS})
            rows = _emptied(connection, kept, "SELECT count(*) FROM ari.timeline WHERE at < now() - interval '90 days'")
        say(options.old, options.old * size.rows, f"{options.old / calls:.0f}", f"{vacuum * 1000 / options.old:.3f}",
            f"{OLD_ROWS / rows:.0f}")  # fmt: skip


def _emptied(connection: psycopg.Connection, kept: retention.Retention, left: str) -> float:
    """Run the retention until nothing is left; return the seconds of its runs."""
    seconds = 0.0
    while (connection.execute(left.encode()).fetchone() or (0,))[0]:
        seconds += _milliseconds(kept.delete_old) / 1000
    return seconds


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {"minutes": minutes, "retention": old}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_growth", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--calls", type=int, default=TALKED, help="in the month")
    parser.add_argument("--old", type=int, default=OLD_CALLS, help="old calls to delete")
    options = parser.parse_args()
    with folders.temporary() as folder:
        for part in options.parts or PARTS:
            PARTS[part](folder, options)


if __name__ == "__main__":
    main()
