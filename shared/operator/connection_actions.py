"""What an operator does to a connection: park, drain, release, resync. Each may be repeated.

A *parked* connection has no event socket, a *drained* one takes no new calls and keeps its socket. This is so for
its later versions, too, until it is released. Its calls in progress go on. The platform's tables know nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from shared import errors, messages
from shared.call.ids import ConnectionVersion
from shared.operator import audit
from shared.operator.audit import Action, Actor, Outcome
from shared.storage import app_holders, connections, database

#: Longer reasons are cut.
_LENGTH = 200


class Suspension(StrEnum):
    """Why a connection takes no new calls."""

    PARK = "park"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActedOn:
    """What an order has come to, of one connection."""

    connection_id: int
    organization_id: int
    #: False: it was so already.
    changed: bool
    #: Its calls that have not ended.
    live_calls: int
    #: Its versions whose event socket is wanted, such as `7:2`.
    versions: tuple[str, ...]


_LOCK = """
SELECT connection_id, organization_id, state, suspension FROM ari.connections
WHERE connection_id = %(connection)s FOR UPDATE
"""
_SUSPEND = """
UPDATE ari.connections SET suspension = %(suspension)s, suspended_at = clock_timestamp(), suspension_reason = %(reason)s
WHERE connection_id = %(connection)s
"""
_RELEASE = """
UPDATE ari.connections SET suspension = NULL, suspended_at = NULL, suspension_reason = NULL
WHERE connection_id = %(connection)s
"""
#: As preempted, no resync takes what is in its app for new callers. One that waits to be opened for the first time is
#: kept closed by the suspension alone: who has its app is asked on. A quarantine would end by itself.
_CLOSE = """
UPDATE ari.connection_versions SET parked_at = clock_timestamp(), listener_id = NULL, previous_listener_id = NULL,
    previous_epoch = NULL, preempted_at = coalesce(preempted_at, clock_timestamp()), socket_state = 'parked',
    socket_since = clock_timestamp(), last_error = %(error)s
WHERE connection_id = %(connection)s AND retired_at IS NULL AND asked_at IS NULL
  AND (parked_at IS NULL OR socket_state = 'quarantined')
"""
_STATE = """
SELECT (SELECT count(*) FROM ari.calls WHERE connection_id = %(connection)s AND state <> 'ended') AS live,
       (SELECT coalesce(array_agg(version ORDER BY version), '{}') FROM ari.connection_versions
        WHERE connection_id = %(connection)s AND retired_at IS NULL) AS versions
"""
_KNOWN = "SELECT connection_id FROM ari.connections WHERE connection_id = ANY(%s)"
_OF_ORGANIZATION = """
SELECT connection_id FROM ari.connections WHERE organization_id = %s AND state <> 'removed' ORDER BY connection_id
"""
_PARKED = """
SELECT 1 FROM ari.connection_versions
WHERE connection_id = %s AND parked_at IS NOT NULL AND retired_at IS NULL AND asked_at IS NULL
"""


class ResyncQueue(Protocol):
    """Where resyncs are asked for. `queues.BrokerCommandQueue` is the adapter."""

    def send_all(self, made: Iterable[messages.Message]) -> None:
        """Enqueue messages. Raises QueueUnavailable."""


def of_organization(db: database.Database, organization_id: int) -> list[int]:
    """Return an organization's connections. Raises InvalidRequest if it has none."""
    with db.connection() as connection:
        rows = connection.execute(_OF_ORGANIZATION, [organization_id]).fetchall()
    if not rows:
        raise errors.InvalidRequest(f"organization {organization_id} has no connection: arictl connection list")
    return [row["connection_id"] for row in rows]


def require(db: database.Database, connection_ids: Collection[int]) -> None:
    """Raise InvalidRequest for one that there is not."""
    with db.connection() as connection:
        rows = connection.execute(_KNOWN, [list(connection_ids)]).fetchall()
    for one in set(connection_ids) - {row["connection_id"] for row in rows}:
        raise errors.InvalidRequest(_none(one))


def park(db: database.Database, actor: Actor, connection_id: int, reason: str = "") -> ActedOn:
    """Close its event sockets, and open none until it is released. Raises InvalidRequest if there is none."""
    return _suspend(db, actor, connection_id, Suspension.PARK, reason)


def drain(db: database.Database, actor: Actor, connection_id: int, reason: str = "") -> ActedOn:
    """Refuse its new calls, inbound and outbound, until it is released. Raises InvalidRequest if there is none."""
    return _suspend(db, actor, connection_id, Suspension.DRAIN, reason)


def release(db: database.Database, actor: Actor, connection_id: int) -> ActedOn:
    """End a suspension, a quarantine, or the leaving of an app to a competing client.

    An app that another process holds is none of these: it is taken over.

    Raises:
        InvalidRequest: There is no such connection.
    """
    with _refusals(db, actor, "connection unpark", connection_id), db.transaction() as connection:
        row = _locked(connection, connection_id)
        was_parked = connection.execute(_PARKED, [connection_id]).fetchone() is not None
        changed = row["suspension"] is not None or was_parked
        if changed:
            connection.execute(_RELEASE, {"connection": connection_id})
            connection.execute(connections.UNPARK, [connection_id])
        return _recorded(
            connection, actor, "connection unpark", row, changed=changed, detail={"suspension": row["suspension"]}
        )


def take_over(
    db: database.Database, actor: Actor, organization_id: int, connection_id: int | None
) -> list[database.Row]:
    """Open the sockets of connections whose app another process holds. Returns connection_id, version, app of each.

    Raises:
        InvalidConfiguration: There are none.
    """
    values = {"organization": organization_id, "connection": connection_id}
    subject = f"organization {organization_id}" if connection_id is None else f"connection {connection_id}"
    action = Action(name="connection take-over", subject=subject, organization_id=organization_id)
    with audit.recorded(db, actor, action) as recording, recording.connection() as connection:
        rows = connection.execute(app_holders.TAKE_OVER, values).fetchall()
        if not rows:
            raise errors.InvalidConfiguration(
                f"organization {organization_id} has no connection that another process holds"
            )
    return rows


def resync(db: database.Database, queue: ResyncQueue, actor: Actor, connection_id: int) -> ActedOn:
    """Ask for a full resync of each of its versions, now. One that waits already is not asked for twice.

    Raises:
        InvalidRequest: There is no such connection.
        QueueUnavailable: Redis is away: nothing was asked for.
    """
    with _refusals(db, actor, "connection resync", connection_id), db.transaction() as connection:
        row = _locked(connection, connection_id)
        state = _state(connection, row, changed=True)
    action = Action(
        name="connection resync", subject=f"connection {connection_id}", organization_id=row["organization_id"]
    )
    with audit.announced(db, actor, action) as result:
        queue.send_all(
            messages.of_resync(connection=ConnectionVersion.parse(version), reason="ordered by an operator", full=True)
            for version in state.versions
        )
        if not state.versions:
            result.outcome = Outcome.NOTHING
    return state


def _suspend(db: database.Database, actor: Actor, connection_id: int, suspension: Suspension, reason: str) -> ActedOn:
    with _refusals(db, actor, f"connection {suspension}", connection_id), db.transaction() as connection:
        row = _locked(connection, connection_id)
        if row["state"] == "removed":
            raise errors.InvalidRequest(f"connection {connection_id} is removed: it takes no calls")
        changed = row["suspension"] != suspension
        if changed:
            text = connections.SUSPENDED[suspension] + (f": {reason[:_LENGTH]}" if reason else "")
            values = {
                "connection": connection_id,
                "suspension": str(suspension),
                "reason": reason[:_LENGTH],
                "error": text,
            }
            connection.execute(_SUSPEND, values)
            if suspension is Suspension.PARK:
                connection.execute(_CLOSE, values)
            elif row["suspension"] is not None:
                connection.execute(connections.UNPARK, [connection_id])
        detail = {"reason": reason} if reason else {}
        return _recorded(connection, actor, f"connection {suspension}", row, changed=changed, detail=detail)


def _refusals(
    db: database.Database, actor: Actor, name: str, connection_id: int
) -> contextlib.AbstractContextManager[None]:
    """Record what an error ends: the row of what is done is part of its transaction, and is rolled back with it."""
    return audit.failures(db, actor, Action(name=name, subject=f"connection {connection_id}"))


def _locked(connection: database.Connection, connection_id: int) -> database.Row:
    row = connection.execute(_LOCK, {"connection": connection_id}).fetchone()
    if row is None:
        raise errors.InvalidRequest(_none(connection_id))
    return row


def _none(connection_id: int) -> str:
    return f"no connection {connection_id}: arictl connection list"


def _recorded(
    connection: database.Connection,
    actor: Actor,
    name: str,
    row: database.Row,
    *,
    changed: bool,
    detail: Mapping[str, object],
) -> ActedOn:
    subject = f"connection {row['connection_id']}"
    action = Action(name=name, subject=subject, organization_id=row["organization_id"], detail=detail)
    audit.record(connection, actor, action, Outcome.DONE if changed else Outcome.NOTHING)
    return _state(connection, row, changed=changed)


def _state(connection: database.Connection, row: database.Row, *, changed: bool) -> ActedOn:
    connection_id = row["connection_id"]
    state = connection.execute(_STATE, {"connection": connection_id}).fetchone()
    assert state is not None
    return ActedOn(
        connection_id=connection_id,
        organization_id=row["organization_id"],
        changed=changed,
        live_calls=state["live"],
        versions=tuple(f"{connection_id}:{version}" for version in state["versions"]),
    )
