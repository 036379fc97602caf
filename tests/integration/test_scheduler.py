"""The scheduler's parts on a real Postgres and Redis, with listeners played by hand."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import dramatiq
import pytest
import redis

from scheduler import actions, sweep
from scheduler.assigner import Assigner
from scheduler.leader import Lease
from scheduler.listeners import Listeners as SeenListeners
from scheduler.listeners import Sight
from scheduler.reconciler import Reconciler
from scheduler.resyncs import Resyncs
from scheduler.socket_rows import Sockets
from shared import assignments, errors, keys, messages, queues
from shared.assignments import Assignment, Report, SocketState
from shared.call.calls import Call, Direction, State
from shared.call.limits import Limits, Step
from shared.platform import dograh
from shared.process import sealing
from shared.storage import connections, database
from shared.storage.call_store import ClaimRequest, PostgresStore
from shared.storage.call_writer import CallWriter
from shared.storage.connections import Connections
from tests import certificates, queued

pytestmark = pytest.mark.services

SEALER = sealing.Sealer(("a key of the scheduler's tests",))


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=6)
    made.open()
    yield made
    made.close()


def rows(db: database.Database, query: str, *values: object) -> list[dict[str, Any]]:
    with db.connection() as connection:
        return connection.execute(query, values).fetchall()


def execute(db: database.Database, query: str, *values: object) -> None:
    with db.connection() as connection:
        connection.execute(query, values)


# ── configurations ───────────────────────────────────────────────────────────────────────────────────────────────────


class Rows:
    """The platform's configurations, as a test sets them."""

    def __init__(self) -> None:
        self.values: dict[int, object] = {}
        self.away = False

    def set(self, source_id: int, **changes: object) -> None:
        value = {"provider": "ari", "ari_endpoint": f"http://pbx{source_id}", "app_name": "a", "app_password": "p"}
        self.values[source_id] = value | changes

    def all(self) -> list[dograh.ConfigurationRow]:
        if self.away:
            raise errors.DatabaseUnavailable("away")
        return [
            dograh.ConfigurationRow(source_id=source_id, organization_id=100 + source_id, value=value)
            for source_id, value in self.values.items()
        ]


@pytest.fixture
def platform() -> Rows:
    return Rows()


@pytest.fixture
def reconciler(db: database.Database, platform: Rows) -> Reconciler:
    return Reconciler(db, platform, SEALER)


def known(db: database.Database) -> dict[int, tuple[str, str, int]]:
    found = rows(db, "SELECT source_id, state, reason, version FROM ari.connections")
    return {row["source_id"]: (row["state"], row["reason"], row["version"]) for row in found}


def versions(db: database.Database, source_id: int) -> list[dict[str, Any]]:
    query = "SELECT v.* FROM ari.connection_versions v JOIN ari.connections USING (connection_id) WHERE source_id = %s"
    return rows(db, query + " ORDER BY v.version", source_id)


def test_a_configuration_becomes_a_connection(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1, ari_endpoint="HTTP://Pbx:80/x/", app_password="p@ss & # %")
    reconciler.reconcile()
    assert known(db) == {1: ("active", "", 1)}
    (version,) = versions(db, 1)
    assert (version["endpoint"], version["app"], version["ari_user"]) == ("http://pbx/x", "a", "a")
    assert SEALER.open(version["sealed_password"]) == "p@ss & # %"
    assert rows(db, "SELECT organization_id FROM ari.connections") == [{"organization_id": 101}]


def test_what_did_not_change_stays(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1)
    reconciler.reconcile()
    before = versions(db, 1)
    platform.set(1, inbound_workflow_id=5, ws_client_name="other", from_numbers=["+49"], ari_endpoint="http://PBX1:80/")
    reconciler.reconcile()
    assert versions(db, 1) == before


@pytest.mark.parametrize("changes", [{"app_password": "new"}, {"ari_endpoint": "http://moved"}, {"app_name": "b"}])
def test_what_the_socket_needs_makes_a_new_version(
    db: database.Database, platform: Rows, reconciler: Reconciler, changes: dict[str, str]
) -> None:
    platform.set(1)
    reconciler.reconcile()
    old = versions(db, 1)[0]
    platform.set(1, **changes)
    reconciler.reconcile()
    assert known(db) == {1: ("active", "", 2)}
    first, second = versions(db, 1)
    assert first["superseded_at"] is not None
    assert {**first, "superseded_at": None} == old, "a version is never changed once written"
    assert (second["superseded_at"], second["epoch"], second["listener_id"]) == (None, 0, None)


def test_a_changed_ca_bundle_makes_a_new_version_that_older_calls_use_as_well(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    old, new = (certificates.issue(name, authority=True).pem for name in ("old", "new"))
    connections = Connections(db)
    listeners.beat("l1")
    for bundle in (None, old, new):
        platform.set(1, ari_endpoint="https://pbx1", ari_ca_bundle=bundle)
        for _ in range(2):
            reconciler.reconcile()
    assigner.tick()
    assert [version["ca_bundle"] for version in versions(db, 1)] == [None, old, new]
    assert listeners.assigned("l1")["1:3"].ca_bundle == new
    assert [getattr(connections.version(1, number), "ca_bundle", "") for number in (1, 2, 3)] == [None, old, new]
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connected' WHERE version = 3")
    first = connections.version(1, 1)
    assert first is not None
    assert first.ca_bundle == new, "what is connected now is known to be right"
    entrance = connections.inbound_target(1, 1)
    assert entrance is not None
    assert entrance.serving is not None, "the place is the same"
    damaged = new[:36] + "AAAA" + new[40:]
    platform.set(1, ari_endpoint="https://pbx1", ari_ca_bundle=damaged)
    reconciler.reconcile()
    state, reason, _ = known(db)[1]
    assert state == "refused"
    assert "ari_ca_bundle contains a certificate that cannot be read" in reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"provider": "ari"}, "app_name is missing"),
        (["provider"], "not a JSON object"),
        (None, "not a JSON object"),
        ({"provider": "ari", "app_name": "a\x00", "app_password": "p", "ari_endpoint": "http://x"}, "app_name"),
        ({"provider": "ari", "app_name": "\ud800", "app_password": "p", "ari_endpoint": "http://x"}, "app_name"),
        ({"provider": "ari", "app_name": "a", "app_password": "\udc00", "ari_endpoint": "http://x"}, "app_password"),
        ({"provider": "ari", "app_name": "a", "app_password": "p", "ari_endpoint": "ftp://x"}, "ari_endpoint"),
    ],
)
def test_a_bad_row_is_reported_and_the_others_go_on(
    db: database.Database, platform: Rows, reconciler: Reconciler, value: object, reason: str
) -> None:
    platform.set(1)
    platform.values[2] = value
    platform.set(3)
    reconciler.reconcile()
    found = known(db)
    assert {source: row[0] for source, row in found.items()} == {1: "active", 2: "refused", 3: "active"}
    assert reason in found[2][1]
    # Repaired, it is taken up.
    platform.set(2)
    reconciler.reconcile()
    assert known(db)[2] == ("active", "", 1)


def test_a_row_that_breaks_us_is_that_row_s_fault(
    db: database.Database, platform: Rows, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = SEALER.seal

    def breaking(secret: str) -> str:
        if secret == "break":
            raise RuntimeError(secret)
        return seal(secret)

    monkeypatch.setattr(SEALER, "seal", breaking)
    platform.set(1, app_password="break")
    platform.set(2)
    reconciler.reconcile()
    assert known(db) == {2: ("active", "", 1)}


def test_a_row_that_turned_bad_drains(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1)
    reconciler.reconcile()
    platform.set(1, app_name=None)
    reconciler.reconcile()
    assert known(db) == {1: ("refused", "app_name is missing", 1)}
    assert versions(db, 1)[0]["superseded_at"] is not None
    platform.set(1)
    reconciler.reconcile()
    assert known(db) == {1: ("active", "", 2)}


def test_one_place_belongs_to_the_first_that_its_asterisk_accepted(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    # Whoever was first with a wrong password keeps nobody out, however the place is spelt.
    platform.set(1, ari_endpoint="http://pbx", app_password="guessed")
    platform.set(2, ari_endpoint="HTTP://PBX:80/ari/")
    platform.set(3, ari_endpoint="http://pbx", app_name="other")
    reconciler.reconcile()
    assert [row[0] for row in known(db).values()] == ["active"] * 3
    listeners.beat("l1")
    assigner.tick()
    held = {assignment.connection_id: assignment for assignment in listeners.assigned("l1").values()}
    listeners.report("l1", held[1], SocketState.CONNECTING, error="401")
    listeners.report("l1", held[2])
    assigner.tick()
    reconciler.reconcile()
    refusal = "endpoint and app are those of configuration 2, which their Asterisk accepted first"
    assert known(db)[1] == ("refused", refusal, 1)
    assert known(db)[2][0] == known(db)[3][0] == "active"
    assigner.tick()
    assert {assignment.connection_id for assignment in listeners.assigned("l1").values()} == {2, 3}
    # Its owner's new password is the owner's still.
    platform.set(2, ari_endpoint="http://pbx", app_password="new")
    reconciler.reconcile()
    assert (known(db)[1][0], known(db)[2]) == ("refused", ("active", "", 2))
    del platform.values[2]
    reconciler.reconcile()
    reconciler.reconcile()
    assert known(db)[1][0] == "active"


def test_a_removed_configuration_is_removed(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1)
    platform.set(2)
    reconciler.reconcile()
    del platform.values[1]
    reconciler.reconcile()
    assert known(db)[1] == ("removed", "configuration removed", 1)
    assert versions(db, 1)[0]["superseded_at"] is not None
    changed = rows(db, "SELECT changed_at FROM ari.connections WHERE source_id = 1")
    reconciler.reconcile()
    assert rows(db, "SELECT changed_at FROM ari.connections WHERE source_id = 1") == changed


def test_losing_over_half_at_once_is_believed_the_second_time(
    db: database.Database, platform: Rows, reconciler: Reconciler
) -> None:
    for source_id in range(1, 6):
        platform.set(source_id)
    reconciler.reconcile()
    kept = platform.values
    platform.values = {1: kept[1], 2: kept[2]}
    reconciler.reconcile()
    assert {row[0] for row in known(db).values()} == {"active"}
    # A read that is whole again starts anew.
    platform.values = kept
    reconciler.reconcile()
    platform.values = {}
    reconciler.reconcile()
    assert {row[0] for row in known(db).values()} == {"active"}
    reconciler.reconcile()
    assert {row[0] for row in known(db).values()} == {"removed"}


def test_losing_two_of_five_is_believed_at_once(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    for source_id in range(1, 6):
        platform.set(source_id)
    reconciler.reconcile()
    del platform.values[1], platform.values[2]
    reconciler.reconcile()
    assert sorted(row[0] for row in known(db).values()) == ["active"] * 3 + ["removed"] * 2


def test_a_read_that_fails_removes_nothing(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1)
    reconciler.reconcile()
    platform.away = True
    for _ in range(3):
        with pytest.raises(errors.DatabaseUnavailable):
            reconciler.reconcile()
    assert known(db) == {1: ("active", "", 1)}


def test_a_key_that_was_lost_seals_anew(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    platform.set(1)
    reconciler.reconcile()
    other = sealing.Sealer(("an entirely different key",))
    Reconciler(db, platform, other).reconcile()
    assert known(db)[1] == ("active", "", 2)
    assert other.open(versions(db, 1)[1]["sealed_password"]) == "p"


# ── the lease ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_leads_and_the_other_waits(db: database.Database) -> None:
    one, two = Lease(db, holder="one", seconds=5), Lease(db, holder="two", seconds=5)
    one.renew()
    two.renew()
    assert (one.held, one.term, two.held) == (True, 1, False)
    one.renew()
    assert one.term == 1


def test_a_lease_that_ran_out_is_taken_over_with_a_higher_term(db: database.Database) -> None:
    one, two = Lease(db, holder="one", seconds=0.2), Lease(db, holder="two", seconds=5)
    one.renew()

    def taken_over() -> bool:
        two.renew()
        return two.held

    until(taken_over, "taken over")
    assert not one.held, "it ends here before it ends for others"
    assert (one.term, two.term) == (1, 2)
    one.renew()
    assert not one.held


def test_a_lease_let_go_is_taken_at_once(db: database.Database) -> None:
    one, two = Lease(db, holder="one", seconds=60), Lease(db, holder="two", seconds=60)
    one.renew()
    two.release()
    two.renew()
    assert not two.held, "only the holder lets go"
    one.release()
    two.renew()
    assert (one.held, two.held, two.term) == (False, True, 2)


def test_a_leader_without_a_database_leads_no_longer_than_its_lease(db: database.Database) -> None:
    lease = Lease(db, holder="one", seconds=0.3)
    lease.renew()
    db.close()
    lease.renew()
    assert lease.held
    until(lambda: not lease.held, "given up")


def until(holds: Callable[[], object], what: str, seconds: float = 4.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


# ── assignments ──────────────────────────────────────────────────────────────────────────────────────────────────────

TIMEOUT = 3.0


class Listeners:
    """Listeners as Redis shows them."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def beat(self, *names: str) -> None:
        self.redis.zadd(keys.LISTENERS, {name: self.now_ms() for name in names})

    def die(self, name: str) -> None:
        self.redis.zadd(keys.LISTENERS, {name: self.now_ms() - int(TIMEOUT * 1000) - 500})

    def assigned(self, name: str) -> dict[str, Assignment]:
        texts = cast(dict[bytes, bytes], self.redis.hgetall(keys.assignments(name)))
        return {key.decode(): assignments.decode_assignment(text) for key, text in texts.items()}

    def revision(self, name: str) -> int:
        return int(cast(bytes, self.redis.get(keys.revision(name))) or 0)

    def report(self, name: str, held: Assignment, state: SocketState = SocketState.CONNECTED, **fields: Any) -> None:
        report = Report(
            connection_id=held.connection_id, version=held.version, epoch=held.epoch, socket_id="s", state=state,
            since_ms=self.now_ms(), **fields,
        )  # fmt: skip
        self.redis.hset(keys.reports(name), held.key, assignments.encode(report))


@pytest.fixture
def listeners(redis_url: str) -> Iterator[Listeners]:
    made = Listeners(redis_url)
    # Redis was used before: nobody waits for listeners to come back.
    made.redis.set(keys.BOOT_MARKER, "x")
    yield made
    made.redis.close()


@pytest.fixture
def lease(db: database.Database) -> Lease:
    made = Lease(db, holder="test", seconds=60)
    made.renew()
    return made


@pytest.fixture
def assigner(db: database.Database, redis_url: str, lease: Lease, listeners: Listeners) -> Iterator[Assigner]:
    with queues.client(redis_url) as client:
        yield make_assigner(db, client, lease)


def make_assigner(
    db: database.Database, client: redis.Redis, lease: Lease, *, timeout: float = TIMEOUT, retake: float = 60.0
) -> Assigner:
    return Assigner(
        Sockets(db, drain_seconds=60, reclaim_seconds=retake),
        SeenListeners(client, timeout_seconds=timeout),
        lease,
        PostgresStore(db, who="test", prefix="aip-"),
        timeout_seconds=timeout,
        thorough_seconds=0.0,
    )


def configured(reconciler: Reconciler, platform: Rows, count: int) -> None:
    for source_id in range(1, count + 1):
        platform.set(source_id)
    reconciler.reconcile()


def holders(db: database.Database) -> dict[str, tuple[str | None, int]]:
    found = rows(db, "SELECT connection_id, version, listener_id, epoch FROM ari.connection_versions")
    return {f"{row['connection_id']}:{row['version']}": (row["listener_id"], row["epoch"]) for row in found}


def socket(db: database.Database, version: int = 1) -> dict[str, Any]:
    (row,) = rows(db, "SELECT * FROM ari.connection_versions WHERE version = %s", version)
    return row


def test_a_connection_is_assigned_to_a_listener(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    assigner.tick()
    assert holders(db) == {"1:1": (None, 0)}, "there is nobody to hold it"
    listeners.beat("l1")
    assigner.tick()
    (held,) = listeners.assigned("l1").values()
    assert (held.key, held.epoch, held.endpoint, held.app, held.user) == ("1:1", 1, "http://pbx1", "a", "a")
    assert held.organization_id == 101
    assert SEALER.open(held.sealed_password) == "p"
    assert listeners.redis.ttl(keys.assignments("l1")) > 3000


def test_what_did_not_change_is_not_written_again(
    platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    before = listeners.revision("l1")
    assigner.tick()
    assert listeners.revision("l1") == before > 0


def test_connections_are_spread_evenly_and_within_what_each_may_hold(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 30)
    listeners.beat("l1", "l2", "l3")
    assigner.tick()
    assert spread(listeners, "l1", "l2", "l3") == [10, 10, 10]
    listeners.redis.hset(keys.CAPACITIES, mapping={"l1": 3, "l2": 4, "l3": 5})
    configured(reconciler, platform, 31)
    assigner.tick()
    assert sum(holder is None for holder, _ in holders(db).values()) == 1, "no room for one more"
    assert spread(listeners, "l1", "l2", "l3") == [10, 10, 10], "what is held is not dropped"


def spread(listeners: Listeners, *names: str) -> list[int]:
    """How many sockets each is to hold, those that it is about to lose not counted."""
    return [sum(not held.draining for held in listeners.assigned(name).values()) for name in names]


def report_all(listeners: Listeners, *names: str) -> None:
    """Everybody has opened what it was told to."""
    for name in names:
        for held in listeners.assigned(name).values():
            if not held.draining:
                listeners.report(name, held)


def test_one_that_joins_gets_its_share_a_few_at_a_time_each_made_before_the_elder_lets_go(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 120)
    listeners.beat("l1", "l2")
    assigner.tick()
    report_all(listeners, "l1", "l2")
    before = {name: listeners.assigned(name) for name in ("l1", "l2")}
    for moved in (20, 40):
        listeners.beat("l1", "l2", "l3")
        assigner.tick()
        assert len(listeners.assigned("l3")) == moved, "a few at a time"
        told = listeners.assigned("l1") | listeners.assigned("l2")
        assert {key for key, held in told.items() if held.draining} == told.keys() & listeners.assigned("l3").keys()
        assert sum(held.draining for held in told.values()) == 20, "the previous keeps it so far"
        report_all(listeners, "l3")
    assigner.tick()
    assert spread(listeners, "l1", "l2", "l3") == [40, 40, 40]
    assert not [key for key in listeners.assigned("l3") if key in listeners.assigned("l1") | listeners.assigned("l2")]
    assert sum(epoch == 2 for _, epoch in holders(db).values()) == 40, "nothing else moved"
    for name in ("l1", "l2"):
        now = listeners.assigned(name)
        assert now == {key: held for key, held in before[name].items() if key in now}


def test_what_the_new_listener_cannot_open_goes_back_to_the_elder(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 2)
    listeners.beat("l1")
    assigner.tick()
    report_all(listeners, "l1")
    listeners.beat("l1", "l2")
    assigner.tick()
    ((key, moving),) = listeners.assigned("l2").items()
    listeners.report("l2", moving, SocketState.CONNECTING, error="no connection")
    assigner.tick()
    assert listeners.assigned("l1")[key].draining
    execute(db, "UPDATE ari.connection_versions SET assigned_at = assigned_at - interval '11 seconds'")
    assigner.tick()
    assigner.tick()
    assert holders(db)[key] == ("l1", 3)
    assert (listeners.assigned("l1")[key].draining, listeners.assigned("l2")) == (False, {})


def test_a_socket_whose_new_listener_dies_before_it_is_open_stays_with_its_elder_until_a_third_has_it(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 2)
    listeners.beat("l1")
    assigner.tick()
    report_all(listeners, "l1")
    listeners.beat("l1", "l2")
    assigner.tick()
    (key,) = listeners.assigned("l2")
    listeners.die("l2")
    listeners.beat("l3")
    assigner.tick()
    row = next(
        row for row in rows(db, "SELECT * FROM ari.connection_versions") if row["previous_listener_id"] is not None
    )
    assert (row["listener_id"], row["epoch"], row["previous_listener_id"], row["previous_epoch"]) == ("l3", 3, "l1", 1)
    assert (listeners.assigned("l1")[key].epoch, listeners.assigned("l1")[key].draining) == (1, True)


def test_a_listener_that_was_only_asleep_finds_nothing_to_open(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 4)
    listeners.beat("l1", "l2")
    assigner.tick()
    slept_on = listeners.assigned("l1")
    assert slept_on
    listeners.die("l1")
    listeners.beat("l2")
    assigner.tick()
    assert listeners.redis.zscore(keys.LISTENERS, "l1") is None
    assert listeners.redis.get(keys.revision("l1")) is None
    assert listeners.assigned("l1") == {}
    # Awake, it reports under epochs that are over: nobody is fooled, and it gets a share under new ones.
    listeners.beat("l1", "l2")
    for held in slept_on.values():
        listeners.report("l1", held, SocketState.REPLACED)
    report_all(listeners, "l2")
    assigner.tick()
    assert {socket["socket_state"] for socket in rows(db, "SELECT * FROM ari.connection_versions")} == {"connected"}
    assert len(listeners.assigned("l1")) == 2
    assert all(held.epoch == 2 + (key in slept_on) for key, held in listeners.assigned("l1").items())


def test_when_redis_answers_late_nobody_is_dead_for_it(
    db: database.Database,
    platform: Rows,
    reconciler: Reconciler,
    lease: Lease,
    listeners: Listeners,
    *,
    redis_url: str,
) -> None:
    class Slow(SeenListeners):
        late = False

        def look(self, note: str) -> Sight:
            sight = super().look(note)
            return replace(sight, took_seconds=TIMEOUT) if self.late else sight

    configured(reconciler, platform, 4)
    with queues.client(redis_url) as client:
        slow = Slow(client, timeout_seconds=TIMEOUT)
        assigner = Assigner(
            Sockets(db, drain_seconds=60, reclaim_seconds=60), slow, lease, PostgresStore(db, who="t", prefix="aip-"),
            timeout_seconds=TIMEOUT, thorough_seconds=0.0,
        )  # fmt: skip
        listeners.beat("l1", "l2")
        assigner.tick()
        before = holders(db)
        slow.late = True
        listeners.die("l1")
        assigner.tick()
        slow.late = False
        assigner.tick()
        assert holders(db) == before


def test_a_new_leader_that_finds_nobody_alive_waits_for_those_who_were(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners,
    *, lease: Lease, redis_url: str,
) -> None:  # fmt: skip
    configured(reconciler, platform, 6)
    listeners.beat("l1", "l2")
    assigner.tick()
    before = holders(db)
    listeners.die("l1")
    listeners.die("l2")
    with queues.client(redis_url) as client:
        successor = make_assigner(db, client, lease)
        successor.tick()
        listeners.beat("l1")
        successor.tick()
        assert holders(db) == before


def test_what_is_held_under_a_higher_epoch_than_postgres_knows_is_adopted(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 2)
    listeners.beat("l1", "l2")
    assigner.tick()
    ((key, held),) = listeners.assigned("l1").items()
    listeners.report("l2", replace(held, epoch=7))
    assigner.tick()
    assert holders(db)[key] == ("l2", 7)
    assert listeners.assigned("l2")[key].epoch == 7


def test_with_nothing_new_postgres_is_left_alone(
    db: database.Database,
    platform: Rows,
    reconciler: Reconciler,
    lease: Lease,
    listeners: Listeners,
    *,
    redis_url: str,
) -> None:
    class Counted(Sockets):
        read = 0

        def wanted(self) -> list[database.Row]:
            self.read += 1
            return super().wanted()

    configured(reconciler, platform, 2)
    listeners.beat("l1")
    with queues.client(redis_url) as client:
        counted = Counted(db, drain_seconds=60, reclaim_seconds=60)
        assigner = Assigner(
            counted, SeenListeners(client, timeout_seconds=TIMEOUT), lease, PostgresStore(db, who="t", prefix="aip-"),
            timeout_seconds=TIMEOUT, thorough_seconds=60,
        )  # fmt: skip
        for _ in range(5):
            assigner.tick()
        assert counted.read == 1
        listeners.redis.incr(keys.REPORTS_REVISION)
        assigner.tick()
        assert counted.read == 2
        listeners.beat("l2")
        assigner.tick()
        assert counted.read == 3


def test_what_a_dead_listener_held_goes_to_the_living_under_a_higher_epoch(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 20)
    listeners.beat("l1", "l2")
    assigner.tick()
    kept = listeners.assigned("l2")
    lost = listeners.assigned("l1")
    assert lost
    listeners.die("l1")
    assigner.tick()
    now = listeners.assigned("l2")
    assert len(now) == 20
    assert {key: now[key] for key in kept} == kept, "who is alive keeps what it has"
    assert {now[key].epoch for key in lost} == {2}
    assert all(holder == "l2" for holder, _ in holders(db).values())


def test_nobody_is_dead_while_nobody_is_alive(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    listeners.die("l1")
    assigner.tick()
    assert holders(db) == {"1:1": ("l1", 1)}
    assert socket(db)["socket_state"] == "unassigned"
    listeners.beat("l1")
    assigner.tick()
    assert listeners.assigned("l1")["1:1"].epoch == 1


def test_a_flushed_redis_is_written_anew_with_the_same_epochs(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 10)
    listeners.beat("l1", "l2")
    assigner.tick()
    before, held = {name: listeners.assigned(name) for name in ("l1", "l2")}, holders(db)
    assert not assigner.redis_was_emptied
    listeners.redis.flushdb()
    # One is back at once, the other not yet: nobody is dead for a flush.
    listeners.beat("l1")
    assigner.tick()
    assert assigner.redis_was_emptied
    assert (listeners.assigned("l1"), holders(db)) == (before["l1"], held)
    listeners.beat("l1", "l2")
    assigner.tick()
    assert {name: listeners.assigned(name) for name in ("l1", "l2")} == before
    assert holders(db) == held


def test_after_a_flush_one_that_stays_away_is_dead_in_the_end(
    db: database.Database, platform: Rows, reconciler: Reconciler, lease: Lease, listeners: Listeners, *, redis_url: str
) -> None:
    with queues.client(redis_url) as client:
        quick = make_assigner(db, client, lease, timeout=0.3)
        configured(reconciler, platform, 1)
        listeners.beat("l1")
        quick.tick()
        listeners.redis.flushdb()

        def moved() -> bool:
            listeners.beat("l2")
            quick.tick()
            return holders(db) == {"1:1": ("l2", 2)}

        assert not moved()
        until(moved, "taken over")


def test_hashes_that_vanish_alone_are_written_anew(
    platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    before = listeners.assigned("l1")
    listeners.redis.delete(keys.assignments("l1"), keys.revision("l1"))
    assigner.tick()
    assert listeners.assigned("l1") == before != {}


def test_redis_away_is_transient(db: database.Database, platform: Rows, reconciler: Reconciler, lease: Lease) -> None:
    configured(reconciler, platform, 1)
    with queues.client("redis://127.0.0.1:1") as client:
        cut_off = make_assigner(db, client, lease)
        with pytest.raises(errors.QueueUnavailable):
            cut_off.tick()


def test_what_is_in_redis_that_nobody_can_read_stops_nobody(
    platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    listeners.redis.hset(keys.reports("l1"), mapping={"1:1": "{", "2:1": "[]", "3:1": b"\xff"})
    assigner.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}


def test_one_that_lost_its_lease_unawares_assigns_nothing(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    execute(db, "UPDATE ari.leases SET holder = 'another', term = term + 1")
    assigner.tick()
    assert holders(db) == {"1:1": (None, 0)}


def test_what_a_listener_reports_is_shown(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    (held,) = listeners.assigned("l1").values()
    listeners.report("l1", held, SocketState.CONNECTING, reconnects=3, error="401", last_event_ms=listeners.now_ms())
    assigner.tick()
    row = socket(db)
    assert (row["socket_state"], row["reconnects"], row["last_error"]) == ("connecting", 3, "401")
    assert row["last_event_at"] is not None
    stale = Assignment(**{name: getattr(held, name) for name in held.__slots__} | {"epoch": 0})
    listeners.report("l1", stale, SocketState.CONNECTED)
    assigner.tick()
    assert socket(db)["socket_state"] == "connecting", "a report of another epoch says nothing"
    listeners.die("l1")
    assigner.tick()
    assert socket(db)["socket_state"] == "unassigned"


def test_a_superseded_version_goes_when_its_successor_is_connected(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    platform.set(1, app_password="new")
    reconciler.reconcile()
    assigner.tick()
    assigner.tick()
    assert set(listeners.assigned("l1")) == {"1:1", "1:2"}, "made before broken"
    listeners.report("l1", listeners.assigned("l1")["1:2"])
    assigner.tick()
    assigner.tick()
    assert set(listeners.assigned("l1")) == {"1:2"}
    assert socket(db, 1)["retired_at"] is not None
    assert socket(db, 2)["retired_at"] is None


@pytest.mark.parametrize("removed", [True, False])
def test_a_version_of_another_place_stays_for_its_calls(
    db: database.Database,
    platform: Rows,
    reconciler: Reconciler,
    assigner: Assigner,
    listeners: Listeners,
    *,
    removed: bool,
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    call = make_call(PostgresStore(db, who="test", prefix="aip-"), "1.1", State.CONNECTED, due_in=100)
    if removed:
        platform.values.clear()
    else:
        platform.set(1, ari_endpoint="http://moved")
    reconciler.reconcile()
    for _ in range(2):
        assigner.tick()
        assert "1:1" in listeners.assigned("l1")
    execute(db, "UPDATE ari.calls SET state = 'ended' WHERE call_id = %s", call.call_id)
    assigner.tick()
    assert "1:1" not in listeners.assigned("l1")


def test_a_drain_has_an_end(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    make_call(PostgresStore(db, who="test", prefix="aip-"), "1.1", State.CONNECTED, due_in=100)
    platform.values.clear()
    reconciler.reconcile()
    execute(db, "UPDATE ari.connection_versions SET superseded_at = superseded_at - interval '61 seconds'")
    assigner.tick()
    assert listeners.assigned("l1") == {}


def test_an_app_taken_by_a_stranger_is_taken_back_once_and_then_left_to_it(
    db: database.Database,
    platform: Rows,
    reconciler: Reconciler,
    lease: Lease,
    listeners: Listeners,
    *,
    redis_url: str,
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    with queues.client(redis_url) as client:
        assigner = make_assigner(db, client, lease)
        assigner.tick()
        listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
        for _ in range(3):
            assigner.tick()
        assert holders(db) == {"1:1": ("l1", 1)}, "not fought for"
        assert (socket(db)["socket_state"], socket(db)["last_error"]) == ("replaced", actions.TAKEN)
        # Its holder dies meanwhile: that is no attempt more, and none sooner.
        listeners.die("l1")
        listeners.beat("l2")
        assigner.tick()
        assert holders(db) == {"1:1": ("l1", 1)}
        execute(db, "UPDATE ari.connection_versions SET preempted_at = preempted_at - interval '61 seconds'")
        assigner.tick()
        assert holders(db) == {"1:1": ("l2", 2)}, "taken back, under a new epoch"
        listeners.report("l2", listeners.assigned("l2")["1:1"])
        assigner.tick()
        assert socket(db)["socket_state"] == "connected"
        listeners.report("l2", listeners.assigned("l2")["1:1"], SocketState.REPLACED)
        for _ in range(3):
            assigner.tick()
        assert (holders(db), listeners.assigned("l2")) == ({"1:1": (None, 2)}, {}), "left to it"
        row = socket(db)
        assert row["socket_state"] == "parked"
        assert "arictl connection unpark --organization 101" in row["last_error"]
        told = rows(db, "SELECT name FROM ari.timeline WHERE connection_id = 1 ORDER BY id")
        assert [each["name"] for each in told] == ["AppTaken", "Parked"]
        # A new leader leaves it so, too.
        make_assigner(db, client, lease).tick()
        assert holders(db) == {"1:1": (None, 2)}
        # Until somebody says so.
        execute(db, connections.UNPARK, 101)
        assigner.tick()
        assert holders(db) == {"1:1": ("l2", 3)}
        assert socket(db)["reclaims"] == 0


def test_a_changed_configuration_is_tried_again_though_it_was_parked(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    execute(db, "UPDATE ari.connection_versions SET parked_at = now(), listener_id = NULL, socket_state = 'parked'")
    assigner.tick()
    assert listeners.assigned("l1") == {}
    platform.set(1, app_password="new")
    reconciler.reconcile()
    assigner.tick()
    assert set(listeners.assigned("l1")) == {"1:2"}


def test_what_was_taken_back_long_ago_is_taken_back_once_more(
    db: database.Database, platform: Rows, reconciler: Reconciler, assigner: Assigner, listeners: Listeners
) -> None:
    configured(reconciler, platform, 1)
    listeners.beat("l1")
    assigner.tick()
    execute(db, "UPDATE ari.connection_versions SET reclaims = 1, assigned_at = now() - interval '11 minutes'")
    listeners.report("l1", listeners.assigned("l1")["1:1"])
    assigner.tick()
    listeners.report("l1", listeners.assigned("l1")["1:1"], SocketState.REPLACED)
    assigner.tick()
    assert socket(db)["parked_at"] is None
    assert socket(db)["preempted_at"] is not None


# ── resyncs and sweeps ───────────────────────────────────────────────────────────────────────────────────────────────


def make_call(store: PostgresStore, channel_id: str, state: State, *, due_in: float) -> Call:
    now = store.now()
    call = Call(
        call_id=uuid.uuid4(),
        connection_id=1, connection_version=1, organization_id=101, channel_id=channel_id, channel_created="c", entry=1,
        direction=Direction.INBOUND, state=state, received_at=now, state_since=now,
        deadline_at=now + timedelta(seconds=due_in),
    )  # fmt: skip
    assert store.insert(call, [], None)
    return call


@pytest.fixture
def orders(redis_url: str) -> Iterator[queues.BrokerCommandQueue]:
    broker = queues.broker(redis_url)
    yield queues.BrokerCommandQueue(broker)
    broker.close()


def take(redis_url: str, queue: str) -> list[messages.Message]:
    """What waits in a queue, taken out."""
    with redis.Redis.from_url(redis_url) as client:
        waiting = queued.messages(client, queue)
    with contextlib.closing(queues.broker(redis_url)) as broker:
        broker.flush(queue)
    return [dramatiq.Message(**message) for message in waiting]


def connect(db: database.Database, platform: Rows, reconciler: Reconciler) -> None:
    configured(reconciler, platform, 3)
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connected' WHERE connection_id < 3")


def test_every_fourth_resync_is_full(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue, redis_url: str
) -> None:
    connect(db, platform, reconciler)
    resyncs, asked = Resyncs(db, orders), []
    for _ in range(9):
        resyncs.ask()
        sent = take(redis_url, "resync")
        assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2], "only those whose socket is up"
        asked.append({message.kwargs["full"] for message in sent})
    assert asked == [{number % 4 == 0} for number in range(9)]


def test_resyncs_do_not_pile_up(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue, redis_url: str
) -> None:
    connect(db, platform, reconciler)
    resyncs = Resyncs(db, orders)
    for _ in range(3):
        resyncs.ask()
    assert orders.waiting("resync") == 2
    take(redis_url, "resync")
    resyncs.ask()
    assert [message.kwargs["full"] for message in take(redis_url, "resync")] == [False, False]


def test_a_lost_redis_asks_for_everything(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue, redis_url: str
) -> None:
    connect(db, platform, reconciler)
    # Its socket is down, but it has a call: what is left of it is looked for.
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connecting' WHERE connection_id = 1")
    make_call(PostgresStore(db, who="test", prefix="aip-"), "1.1", State.CONNECTED, due_in=100)
    Resyncs(db, orders).ask_all()
    sent = take(redis_url, "resync")
    assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2]
    assert all(message.kwargs["full"] for message in sent)


def test_a_retired_version_is_not_resynced(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue
) -> None:
    connect(db, platform, reconciler)
    execute(db, "UPDATE ari.connection_versions SET retired_at = now()")
    Resyncs(db, orders).ask()
    assert orders.waiting("resync") == 0


def test_overdue_calls_are_driven_on(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue, redis_url: str
) -> None:
    configured(reconciler, platform, 1)
    store = PostgresStore(db, who="test", prefix="aip-")
    writer = CallWriter(store, orders, Limits(), who="test")
    received = make_call(store, "1", State.RECEIVED, due_in=-1)
    ending = make_call(store, "2", State.ENDING, due_in=-2)
    make_call(store, "3", State.RECEIVED, due_in=100)
    claimed = make_call(store, "4", State.RECEIVED, due_in=-1)
    held = ClaimRequest(owner="w", step=Step.ADMISSION, duration=timedelta(seconds=60))
    assert store.claim(claimed.call_id, held) is not None
    assert sweep.sweep(writer, store, batch=1) == 1
    assert [message.kwargs["call_id"] for message in take(redis_url, "teardown")] == [str(ending.call_id)]
    assert sweep.sweep(writer, store, batch=10) == 1
    assert [message.kwargs["call_id"] for message in take(redis_url, "admission")] == [str(received.call_id)]
    # Moved before it was ordered: not due again at once.
    assert sweep.sweep(writer, store, batch=10) == 0
    again = store.load(received.call_id)
    assert again is not None
    assert (again.step_retries, again.deadline_at is not None and again.deadline_at > store.now()) == (1, True)


def test_two_sweeps_at_once_order_once(
    db: database.Database, platform: Rows, reconciler: Reconciler, orders: queues.BrokerCommandQueue, redis_url: str
) -> None:
    configured(reconciler, platform, 1)
    store = PostgresStore(db, who="test", prefix="aip-")
    writer = CallWriter(store, orders, Limits(), who="test")
    call = make_call(store, "1", State.RECEIVED, due_in=-1)
    overdue = store.overdue(10)

    class Stale(PostgresStore):
        def overdue(self, limit: int) -> list[Call]:
            return overdue

    for _ in range(2):
        sweep.sweep(writer, Stale(db, who="test", prefix="aip-"), batch=10)
    assert [message.kwargs["call_id"] for message in take(redis_url, "admission")] == [str(call.call_id)]
