"""Tenants' connections: the platform's configuration, our tables, and each Asterisk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, replace

from shared import errors
from shared.asterisk import tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.operator.checks import asterisk_checks
from shared.operator.checks.findings import Finding, ok, warning, wrong
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.platform.ports import ConfigurationRow, NoRoute, Route
from shared.process import sealing
from shared.storage import database, timeline

#: Asterisks checked at the same time.
_AT_ONCE = 8
_STUCK_SECONDS = 60
#: So many phone numbers of a connection are looked at.
_NUMBERS = 5

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

#: By the index of the few calls that have other legs than those they came with.
_FOLLOWED = """
SELECT connection_id, count(*) AS number, (array_agg(left(call_id::text, 8) ORDER BY received_at))[1] AS one,
       (array_agg(channel_id ORDER BY received_at))[1] AS before,
       (array_agg(replacements[array_upper(replacements, 1)] ORDER BY received_at))[1] AS leg
FROM ari.calls WHERE state <> 'ended' AND replacements IS NOT NULL GROUP BY connection_id
"""

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
    watch: layouts.Watch | None = None,
    connections: Collection[int] | None = None,
) -> list[CheckedConnection]:
    """Check every connection, or one organization's, or those named. Raises as a database does."""
    found = examine(db, sealer, organization, watch=watch, connections=connections)
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
    watch: layouts.Watch | None = None,
    connections: Collection[int] | None = None,
) -> list[CheckedConnection]:
    """Check what Postgres has of each connection."""
    routes, configurations = dograh.Routes(db, watch=watch), dograh.Configurations(db, watch=watch)
    rows = sorted(configurations.all(), key=lambda row: row.organization_id)
    with db.connection() as connection:
        known = {row["source_id"]: row for row in connection.execute(_KNOWN).fetchall()}
        stuck = {row["connection_id"]: row for row in connection.execute(_STUCK).fetchall()}
        followed = {row["connection_id"]: row for row in connection.execute(_FOLLOWED).fetchall()}
        refused = {row["connection_id"]: row for row in connection.execute(_REFUSED).fetchall()}
    examined = [
        row
        for row in rows
        if organization in (None, row.organization_id)
        and (connections is None or _connection_id(known.get(row.source_id)) in connections)
    ]
    of_routes = _routes(routes, configurations, [row for row in examined if row.unserved is None], known)
    parsed = {row.source_id: _parsed(row) for row in rows}
    app_instances: dict[tuple[str, str], list[ConfigurationRow]] = {}
    for row in rows:
        one = parsed[row.source_id]
        if isinstance(one, Configuration):
            app_instances.setdefault((one.endpoint, one.app), []).append(row)
    made = []
    for row in examined:
        one, ours = parsed[row.source_id], known.get(row.source_id)
        findings: list[Finding] = []
        if isinstance(one, Finding):
            findings.append(one)
        else:
            sharing = [other for other in app_instances[one.endpoint, one.app] if other.source_id != row.source_id]
            findings += _configuration(one, sharing)
            findings += _reconciled(ours, one, sealer)
        findings += of_routes.get(row.source_id, ())
        if ours is not None and ours["connection_id"] in stuck:
            findings.append(_stuck(stuck[ours["connection_id"]]))
        if ours is not None and ours["connection_id"] in followed:
            findings.append(_followed(followed[ours["connection_id"]]))
        if ours is not None and ours["connection_id"] in refused:
            findings.append(_refused(refused[ours["connection_id"]]))
        usable = one if isinstance(one, Configuration) else None
        made.append(CheckedConnection(row=row, configuration=usable, known=ours, findings=tuple(findings)))
    return made


def _connection_id(known: database.Row | None) -> int | None:
    return known["connection_id"] if known is not None else None


def _parsed(row: ConfigurationRow) -> Configuration | Finding:
    try:
        return row.read()
    except errors.InvalidConfiguration as exc:
        return wrong("configuration", str(exc), "correct it in the platform, or: arictl connection add --replace")


def _configuration(configuration: Configuration, sharing: list[ConfigurationRow]) -> Iterator[Finding]:
    if configuration.password != configuration.password.strip():
        yield wrong(
            "configuration",
            "the password begins or ends with a blank, which ari.conf cannot express",
            "choose another password, in ari.conf and in the configuration",
        )
    if sharing:
        named = ", ".join(str(other.organization_id) for other in sharing[:5])
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


def _routes(
    routes: dograh.Routes,
    configurations: dograh.Configurations,
    rows: Collection[dograh.ConfigurationRow],
    known: Mapping[int, database.Row],
) -> dict[int, list[Finding]]:
    """Check the route of every call or, where phone numbers name the workflows, that of the calls to each number.

    All of them together: a statement for each would take minutes.
    """
    rows = [row for row in rows if row.source_id in known]
    if not rows:
        return {}
    numbers = configurations.numbers(rows)
    called = [
        (row, number) for row in rows for number in ([""] if numbers is None else numbers[row.source_id][:_NUMBERS])
    ]
    found = routes.inbound_together([(known[row.source_id]["connection_id"], number) for row, number in called])
    findings: dict[int, list[Finding]] = {row.source_id: [] for row in rows}
    for (row, number), route in zip(called, found, strict=True):
        what, effect = ("inbound workflow", "every caller is refused")
        if numbers is not None:
            what, effect = (f"number {number}", "its callers are refused")
        findings[row.source_id].append(_route(what, effect, row, route))
    for source_id, all_numbers in (numbers or {}).items():
        findings[source_id] += _how_many(len(all_numbers))
    return findings


def _how_many(numbers: int) -> Iterator[Finding]:
    if not numbers:
        yield warning(
            "phone numbers",
            "none that is active: every caller is refused",
            "add one in the platform, with its inbound workflow, or: arictl connection add --from-number",
        )
    if numbers > _NUMBERS:
        yield ok("phone numbers", f"{numbers - _NUMBERS} more, which were not looked at")


def _route(what: str, effect: str, row: ConfigurationRow, route: Route | NoRoute) -> Finding:
    if isinstance(route, Route):
        return ok(what, f"workflow {route.workflow_id}, websocket client {route.settings.media_client}")
    return wrong(
        what,
        route.reason,
        f"{effect}: arictl connection add --organization {row.organization_id} --replace"
        " --workflow N --ws-client NAME, or correct it in the platform",
    )


def _stuck(row: database.Row) -> Finding:
    return warning(
        "calls in ending",
        f"{row['number']} for over a minute, one since {row['since']:%m-%d %H:%M:%S}",
        f"their runs are ended, and the teardown waits for an answer of this Asterisk: arictl trace {row['one']}",
    )


def _followed(row: database.Row) -> Finding:
    example = f"one with {row['leg']} in place of {row['before']}: arictl trace {row['one']}"
    return ok("transferred calls", f"{row['number']} with another leg, {example}")


def _refused(row: database.Row) -> Finding:
    return warning(
        "callers",
        f"more than CALLS_PER_HOUR, some were refused; the last that was noted, at {row['at']:%m-%d %H:%M:%S}:"
        f" {row['detail']}",
        "if these are calls, raise CALLS_PER_HOUR of every worker; if not, look at what sends them to its app",
    )
