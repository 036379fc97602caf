"""A resync of an Asterisk that says too much: the number of its statements does not grow with what it is told."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.asterisk import ari, events
from shared.asterisk.endpoint import Configuration
from shared.call import ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import State
from shared.storage import database, leases
from shared.storage.call_writer import CallWriter
from tests.support import round_trips
from workers import resync
from workers.asterisks import Asterisks
from workers.exclusive import Exclusive
from workers.resync import Resync

pytestmark = pytest.mark.services

PREFIX = "aip-"
CONNECTION = ConnectionVersion(1, 1)


class Asterisk:
    """Says what it is told to say, and has nothing: whatever is asked for by its name is gone."""

    configuration = Configuration(endpoint="http://a", app="a", user="a", password="secret")

    def __init__(self) -> None:
        self.channels: list[str] = []
        self.bridges: list[dict[str, Any]] = []
        self.asked: Counter[str] = Counter()
        self.removed: list[str] = []

    def request_all(self, _budget: object, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def must_probe(self, _budget: object) -> bool:
        return False

    def _answer(self, request: Any) -> Any:
        self.asked[f"{request.method} {request.path[0]}"] += 1
        if request.path[0] == "applications":
            kinds = [{"type": str(kind)} for kind in events.wanted(with_talking=False)]
            return {"channel_ids": self.channels, "events_allowed": kinds}
        if request.method == "GET" and request.path == ("bridges",):
            return self.bridges
        if request.method == "DELETE":
            self.removed.append(request.path[1])
            return None
        return errors.AsteriskRefused(404, "Channel not found")


class Connections:
    def is_preempted(self, _connection_id: int) -> bool:
        return False

    def inbound_target(self, _connection: ConnectionVersion) -> None:
        return None

    def share_an_app(self, connection_id: int, other_id: int) -> bool:
        return connection_id == other_id


@pytest.fixture
def asterisk() -> Asterisk:
    return Asterisk()


@pytest.fixture
def made(db: database.Database, writer: CallWriter, asterisk: Asterisk) -> Resync:
    class OneAsterisk:
        def at(self, _connection: ConnectionVersion, budget: Any) -> ari.Ari:
            return ari.Ari(asterisk, budget)

    return Resync(
        flow=cast(Any, None),
        writer=writer,
        inbound=cast(Any, None),
        replacements=cast(Any, None),
        connections=cast(Any, Connections()),
        asterisks=cast(Asterisks, OneAsterisk()),
        exclusive=Exclusive(leases.Leases(db), writer),
        app_holders=cast(Any, SimpleNamespace(has_lately_displaced=lambda _connection, seconds: False)),
        naming=Naming(PREFIX),
        send_later=lambda _message, _wait: None,
    )


def run(made: Resync) -> None:
    made.resync_connection(connection=CONNECTION, full=True, reason="clock")


def bridge(name: str) -> dict[str, Any]:
    return {"id": name, "channels": []}


def statements(made: Resync) -> int:
    with round_trips.recorded() as trips:
        run(made)
    return sum(len(trip) for trip in trips)


@pytest.mark.parametrize("count", [50, 5000])
def test_any_number_of_bridges_like_ours_is_judged_by_one_statement(
    made: Resync, asterisk: Asterisk, count: int
) -> None:
    run(made)
    usual = statements(made)
    asterisk.bridges = [bridge(ids.bridge_id(PREFIX, uuid.uuid4(), 1)) for _ in range(count)]
    # One to judge; the lease of the clean-up is taken and given back; findings are looked for, and written.
    assert statements(made) <= usual + 5
    assert len(asterisk.removed) == min(count, resync._JUDGED)


def test_any_number_of_originated_legs_is_judged_by_one_statement(made: Resync, asterisk: Asterisk) -> None:
    run(made)
    usual = statements(made)
    asterisk.channels = [f"{PREFIX}{uuid.uuid4().hex}-o" for _ in range(3000)]
    assert statements(made) <= usual + 1
    # Some are looked for as callers who were missed, and some as legs that ring for nothing.
    assert asterisk.asked["GET channels"] == 2 * resync._JUDGED
    assert asterisk.removed == []


def test_of_more_names_than_are_judged_each_has_its_turn(
    made: Resync, asterisk: Asterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared Asterisk nearly all of them are calls of other tenants, whose names look like orphans."""
    monkeypatch.setattr(resync, "_JUDGED", 5)
    names = {ids.bridge_id(PREFIX, uuid.uuid4(), 1) for _ in range(20)}
    asterisk.bridges = [bridge(name) for name in names]
    for _ in range(60):
        run(made)
    assert set(asterisk.removed) == names


def test_only_what_no_call_needs_is_removed(
    made: Resync, asterisk: Asterisk, db: database.Database, make: Callable[..., Call]
) -> None:
    long_ago = made.writer.store.now() - timedelta(minutes=1)
    over = make("1", state=State.ENDED, attempt=2, state_since=long_ago)
    just_over = make("2", state=State.ENDED, attempt=1)
    ending = make("3", state=State.ENDING, attempt=2, state_since=long_ago)
    others = make("4", state=State.ENDED, attempt=1, state_since=long_ago, connection_id=2, organization_id=4)
    newer = make("5", state=State.ENDED, attempt=1, state_since=long_ago)
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET outcome = 'moved' WHERE call_id = %s", [newer.call_id])
    removed = [ids.bridge_id(PREFIX, over.call_id, 2), ids.bridge_id(PREFIX, ending.call_id, 1)]
    kept = [ids.bridge_id(PREFIX, call.call_id, call.attempt) for call in (just_over, ending, others, newer)]
    asterisk.bridges = [bridge(name) for name in [*removed, *kept]]
    run(made)
    assert sorted(asterisk.removed) == sorted(removed)
