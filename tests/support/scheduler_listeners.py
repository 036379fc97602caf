"""Tests of `scheduler.listeners` that any Redis must pass, with a fixture `client` from the module that imports them.

`tests/unit/test_scheduler_listeners.py` runs them on fakeredis, in milliseconds and without a server;
`tests/integration/test_scheduler_listeners_on_redis.py` runs the same on a real Redis.

What fakeredis cannot do, and is tested on a real Redis only:

- be away, be slow or be restarted: it has no connection, so no time-out and no error of one
  (`test_redis_away_is_transient`, `test_when_redis_answers_late_no_listener_is_evicted`);
- have a clock of its own: its TIME is this process's, so a test cannot set it back or let it differ from the host's;
- have a memory limit, and refuse a write because of it;
- wake a client by pub/sub, or block one;
- run Lua as Redis does: its scripts run in lupa, without Redis's sandbox, limits and number conversions in full.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from scheduler.listeners import Listeners
from shared import assignments, errors, keys
from shared.assignments import Report, SocketState
from shared.call.ids import ConnectionVersion
from shared.process import settings

TIMEOUT_SECONDS = 3.0
DEFAULT_CAPACITY = settings.Listener.model_fields["listener_capacity"].default
FIRST, SECOND = ConnectionVersion(1, 1), ConnectionVersion(2, 1)


@pytest.fixture
def listeners(client: redis.Redis) -> Listeners:
    return Listeners(client, timeout_seconds=TIMEOUT_SECONDS)


def beat(client: redis.Redis, name: str | bytes, *, seconds_ago: float = 0.0, capacity: object = None) -> None:
    """Write a listener's heartbeat."""
    seconds, micros = client.time()
    heartbeat: dict[Any, float] = {name: seconds * 1000 + micros // 1000 - int(seconds_ago * 1000)}
    client.zadd(keys.LISTENERS, heartbeat)
    if capacity is not None:
        client.hset(keys.CAPACITIES, name, str(capacity))


def report(client: redis.Redis, name: str, connection: ConnectionVersion, epoch: int, state: SocketState) -> Report:
    """Write a listener's report on one socket. Returns it."""
    written = Report(
        connection_id=connection.connection_id, version=connection.number, epoch=epoch, socket_id="s", state=state,
        since_ms=1,
    )  # fmt: skip
    client.hset(keys.reports(name), written.key, assignments.encode(written))
    return written


def written(client: redis.Redis, name: str) -> dict[bytes, bytes]:
    """The assignments of a listener."""
    found: Any = client.hgetall(keys.assignments(name))
    return dict(found)


def revision(client: redis.Redis, name: str) -> int:
    found: Any = client.get(keys.revision(name))
    return int(found or 0)


# ── snapshot ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_listener_is_live_until_its_heartbeat_is_too_old(client: redis.Redis, listeners: Listeners) -> None:
    beat(client, "alive", seconds_ago=TIMEOUT_SECONDS - 1, capacity=7)
    beat(client, "silent", seconds_ago=TIMEOUT_SECONDS + 1, capacity=7)
    snapshot = listeners.snapshot(1)
    assert snapshot.live == {"alive": 7}
    assert snapshot.silent == {"silent"}


@pytest.mark.parametrize(
    ("text", "capacity"), [(None, DEFAULT_CAPACITY), ("many", DEFAULT_CAPACITY), ("-3", 0), ("0", 0), ("12", 12)]
)
def test_a_capacity_that_is_missing_or_unreadable_is_the_default(
    client: redis.Redis, listeners: Listeners, text: str | None, capacity: int
) -> None:
    beat(client, "l1", capacity=text)
    assert listeners.snapshot(1).live == {"l1": capacity}


def test_a_name_that_is_not_text_is_shown_all_the_same(client: redis.Redis, listeners: Listeners) -> None:
    beat(client, b"l\xff")
    assert list(listeners.snapshot(1).live) == ["l\N{REPLACEMENT CHARACTER}"]


def test_an_empty_redis_is_noticed_once_and_marked(client: redis.Redis, listeners: Listeners) -> None:
    assert [listeners.snapshot(term).emptied for term in (1, 2)] == [True, False]
    assert client.get(keys.BOOT_MARKER) == b"term 2"
    assert client.ttl(keys.BOOT_MARKER) == -1, "it never expires"
    client.flushdb()
    assert listeners.snapshot(2).emptied


def test_a_heartbeat_with_reports_raises_the_revision(client: redis.Redis, listeners: Listeners) -> None:
    assert listeners.snapshot(1).reports_revision == 0
    client.incr(keys.REPORTS_REVISION)
    assert listeners.snapshot(1).reports_revision == 1


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Monotonic:
    """A clock that the test sets on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_heartbeat_counts_from_when_it_came_and_not_from_the_look_at_it(client: redis.Redis) -> None:
    monotonic = Monotonic()
    listeners = Listeners(client, timeout_seconds=TIMEOUT_SECONDS, monotonic=monotonic)
    beat(client, "l1")
    listeners.snapshot(1)
    monotonic.now += 2.0
    beat(client, "l1", seconds_ago=1.5)
    listeners.snapshot(1)
    monotonic.now += TIMEOUT_SECONDS - 1.4
    assert listeners.snapshot(1).silent == {"l1"}


# ── terms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_leader_of_an_earlier_term_wrote_into_an_empty_redis_is_found(client: redis.Redis) -> None:
    frozen, leading = (Listeners(client, timeout_seconds=TIMEOUT_SECONDS) for _ in range(2))
    frozen.snapshot(1)
    leading.snapshot(2)
    client.flushdb()
    assert frozen.snapshot(1).emptied
    assert leading.snapshot(2).emptied
    with pytest.raises(errors.LeadershipLost):
        frozen.snapshot(1)


def test_of_two_leaders_with_one_term_the_second_is_refused_until_it_raises_its_term(client: redis.Redis) -> None:
    first, second = (Listeners(client, timeout_seconds=TIMEOUT_SECONDS, leader=name) for name in ("one/1", "two/2"))
    first.snapshot(5)
    with pytest.raises(errors.LeadershipLost) as raised:
        second.snapshot(5)
    assert raised.value.term == 5
    second.snapshot(6)
    with pytest.raises(errors.LeadershipLost):
        first.snapshot(5)


@pytest.mark.parametrize("marker", ["x", "term 1", "term", ""])
def test_the_boot_marker_of_an_earlier_release_is_no_empty_redis(
    client: redis.Redis, listeners: Listeners, marker: str
) -> None:
    client.set(keys.BOOT_MARKER, marker)
    assert not listeners.snapshot(3).emptied
    assert client.get(keys.BOOT_MARKER) == b"term 3"


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_counts_only_under_its_own_epoch(client: redis.Redis, listeners: Listeners) -> None:
    sent = report(client, "l1", FIRST, 4, SocketState.CONNECTED)
    found = listeners.reports(["l1", "l2"])
    assert found.find(FIRST, "l1", 4) == sent
    assert [found.find(FIRST, "l1", 3), found.find(FIRST, "l2", 4), found.find(FIRST, None, None)] == [None] * 3
    assert found.find(SECOND, "l1", 4) is None


def test_the_newest_epoch_is_that_of_an_open_socket(client: redis.Redis, listeners: Listeners) -> None:
    report(client, "l1", FIRST, 4, SocketState.CONNECTED)
    report(client, "l2", FIRST, 5, SocketState.CONNECTED)
    report(client, "l3", FIRST, 6, SocketState.CONNECTING)
    report(client, "l3", SECOND, 6, SocketState.REPLACED)
    assert listeners.reports(["l1", "l2", "l3"]).newest() == {FIRST: (5, "l2")}
    assert listeners.reports([]).newest() == {}


def test_an_unreadable_report_is_skipped_and_logged(client: redis.Redis, listeners: Listeners) -> None:
    sent = report(client, "l1", FIRST, 1, SocketState.CONNECTED)
    client.hset(keys.reports("l1"), mapping={"2:1": "{", "3:1": "[]", "4:1": b"\xff"})
    with capture_logs() as logged:
        found = listeners.reports(["l1"])
    assert found.find(FIRST, "l1", 1) == sent
    assert [(entry["event"], entry["listener"]) for entry in logged] == [("unreadable report skipped", "l1")] * 3


# ── eviction ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_evicted_listener_leaves_nothing_to_open(client: redis.Redis, listeners: Listeners) -> None:
    beat(client, "l1", seconds_ago=TIMEOUT_SECONDS + 1, capacity=5)
    beat(client, "l2", capacity=5)
    for name in ("l1", "l2"):
        listeners.write_assignments(name, {"1:1": "an assignment"})
    assert listeners.evict("l1", listeners.snapshot(1))
    assert client.zscore(keys.LISTENERS, "l1") is None
    assert not client.hexists(keys.CAPACITIES, "l1")
    assert client.exists(keys.assignments("l1"), keys.revision("l1")) == 0
    assert listeners.snapshot(1).live == {"l2": 5}
    assert written(client, "l2") == {b"1:1": b"an assignment"}


def test_a_listener_that_is_back_is_not_evicted(client: redis.Redis, listeners: Listeners) -> None:
    beat(client, "l1", seconds_ago=TIMEOUT_SECONDS + 1)
    listeners.write_assignments("l1", {"1:1": "an assignment"})
    snapshot = listeners.snapshot(1)
    beat(client, "l1")
    assert not listeners.evict("l1", snapshot)
    assert "l1" in listeners.snapshot(1).live
    assert written(client, "l1") == {b"1:1": b"an assignment"}


def test_a_listener_that_is_gone_can_be_evicted_again(listeners: Listeners) -> None:
    assert listeners.evict("l1", listeners.snapshot(1))


# ── assignments ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_assignments_replace_those_before_and_raise_the_revision(client: redis.Redis, listeners: Listeners) -> None:
    listeners.write_assignments("l1", {"1:1": "a", "2:1": "b"})
    assert (written(client, "l1"), revision(client, "l1")) == ({b"1:1": b"a", b"2:1": b"b"}, 1)
    listeners.write_assignments("l1", {"2:1": "c"})
    assert (written(client, "l1"), revision(client, "l1")) == ({b"2:1": b"c"}, 2)
    listeners.write_assignments("l1", {})
    assert (written(client, "l1"), revision(client, "l1")) == ({}, 3)


def test_assignments_expire_unless_the_listener_renews_them(client: redis.Redis, listeners: Listeners) -> None:
    listeners.write_assignments("l1", {"1:1": "a"})
    assert all(3000 < client.ttl(key) <= 3600 for key in (keys.assignments("l1"), keys.revision("l1")))


def test_unchanged_assignments_are_not_written_again(client: redis.Redis, listeners: Listeners) -> None:
    for _ in range(3):
        listeners.write_assignments("l1", {"1:1": "a"})
    assert revision(client, "l1") == 1


def lose_all(client: redis.Redis) -> None:
    client.flushdb()


def lose_the_listener(client: redis.Redis) -> None:
    client.delete(keys.assignments("l1"), keys.revision("l1"))


def write_as_another_scheduler(client: redis.Redis) -> None:
    client.delete(keys.assignments("l1"))
    client.incr(keys.revision("l1"))


@pytest.mark.parametrize("change", [lose_all, lose_the_listener, write_as_another_scheduler])
def test_assignments_that_are_not_as_they_were_written_are_written_again(
    client: redis.Redis, listeners: Listeners, change: Any
) -> None:
    listeners.write_assignments("l1", {"1:1": "a"})
    change(client)
    listeners.write_assignments("l1", {"1:1": "a"})
    assert written(client, "l1") == {b"1:1": b"a"}


def test_everything_is_written_again_on_request_and_after_an_eviction(
    client: redis.Redis, listeners: Listeners
) -> None:
    listeners.write_assignments("l1", {"1:1": "a"})
    listeners.rewrite_all()
    listeners.write_assignments("l1", {"1:1": "a"})
    assert revision(client, "l1") == 2
    listeners.evict("l1", listeners.snapshot(1))
    listeners.write_assignments("l1", {"1:1": "a"})
    assert (written(client, "l1"), revision(client, "l1")) == ({b"1:1": b"a"}, 1)
