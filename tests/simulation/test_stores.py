"""The store in memory and the one in Postgres do the same: random statements, run on both."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared import errors
from shared.call import facts
from shared.call.calls import Call, Change
from shared.call.ids import ConnectionVersion
from shared.call.limits import Limits
from shared.call.states import Direction, State
from shared.call.steps import Step
from shared.storage import database
from shared.storage.call_store import CallStore, ClaimRequest
from shared.storage.call_writer import Transition
from shared.storage.postgres_calls import PostgresCalls
from tests.simulation.stores import MemoryStore
from tests.simulation.world import Latch

pytestmark = pytest.mark.services

_T = TypeVar("_T")
LIMITS = Limits()
HOUR = timedelta(hours=1)


class Always:
    """A database server that never fails and never waits."""

    def __init__(self, store: PostgresCalls) -> None:
        self.moment = store.now

    def statement(self, what: str, effect: Callable[[], _T], call_id: uuid.UUID | None = None) -> _T:
        return effect()

    def wait(self, latch: Latch, seconds: float) -> bool:
        raise AssertionError("a lock is waited for, with no other transaction open")

    def connected(self, roll_back: Callable[[], None]) -> None:
        pass


class Following(MemoryStore):
    """Calls in memory, with the versions that Postgres has drawn: there each statement is run first."""

    def __init__(self, postgres: PostgresCalls) -> None:
        super().__init__(Always(postgres), lambda *_: None, app_of=APPS.__getitem__)
        self._first = postgres

    def new_version(self, call_id: uuid.UUID) -> int:
        with self._first.db.connection() as connection:
            row = connection.execute("SELECT lock_version FROM ari.calls WHERE call_id = %s", [call_id]).fetchone()
        assert row is not None
        return int(row["lock_version"])


class RolledBack(Exception):
    """Ends a transaction without a commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both stores, and the calls as last read."""

    postgres: PostgresCalls
    memory: MemoryStore
    read: dict[uuid.UUID, Call]

    def both(self, do: Callable[[Any], _T]) -> _T | None:
        """Do the same on both; check that the results are the same."""
        first, second = _result(do, self.postgres), _result(do, self.memory)
        assert first == second
        return first[0]


def _result(do: Callable[[Any], _T], store: object) -> tuple[_T | None, str]:
    try:
        return do(store), ""
    except (errors.PipelineError, RolledBack) as exc:
        return None, type(exc).__name__


def call(number: int, now: datetime) -> Call:
    """Return one of a few calls; some share a channel, an entry, a request or a run."""
    one = Call(
        call_id=uuid.UUID(int=number + 1), connection_id=1, connection_version=1, organization_id=3,
        channel_id="1.1", channel_created="c", entry=1, direction=Direction.INBOUND, state=State.RECEIVED,
        received_at=now + timedelta(seconds=number), state_since=now, deadline_at=now + HOUR,
    )  # fmt: skip
    request = {"direction": Direction.OUTBOUND, "state": State.ORIGINATING, "channel_created": "", "request_id": "r"}
    return replace(one, **[
        {},
        {"entry": 2, "deadline_at": now - HOUR},
        {"channel_id": "1.1"},
        {"channel_id": "o1", "deadline_at": now - 2 * HOUR, **request},
        {"channel_id": "o2", "workflow_run_id": 7, **request},
        {"channel_id": "1.3", "state": State.PREPARED, "workflow_run_id": 7, "attempt": 1},
        {"channel_id": "1.4", "state": State.CONNECTED, "connection_id": 2},
        {"connection_id": 3},
        {"connection_id": 4, "organization_id": 4},
    ][number])  # type: ignore[arg-type]  # fmt: skip


def fact(number: int, now: datetime) -> facts.Fact:
    """Return one of a few facts."""
    every: list[facts.Fact] = [
        facts.Admitted(workflow_id=1, user_id=2, media_client="media"),
        facts.RunCreated(workflow_run_id=7),
        facts.AttemptBegun(attempt=1, nonce="4f2a9c01", in_doubt_until=now + HOUR),
        facts.LegsCreated(attempt=1, nonce="4f2a9c01"),
        facts.MediaReady(attempt=1, nonce="4f2a9c01"),
        facts.DialBegun(in_doubt_until=now + HOUR),
        facts.Originated(),
        facts.FarEndAnswered(channel_name="PJSIP/x", channel_created="c", stamp="2026-05-01T12:00:00.000+0000"),
        facts.CallerLeft(stamp="2026-05-01T12:00:00.000+0000"),
        facts.DeadlinePassed(),
        facts.LegsRemoved(),
    ]
    return every[number]


#: Connection → organization and app instance. An app instance has several connections, one of another organization.
APPS = {1: (3, "a"), 2: (4, "b"), 3: (3, "a"), 4: (4, "a")}
_COUNT = 9
_calls, _facts = st.integers(0, _COUNT - 1), st.integers(0, 10)
_owners = st.sampled_from(["a", "b"])
_claims = st.builds(
    ClaimRequest, owner=_owners, step=st.sampled_from(Step), duration=st.sampled_from([HOUR, -HOUR])
) | st.none()  # fmt: skip
_statements = st.one_of(
    st.tuples(st.just("insert"), _calls, _claims),
    st.tuples(st.just("insert_in"), _calls, st.booleans()),
    st.tuples(st.just("insert_with_commit"), st.lists(_calls, min_size=1, max_size=2), _claims, st.booleans()),
    st.tuples(st.just("claim"), _calls, _claims),
    st.tuples(st.just("save"), _calls, _facts, _owners, _claims, st.booleans()),
    st.tuples(st.just("save"), _calls, _facts, _owners, st.none(), st.just(True)),
    st.tuples(st.just("save"), _calls, _facts, _owners, st.none(), st.just(True)),
    st.tuples(
        st.just("save_with_commit"),
        _calls,
        st.lists(_facts, min_size=1, max_size=3),
        _owners,
        _claims,
        st.booleans(),
        st.booleans(),
    ),
    st.tuples(st.just("note"), _calls, _facts, _owners),
    st.tuples(st.just("release"), _calls, _owners),
    st.tuples(st.just("look")),
)


@pytest.fixture
def postgres(database_url: str) -> Iterator[PostgresCalls]:
    db = database.Database(database_url, size=2)
    db.open()
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state)"
            " VALUES (1, 3, 'active'), (2, 4, 'active'), (3, 3, 'active'), (4, 4, 'active')"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x'), (2, 1, 'http://b', 'b', 'b', 'z'),"
            " (3, 1, 'http://a', 'a', 'a', 'x'), (4, 1, 'http://a', 'a', 'a', 'x')"
        )
    yield PostgresCalls(db, who="test", prefix="aip-")
    db.close()


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
# One run for two calls, which random statements seldom lead to.
@example(
    inserted=[(0, None), (5, None)],
    statements=[
        ("save", 0, 0, "a", None, True),
        ("save", 0, 1, "a", None, True),
        ("save_with_commit", 0, [1], "a", None, True, True),
    ],
)
# A call that was written since it was read.
@example(
    inserted=[(0, None)],
    statements=[
        ("save", 0, 0, "a", None, True),
        *(("save_with_commit", 0, [which], "a", None, False, True) for which in range(11)),
    ],
)
@given(
    inserted=st.lists(st.tuples(_calls, _claims), max_size=_COUNT),
    statements=st.lists(_statements, min_size=5, max_size=30),
)
def test_both_stores_do_the_same(
    postgres: PostgresCalls, inserted: list[tuple[int, ClaimRequest | None]], statements: list[tuple[Any, ...]]
) -> None:
    with postgres.db.connection() as connection:
        connection.execute("TRUNCATE ari.calls, ari.attempts, ari.timeline")
    now = postgres.now()
    memory = Following(postgres)
    pair = Pair(postgres=postgres, memory=memory, read={})
    for number in range(_COUNT):
        pair.read[call(number, now).call_id] = call(number, now)
    for number, claim in inserted:
        _insert(pair, now, number, claim)
    for what, *arguments in statements:
        globals()[f"_{what}"](pair, now, *arguments)
    _look(pair, now)


def _insert(pair: Pair, now: datetime, number: int, claim: ClaimRequest | None) -> None:
    pair.both(lambda store: store.insert(call(number, now), [], claim))


def _insert_in(pair: Pair, now: datetime, number: int, commits: bool) -> None:
    def insert(store: CallStore) -> bool:
        with store.transaction() as connection:
            done = store.insert_in(connection, call(number, now))
            if not commits:
                raise RolledBack
        return done

    pair.both(insert)


def _insert_with_commit(
    pair: Pair, now: datetime, numbers: list[int], claim: ClaimRequest | None, commits: bool
) -> None:
    def insert(store: CallStore) -> None:
        with store.transaction() as connection:
            for number in numbers:
                new = call(number, now)
                store.insert_with_commit(connection, new, [], claim, changes=_changes(new, [0], now))
            if not commits:
                raise RolledBack

    pair.both(insert)


def _claim(pair: Pair, now: datetime, number: int, claim: ClaimRequest | None) -> None:
    if claim is not None:
        pair.both(lambda store: store.claim(call(number, now).call_id, claim))


def _save(  # noqa: PLR0917 - as the statement has them
    pair: Pair, now: datetime, number: int, which: int, owner: str, claim: ClaimRequest | None, is_fresh: bool
) -> None:
    call_id = call(number, now).call_id
    if is_fresh and (found := pair.both(lambda store: store.load(call_id))) is not None:
        pair.read[call_id] = found
    before = pair.read[call_id]
    changes = _changes(before, [which], now)
    if changes and (claim is None or claim.owner == owner):
        pair.both(lambda store: store.save(changes, timeline=[], owner=owner, claim=claim))


def _changes(before: Call, which: list[int], now: datetime) -> list[Change]:
    learned = Transition(before, now, LIMITS)
    for number in which:
        learned.apply(fact(number, now))
    return learned.changes


def _save_with_commit(  # noqa: PLR0917 - as the statement has them
    pair: Pair,
    now: datetime,
    number: int,
    which: list[int],
    owner: str,
    claim: ClaimRequest | None,
    locks: bool,
    commits: bool,
) -> None:
    call_id = call(number, now).call_id

    def save(store: CallStore) -> Call | None:
        with store.transaction() as connection:
            before = store.lock(connection, call_id) if locks else pair.read[call_id]
            changes = _changes(before, which, now) if before is not None else []
            if not changes:
                return None
            saved = store.save_with_commit(connection, changes, timeline=[], owner=owner, claim=claim)
            if not commits:
                raise RolledBack
        return saved()

    if claim is None or claim.owner == owner:
        pair.both(save)


def _note(pair: Pair, now: datetime, number: int, which: int, owner: str) -> None:
    call_id = call(number, now).call_id
    before = pair.both(lambda store: store.load(call_id))
    changes = _changes(before, [which], now) if before is not None else []
    # What is noted in a claim leaves the call in its state.
    if changes and changes[-1].after.state is changes[0].before.state:
        pair.both(lambda store: store.save(changes, timeline=[], owner=owner, claim=None, keeps_claim=True))


def _release(pair: Pair, now: datetime, number: int, owner: str) -> None:
    pair.both(lambda store: store.release(call(number, now).call_id, owner))


def _look(pair: Pair, now: datetime) -> None:
    for number in range(_COUNT):
        one = call(number, now)
        pair.both(lambda store, one=one: store.load(one.call_id))  # type: ignore[misc]
        for of in APPS:
            entry = (of, one.channel_id, one.channel_created)
            pair.both(lambda store, entry=entry: store.last_entry(*entry))  # type: ignore[misc]
            pair.both(lambda store, entry=entry: store.originated(*entry[:2]))  # type: ignore[misc]
    everyone = [call(number, now) for number in range(_COUNT)]
    pair.both(lambda store: store.load_all([one.call_id for one in everyone]))
    pair.both(lambda store: store.originated_all(1, [one.channel_id for one in everyone]))
    pair.both(lambda store: store.overdue(2))
    pair.both(_slots)
    for connection_id in APPS:
        pair.both(lambda store, of=connection_id: sorted(  # type: ignore[misc]
            (str(found.call.call_id), found.call, found.is_claimed)
            for found in store.open_calls(ConnectionVersion(of, 1))))  # fmt: skip


def _slots(store: CallStore) -> int:
    with store.transaction() as connection:
        store.lock_organization(connection, 3)
        return store.slots_used(connection, 3)


def test_a_transaction_that_is_rolled_back_leaves_nothing_locked(postgres: PostgresCalls) -> None:
    memory = MemoryStore(Always(postgres), lambda *_: None)
    one = call(0, postgres.now())
    with suppress(RolledBack), memory.transaction() as connection:
        assert memory.insert_in(connection, one)
        raise RolledBack
    assert memory.load(one.call_id) is None
    assert memory.insert(one, [], None)
