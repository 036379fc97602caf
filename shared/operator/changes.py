"""What has changed: what operators did, which configurations the platform changed, which processes have started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.operator import audit
from shared.operator.processes import Process
from shared.storage import database

#: Most rows of each kind.
MOST = 200

#: Actions that leave everything as it was.
_OF_LOOKING = "'sign in', 'call unmask', 'connection test'"
#: By `audit_by_time`. What is asked for is told again when it is done. What failed has changed nothing, unless a server
#: gave no answer.
_AUDIT = f"""
SELECT at, who || ' (' || via || ')' AS who, subject,
       action || CASE outcome WHEN 'done' THEN '' ELSE ', ' || outcome END AS what
FROM ari.audit
WHERE at >= now() - %(seconds)s * interval '1 second' AND action NOT IN ({_OF_LOOKING})
  AND (outcome = 'done' OR (outcome = 'failed' AND detail->>'reason' LIKE '%%{audit.MAY_BE_DONE}'))
ORDER BY at DESC LIMIT {MOST}
"""  # noqa: S608 - built from a constant
#: There are as many as connections have versions, however many calls.
_CONFIGURATIONS = f"""
SELECT at, '' AS who, what, 'connection ' || connection_id || ' of organization ' || organization_id AS subject FROM (
    SELECT v.created_at AS at, v.connection_id, c.organization_id,
           'configuration ' || CASE v.version WHEN 1 THEN 'added' ELSE 'changed: version ' || v.version END AS what
    FROM ari.connection_versions v JOIN ari.connections c USING (connection_id)
    UNION ALL
    SELECT v.superseded_at, v.connection_id, c.organization_id, 'configuration ' || c.state
    FROM ari.connection_versions v JOIN ari.connections c USING (connection_id)
    WHERE c.state <> 'active' AND v.version = c.version
) AS changed
WHERE at >= now() - %(seconds)s * interval '1 second' ORDER BY at DESC LIMIT {MOST}
"""  # noqa: S608 - built from a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that is not as it was."""

    at: datetime
    #: The operator and the tool, the kind of the process; empty: the tenant or the platform.
    who: str
    what: str
    subject: str


def read(db: database.Database, processes: Iterable[Process], within: timedelta) -> tuple[Change, ...]:
    """Return the changes within a time, the newest first. Raises DatabaseUnavailable.

    Args:
        processes: Of the registry. When one of them started is by its host's clock.
    """
    values = {"seconds": within.total_seconds()}
    with db.connection() as connection:
        rows = [*connection.execute(_AUDIT, values).fetchall(), *connection.execute(_CONFIGURATIONS, values).fetchall()]
    since = datetime.now(UTC) - within
    found = [Change(**row) for row in rows] + [each for each in map(_start, processes) if each.at >= since]
    return tuple(sorted(found, key=lambda each: each.at, reverse=True))


def _start(process: Process) -> Change:
    try:
        at = datetime.fromisoformat(process.started_at)
    except ValueError:
        # One that is not there: when it ended is the last that is known.
        at = datetime.now(UTC) - timedelta(seconds=process.silent_seconds)
        return Change(at=at, who=process.kind, what="gone", subject=process.name)
    return Change(
        at=at, who=process.kind, what=f"started, release {process.version}", subject=f"{process.name} on {process.host}"
    )
