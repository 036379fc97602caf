"""Rows of ari.calls for tests on a real Postgres: written, and looked at from outside."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from shared.call import facts, transitions
from shared.call.calls import Call, Change
from shared.call.limits import Limits
from shared.call.states import Direction, State
from shared.call.steps import Step
from shared.storage import database
from shared.storage.call_store import ClaimRequest
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry

ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")

#: Connection 1 with two versions in the same app instance, and connection 2 of another organization.
CONNECTIONS = (
    "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 3, 'active'), (2, 4, 'active')",
    "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
    " VALUES (1, 1, 'http://a', 'a', 'a', 'x'), (1, 2, 'http://a', 'a', 'a', 'y'), (2, 1, 'http://b', 'b', 'b', 'z')",
)


def make_call(store: PostgresCalls, channel_id: str = "1.1", **fields: Any) -> Call:
    """Write a call, `received` by default; return it as written."""
    now = store.now()
    values: dict[str, Any] = {
        "connection_id": 1, "connection_version": 1, "organization_id": 3, "channel_id": channel_id,
        "channel_created": "c", "entry": 1, "direction": Direction.INBOUND, "state": State.RECEIVED,
        "received_at": now, "state_since": now, "deadline_at": now + timedelta(seconds=3),
    } | fields  # fmt: skip
    call = Call(call_id=uuid.uuid4(), **values)
    assert store.insert(call, [], None)
    return call


def claim_request(step: Step = Step.ADMISSION, owner: str = "w1", seconds: float = 5.0) -> ClaimRequest:
    """Return a claim to take."""
    return ClaimRequest(owner=owner, step=step, duration=timedelta(seconds=seconds))


def admitted(call: Call, store: PostgresCalls) -> Call:
    """Return what an admission makes of a call. Nothing is stored."""
    return transitions.advance(call, ADMITTED, store.now(), Limits())[0]


def save(
    store: PostgresCalls,
    before: Call,
    after: Call,
    fact: facts.Fact = ADMITTED,
    *,
    timeline: Sequence[TimelineEntry] = (),
    owner: str = "",
    claim: ClaimRequest | None = None,
) -> Call | None:
    """Store one change of a call."""
    return store.save([Change(before=before, after=after, fact=fact)], timeline=timeline, owner=owner, claim=claim)


def claim_of(db: database.Database, call: Call) -> tuple[str | None, str | None]:
    """Return the owner and the step of a call's claim."""
    row = one(db, "SELECT claim_owner, claim_step, claim_until FROM ari.calls WHERE call_id = %s", call.call_id)
    assert (row["claim_owner"] is None) == (row["claim_until"] is None)
    return row["claim_owner"], row["claim_step"]


def one(db: database.Database, query: str, *values: object) -> dict[str, Any]:
    """Return the row of a query."""
    with db.connection() as connection:
        row = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def timeline(db: database.Database, call: Call) -> list[dict[str, Any]]:
    """Return a call's timeline."""
    with db.connection() as connection:
        return connection.execute(
            "SELECT * FROM ari.timeline WHERE call_id = %s ORDER BY id", [call.call_id]
        ).fetchall()


def names(db: database.Database, call: Call) -> list[str]:
    """Return the names in a call's timeline."""
    return [row["name"] for row in timeline(db, call)]
