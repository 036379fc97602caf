"""The test of single connections: what `arictl doctor` checks of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.asterisk import tcp_connector
from shared.operator import audit
from shared.operator.checks import connection_checks
from shared.operator.checks.findings import Finding, Level, wrong
from shared.platform.dograh import layouts
from shared.process import sealing
from shared.storage import database

_ACTION = "connection test"
_FINDINGS = "findings"
#: Of the newest rows of tests that were done: those of an earlier release may have no findings.
_LOOKED_AT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFindings:
    """A connection, and what was found of it."""

    connection_id: int
    #: In the order in which they were checked: configuration, event socket, routes, Asterisk.
    findings: tuple[Finding, ...]

    @property
    def is_wrong(self) -> bool:
        """True if calls are lost, or will be."""
        return any(finding.level is Level.WRONG for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReport:
    """Of each connection that was tested."""

    connections: tuple[ConnectionFindings, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTest:
    """The last test of a connection from the console, as the audit has it."""

    at: datetime
    who: str
    findings: tuple[Finding, ...]


def run(
    db: database.Database,
    sealer: sealing.Sealer,
    connector: tcp_connector.TcpConnector,
    watch: layouts.Watch,
    connections: Collection[int],
) -> ConnectionReport:
    """Test connections, several at a time, each for some seconds at most. Nothing is changed.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    found = connection_checks.check(db, sealer, None, connector, watch=watch, connections=connections)
    findings = {each.known["connection_id"]: each.findings for each in found if each.known is not None}
    gone = wrong("configuration", "the platform has none for it", "arictl connection add, or add it in the platform")
    return ConnectionReport(
        connections=tuple(
            ConnectionFindings(connection_id=one, findings=findings.get(one, (gone,))) for one in connections
        )
    )


def action(connection_id: int, organization_id: int) -> audit.Action:
    """Return the action of a test, for the audit."""
    return audit.Action(name=_ACTION, subject=f"connection {connection_id}", organization_id=organization_id)


def detail(findings: Sequence[Finding]) -> dict[str, object]:
    """Return what was found as the audit keeps it: users who may only look read it there, without testing again."""
    levels = [each.level for each in findings]
    kept = [[each.level.value, each.what, each.seen, each.todo] for each in findings]
    return {"wrong": levels.count(Level.WRONG), "warnings": levels.count(Level.WARNING), _FINDINGS: kept}


def last(db: database.Database, connection_id: int) -> LastTest | None:
    """Return the last test that has found something; None if the audit has none. Raises DatabaseUnavailable."""
    subject = f"connection {connection_id}"
    rows = audit.page(db, subject=subject, action=_ACTION, outcome=audit.Outcome.DONE.value, limit=_LOOKED_AT)
    for row in rows:
        found = row.detail.get(_FINDINGS)
        if isinstance(found, list):
            return LastTest(at=row.at, who=row.who, findings=tuple(_finding(each) for each in found))
    return None


def _finding(kept: Sequence[str]) -> Finding:
    # A later release may know further levels, and tell more.
    level, what, seen, todo = kept[:4]
    return Finding(level=Level(level) if level in set(Level) else Level.WARNING, what=what, seen=seen, todo=todo)
