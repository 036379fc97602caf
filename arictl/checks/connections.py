"""Tenants' connections: what the platform's row says, what our tables say, and what each Asterisk says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, replace

from arictl.checks import asterisk
from arictl.checks.findings import Finding, ok, warning, wrong
from shared import errors
from shared.asterisk import tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.platform import dograh
from shared.platform.ports import ConfigurationRow, Route, Routes
from shared.process import sealing
from shared.storage import database

#: Asterisks asked at once.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A connection to be looked at."""

    row: ConfigurationRow
    #: None when the row is unusable.
    configuration: Configuration | None
    known: database.Row | None
    #: What needs no request.
    findings: tuple[Finding, ...]

    @property
    def heading(self) -> str:
        """Names it."""
        connection = f", connection {self.known['connection_id']}" if self.known is not None else ""
        return f"organization {self.row.organization_id}{connection}"


def check(
    db: database.Database,
    sealer: sealing.Sealer | None,
    organization: int | None,
    connector: tcp_connector.TcpConnector,
) -> list[Patient]:
    """Every connection, or one organization's, with all that can be said of it. Raises as a database does."""
    found = patients(db, sealer, organization)
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = list(pool.map(lambda patient: _asked(patient, connector), found))
    return [replace(one, findings=(*one.findings, *more)) for one, more in zip(found, asked, strict=True)]


def _asked(patient: Patient, connector: tcp_connector.TcpConnector) -> Sequence[Finding]:
    if patient.configuration is None:
        return ()
    state = "unassigned" if patient.known is None else patient.known["socket_state"] or "unassigned"
    return asterisk.check(patient.configuration, patient.row.media_client, socket_state=state, connector=connector)


def patients(db: database.Database, sealer: sealing.Sealer | None, organization: int | None) -> list[Patient]:
    """What Postgres says of them."""
    routes = dograh.Routes(db)
    rows = sorted(dograh.Configurations(db).all(), key=lambda row: row.organization_id)
    with db.connection() as connection:
        known = {row["source_id"]: row for row in connection.execute(_KNOWN).fetchall()}
        stuck = {row["connection_id"]: row for row in connection.execute(_STUCK).fetchall()}
    parsed = {row.source_id: _parsed(row) for row in rows}
    places: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        one = parsed[row.source_id]
        if isinstance(one, Configuration):
            places.setdefault((one.endpoint, one.app), []).append(row.organization_id)
    made = []
    for row in rows:
        if organization not in (None, row.organization_id):
            continue
        one, ours = parsed[row.source_id], known.get(row.source_id)
        findings: list[Finding] = []
        if isinstance(one, Finding):
            findings.append(one)
        else:
            sharing = [other for other in places[one.endpoint, one.app] if other != row.organization_id]
            findings += _configuration(one, sharing)
            findings += _taken_up(ours, one, sealer)
        findings.append(_route(routes, row))
        if ours is not None and ours["connection_id"] in stuck:
            findings.append(_stuck(stuck[ours["connection_id"]]))
        usable = one if isinstance(one, Configuration) else None
        made.append(Patient(row=row, configuration=usable, known=ours, findings=tuple(findings)))
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
            "app_password begins or ends with a blank, which no ari.conf can hold",
            "choose another password, in ari.conf and in the configuration",
        )
    if sharing:
        named = ", ".join(map(str, sharing[:5]))
        yield wrong(
            "configuration",
            f"the same endpoint and app as organization {named}",
            "one of them is refused: give each an app (and ARI user) of its own",
        )
    else:
        yield ok("configuration", f"app {configuration.app} on {configuration.endpoint}")


def _taken_up(
    known: database.Row | None, configuration: Configuration, sealer: sealing.Sealer | None
) -> Iterator[Finding]:
    what = "taken up"
    wait = "wait ten seconds; if it stays so, does a scheduler lead (above)?"
    if known is None:
        yield wrong(what, "not yet: our tables do not have it", wait)
        return
    if known["state"] != "active":
        yield wrong(what, f"{known['state']}: {known['reason']}", "correct what it says; it is read every few seconds")
        return
    same = (known["endpoint"], known["app"]) == (configuration.endpoint, configuration.app)
    password = _opened(known["sealed_password"], sealer)
    if sealer is not None and password is None:
        yield wrong(
            what,
            "its sealed password opens with none of the SECRET_KEYs of this environment",
            "give every process the same SECRET_KEY; one that was replaced stays listed, behind the new one",
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
        yield wrong("event socket", seen, "no call arrives. What follows here says why; else the listener's log does")


def _opened(sealed: str | None, sealer: sealing.Sealer | None) -> str | None:
    if sealer is None or sealed is None:
        return None
    try:
        return sealer.open(sealed)
    except errors.SealBroken:
        return None


def _route(routes: Routes, row: ConfigurationRow) -> Finding:
    route = routes.inbound(source_id=row.source_id, organization_id=row.organization_id)
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
        f"their runs are ended; the teardown waits for this Asterisk to answer: arictl trace {row['one']}",
    )
