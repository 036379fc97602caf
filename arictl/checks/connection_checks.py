"""Tenants' connections: the platform's configuration, our tables, and each Asterisk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, replace

from arictl.checks import asterisk_checks
from arictl.checks.findings import Finding, ok, warning, wrong
from shared import errors
from shared.asterisk import tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.platform.ports import ConfigurationRow, Route, Routes
from shared.process import sealing
from shared.storage import database, timeline

#: Asterisks checked at the same time.
_AT_ONCE = 8
_STUCK_SECONDS = 60

_KNOWN = """
SELECT c.source_id, c.connection_id, c.state, c.reason, v.version, v.endpoint, v.app, v.sealed_password, v.socket_state,
       v.socket_since, v.last_error
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
"""

_STUCK = f"""
SELECT connection_id, count(*) AS number, min(ending_at) AS since,
       (array_agg(left(call_id::text, 8) ORDER BY ending_at))[1] AS one
FROM ari.calls WHERE state = 'ending' AND ending_at < clock_timestamp() - interval '{_STUCK_SECONDS} seconds'
GROUP BY connection_id
"""  # noqa: S608 - built from a constant

_REFUSED = f"""
SELECT DISTINCT ON (connection_id) connection_id, at, detail FROM ari.timeline
WHERE call_id IS NULL AND at > clock_timestamp() - interval '1 hour' AND name = '{timeline.TOO_MANY_CALLS}'
ORDER BY connection_id, at DESC
"""  # noqa: S608 - built from a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedConnection:
    """A connection and its findings."""

    row: ConfigurationRow
    #: None if the row cannot be used.
    configuration: Configuration | None
    known: database.Row | None
    #: In `examine`, those that need no request.
    findings: tuple[Finding, ...]

    @property
    def heading(self) -> str:
        """The heading of its findings."""
        connection = f", connection {self.known['connection_id']}" if self.known is not None else ""
        return f"organization {self.row.organization_id}{connection}"


def check(
    db: database.Database,
    sealer: sealing.Sealer | None,
    organization: int | None,
    connector: tcp_connector.TcpConnector,
    *,
    layout: layouts.Setting = layouts.AUTO,
) -> list[CheckedConnection]:
    """Check every connection, or one organization's. Raises as a database does."""
    found = examine(db, sealer, organization, layout=layout)
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = list(pool.map(lambda one: _ask(one, connector), found))
    return [replace(one, findings=(*one.findings, *more)) for one, more in zip(found, asked, strict=True)]


def _ask(one: CheckedConnection, connector: tcp_connector.TcpConnector) -> Sequence[Finding]:
    if one.configuration is None:
        return ()
    state = "unassigned" if one.known is None else one.known["socket_state"] or "unassigned"
    return asterisk_checks.check(one.configuration, one.row.media_client, socket_state=state, connector=connector)


def examine(
    db: database.Database,
    sealer: sealing.Sealer | None,
    organization: int | None,
    *,
    layout: layouts.Setting = layouts.AUTO,
) -> list[CheckedConnection]:
    """Check what Postgres has of each connection."""
    routes = dograh.Routes(db, layout=layout)
    rows = sorted(dograh.Configurations(db, layout=layout).all(), key=lambda row: row.organization_id)
    with db.connection() as connection:
        known = {row["source_id"]: row for row in connection.execute(_KNOWN).fetchall()}
        stuck = {row["connection_id"]: row for row in connection.execute(_STUCK).fetchall()}
        refused = {row["connection_id"]: row for row in connection.execute(_REFUSED).fetchall()}
    parsed = {row.source_id: _parsed(row) for row in rows}
    app_instances: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        one = parsed[row.source_id]
        if isinstance(one, Configuration):
            app_instances.setdefault((one.endpoint, one.app), []).append(row.organization_id)
    made = []
    for row in rows:
        if organization not in (None, row.organization_id):
            continue
        one, ours = parsed[row.source_id], known.get(row.source_id)
        findings: list[Finding] = []
        if isinstance(one, Finding):
            findings.append(one)
        else:
            sharing = [other for other in app_instances[one.endpoint, one.app] if other != row.organization_id]
            findings += _configuration(one, sharing)
            findings += _reconciled(ours, one, sealer)
        findings.append(_route(routes, row))
        if ours is not None and ours["connection_id"] in stuck:
            findings.append(_stuck(stuck[ours["connection_id"]]))
        if ours is not None and ours["connection_id"] in refused:
            findings.append(_refused(refused[ours["connection_id"]]))
        usable = one if isinstance(one, Configuration) else None
        made.append(CheckedConnection(row=row, configuration=usable, known=ours, findings=tuple(findings)))
    return made


def _parsed(row: ConfigurationRow) -> Configuration | Finding:
    try:
        return row.read()
    except errors.InvalidConfiguration as exc:
        return wrong("configuration", str(exc), "correct it in the platform, or: arictl connection add --replace")


def _configuration(configuration: Configuration, sharing: list[int]) -> Iterator[Finding]:
    if configuration.password != configuration.password.strip():
        yield wrong(
            "configuration",
            "the password begins or ends with a blank, which ari.conf cannot express",
            "choose another password, in ari.conf and in the configuration",
        )
    if sharing:
        named = ", ".join(map(str, sharing[:5]))
        yield wrong(
            "configuration",
            f"the same endpoint and app as organization {named}",
            "one of them is refused: give each its own app (and ARI user)",
        )
    else:
        yield ok("configuration", f"app {configuration.app} on {configuration.endpoint}")


def _reconciled(
    known: database.Row | None, configuration: Configuration, sealer: sealing.Sealer | None
) -> Iterator[Finding]:
    what = "connection"
    wait = "wait ten seconds; if it persists, is a scheduler running (above)?"
    if known is None:
        yield wrong(what, "the scheduler has not read the configuration yet", wait)
        return
    if known["state"] != "active":
        yield wrong(
            what, f"{known['state']}: {known['reason']}", "correct the configuration; it is read every few seconds"
        )
        return
    same = (known["endpoint"], known["app"]) == (configuration.endpoint, configuration.app)
    password = _opened(known["sealed_password"], sealer)
    if sealer is not None and password is None:
        yield wrong(
            what,
            "none of the SECRET_KEYs of this environment opens its sealed password",
            "give every process the same SECRET_KEY; list a replaced key behind the new one",
        )
    elif not same or (password is not None and password != configuration.password):
        yield wrong(what, f"version {known['version']} is older than the configuration", wait)
    else:
        yield ok(what, f"version {known['version']}")
    since = f" since {known['socket_since']:%m-%d %H:%M:%S}" if known["socket_since"] is not None else ""
    seen = f"{known['socket_state']}{since}" + (f": {known['last_error']}" if known["last_error"] else "")
    if known["socket_state"] == "connected":
        yield ok("event socket", seen)
    else:
        yield wrong("event socket", seen, "no call arrives: see the findings below, or else the listener's log")


def _opened(sealed: str | None, sealer: sealing.Sealer | None) -> str | None:
    if sealer is None or sealed is None:
        return None
    try:
        return sealer.open(sealed)
    except errors.SealBroken:
        return None


def _route(routes: Routes, row: ConfigurationRow) -> Finding:
    route = routes.inbound(row.organization_id)
    if isinstance(route, Route):
        return ok("inbound workflow", f"workflow {route.workflow_id}, websocket client {route.settings.media_client}")
    return wrong(
        "inbound workflow",
        route.reason,
        f"every caller is refused: arictl connection add --organization {row.organization_id} --replace"
        " --workflow N --ws-client NAME, or correct it in the platform",
    )


def _stuck(row: database.Row) -> Finding:
    return warning(
        "calls in ending",
        f"{row['number']} for over a minute, one since {row['since']:%m-%d %H:%M:%S}",
        f"their runs are ended, and the teardown waits for an answer of this Asterisk: arictl trace {row['one']}",
    )


def _refused(row: database.Row) -> Finding:
    return warning(
        "callers",
        f"more than CALLS_PER_HOUR, some were refused; the last that was noted, at {row['at']:%m-%d %H:%M:%S}:"
        f" {row['detail']}",
        "if these are calls, raise CALLS_PER_HOUR of every worker; if not, look at what sends them to its app",
    )
