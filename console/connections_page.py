"""The pages Connections and one connection: how each Asterisk stands, in plain words, and what an operator may do."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.responses import Response

from console import acting, numbers, queries
from console.pages import Page, Visit
from shared import errors
from shared.operator import audit, connection_actions, connection_list, connection_tests, connection_words
from shared.operator.connection_list import ListedConnection
from shared.operator.connection_tests import LastTest

PATH = "/connections"
_ONE = "/connections/{connection_id:id}"
#: An operator's reason, in characters.
_REASON = 200
#: Connections on one page.
_LIMIT = 200


def show_all(visit: Visit) -> Response:
    """List connections."""
    organization, after = queries.number(visit, "organization"), queries.number(visit, "after")
    read = connection_list.read(visit.console.db, visit.console.platform.configurations)
    meant = [
        each
        for each in read.connections
        if organization in (None, each.organization_id) and (after is None or each.connection_id > after)
    ]
    values = {"organization": organization}
    return visit.render(
        "connections.html",
        rows=[(each, *connection_words.status(each)) for each in meant[:_LIMIT]],
        read=read,
        organization=organization or "",
        is_filtered=organization is not None or after is not None,
        more=queries.url(PATH, {**values, "after": meant[_LIMIT - 1].connection_id}) if len(meant) > _LIMIT else "",
    )


def show(visit: Visit) -> Response:
    """Show one connection, with what its last test has found."""
    listed = _listed(visit)
    return _render(visit, listed, tested=connection_tests.last(visit.console.db, listed[0].connection_id))


def test(visit: Visit) -> Response:
    """Check the connection as `arictl doctor` does, and show what was found: for that the user waits some seconds."""
    listed = _listed(visit)
    one = listed[0]
    action = connection_tests.action(one.connection_id, one.organization_id)
    with audit.announced(visit.console.db, acting.actor(visit), action) as announced:
        (report,) = visit.console.platform.test([one.connection_id]).connections
        announced.detail = connection_tests.detail(report.findings)
    tested = LastTest(at=datetime.now(UTC), who=visit.user.name, findings=report.findings)
    return _render(visit, listed, tested=tested)


def _render(visit: Visit, listed: list[ListedConnection], *, tested: LastTest | None) -> Response:
    connection_id = listed[0].connection_id
    notes = connection_words.notes(visit.console.db, connection_id)
    return visit.render(
        "connection.html",
        seen=[(each, *connection_words.status(each), _successor(visit, each)) for each in listed],
        first=listed[0],
        base=f"{PATH}/{connection_id}",
        tested=tested,
        tested_seconds=max(0.0, (datetime.now(UTC) - tested.at).total_seconds()) if tested is not None else None,
        notes=[(row, numbers.masked_in(row.detail.partition("\n")[0][:1000])) for row in notes],
    )


def park(visit: Visit) -> Response:
    """Close its event sockets."""
    done = connection_actions.park(visit.console.db, acting.actor(visit), _id(visit), _reason(visit))
    return _told(visit, done, "parked")


def drain(visit: Visit) -> Response:
    """Refuse its new calls."""
    done = connection_actions.drain(visit.console.db, acting.actor(visit), _id(visit), _reason(visit))
    return _told(visit, done, "drained")


def release(visit: Visit) -> Response:
    """Let it take calls again."""
    done = connection_actions.release(visit.console.db, acting.actor(visit), _id(visit))
    return _told(visit, done, "released")


def resync(visit: Visit) -> Response:
    """Ask for a full resync now."""
    with acting.queue(visit) as queue:
        done = connection_actions.resync(visit.console.db, queue, acting.actor(visit), _id(visit))
    said = (
        f"A resync was asked for, of {', '.join(done.versions)}." if done.versions else "There is nothing to compare."
    )
    return visit.see(f"{PATH}/{_id(visit)}", said)


def _told(visit: Visit, done: connection_actions.ActedOn, what: str) -> Response:
    live = f" {done.live_calls} calls go on." if done.live_calls else ""
    said = f"Connection {done.connection_id} is {what}.{live}" if done.changed else f"It was {what} already.{live}"
    return visit.see(f"{PATH}/{done.connection_id}", said)


def _id(visit: Visit) -> int:
    connection_id: int = visit.request.path_params["connection_id"]
    if connection_id >= 2**31:
        raise HTTPException(404, f"There is no connection {connection_id}.")
    return connection_id


def _listed(visit: Visit) -> list[ListedConnection]:
    """Return the connection, once for each version whose event socket is wanted."""
    read = connection_list.read(visit.console.db, visit.console.platform.configurations)
    listed = [each for each in read.connections if each.connection_id == _id(visit)]
    if not listed:
        raise HTTPException(404, f"There is no connection {_id(visit)}.")
    return listed


def _reason(visit: Visit) -> str:
    return visit.form.get("reason", "").strip()[:_REASON]


def _successor(visit: Visit, listed: ListedConnection) -> str:
    """Return which listener would take the event socket over."""
    try:
        with acting.redis_client(visit) as client:
            others = connection_words.successors(client, listed)
    except errors.TransientError as exc:
        return f"not known: {exc}"
    if not others:
        return "no other listener runs: until one does, callers wait in the dialplan"
    named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return f"{'one of ' if len(others) > 1 else ''}{named}, within 1 to 2 s"


_SUBJECT = "connection {connection_id}"
PAGES = (
    Page(path=PATH, title="Connections", navigation="Connections", show=show_all),
    Page(path=_ONE, title="Connection", show=show),
    Page(path=f"{_ONE}/test", title="Connection", act=test, action="connection test", subject=_SUBJECT),
    Page(path=f"{_ONE}/park", title="Park", act=park, action="connection park", subject=_SUBJECT),
    Page(path=f"{_ONE}/drain", title="Drain", act=drain, action="connection drain", subject=_SUBJECT),
    Page(path=f"{_ONE}/release", title="Release", act=release, action="connection unpark", subject=_SUBJECT),
    Page(path=f"{_ONE}/resync", title="Resync", act=resync, action="connection resync", subject=_SUBJECT),
)
