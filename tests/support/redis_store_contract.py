"""What the listener's `RedisStore` promises; the same tests run on fakeredis (unit) and on a real Redis (integration).

What fakeredis cannot do is tested on a real Redis only:

- a clock of its own, memory limits, hanging and restarting: tests/integration/test_listener_store_on_redis.py;
- pub/sub wake-ups of idle workers by a push, and blocking reads: tests/integration/test_broker_push.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis.asyncio

from listener.buffer import EncodedMessage, encode_resync
from listener.redis_store import RedisStore
from shared import errors, keys
from shared.assignments import Assignment, Report, SocketState
from shared.broker.bounds import Bounds
from shared.call.ids import ConnectionVersion
from tests.support import queued
from tests.support.scenes import play
from tests.support.scheduler_side import SchedulerSide

TIMEOUT_SECONDS = 2.0
_BOUNDS = Bounds()

A = Assignment(
    connection_id=1,
    version=1,
    organization_id=1,
    epoch=1,
    endpoint="http://pbx",
    app="voiceai",
    user="voiceai",
    sealed_password="sealed",
    fingerprint="first",
)
B = replace(A, connection_id=2)
REPORT_A = Report(connection_id=1, version=1, epoch=1, socket_id="a", state=SocketState.CONNECTED, since_ms=7)
REPORT_B = replace(REPORT_A, connection_id=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisClients:
    """Clients of one Redis, real or fake, that is empty when the test begins."""

    #: For the test.
    client: Any
    #: For a store; called inside the event loop.
    connect: Callable[[], redis.asyncio.Redis]
    #: For a store, to a Redis that is not there.
    connect_nowhere: Callable[[], redis.asyncio.Redis]

    @contextlib.asynccontextmanager
    async def store(
        self, listener_id: str = "one", *, capacity: int = 7, nowhere: bool = False, bounds: Bounds = _BOUNDS
    ) -> AsyncIterator[RedisStore]:
        """The store of a listener."""
        client = self.connect_nowhere() if nowhere else self.connect()
        store = RedisStore(client, listener_id, capacity=capacity, timeout_seconds=TIMEOUT_SECONDS, bounds=bounds)
        try:
            yield store
        finally:
            await store.close()

    def now_ms(self) -> float:
        """Redis's time."""
        seconds, micros = self.client.time()
        return float(seconds * 1000 + micros / 1000)


def message(number: int, *, queue: str = "admission") -> EncodedMessage:
    body = json.dumps({"kwargs": {"number": number}}).encode()
    return EncodedMessage(ConnectionVersion(1, 1), queue, f"1/message-{number}", body)


class RedisStoreContract:
    """Mixed into a test class by a module that has the fixture `redis_clients`."""

    def test_a_heartbeat_registers_the_listener_at_redis_s_time(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store(capacity=7) as store:
                before = redis_clients.now_ms()
                reply = await store.beat([], [])
                assert before - 1 <= reply.redis_ms <= redis_clients.now_ms()
                assert reply.asked <= reply.answered
                assert redis_clients.client.zscore(keys.LISTENERS, "one") == reply.redis_ms
                assert redis_clients.client.hget(keys.CAPACITIES, "one") == b"7"

        play(scene())

    def test_redis_knows_a_listener_until_it_is_emptied_or_the_listener_counted_as_lost(
        self, redis_clients: RedisClients
    ) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store, redis_clients.store("two") as other:
                assert (await store.beat([], [])).unknown
                assert not (await store.beat([], [])).unknown
                assert (await other.beat([], [])).unknown
                redis_clients.client.zrem(keys.LISTENERS, "one")
                assert (await store.beat([], [])).unknown
                redis_clients.client.flushdb()
                assert (await store.beat([], [])).unknown

        play(scene())

    def test_a_heartbeat_returns_the_revision_of_the_assignments(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            side = SchedulerSide(redis_clients.client)
            async with redis_clients.store() as store:
                assert (await store.beat([], [])).revision is None
                side.assign("one", A)
                assert (await store.beat([], [])).revision == 1
                side.assign("two", A)
                assert (await store.beat([], [])).revision == 1
                side.assign("one", A, B)
                assert (await store.beat([], [])).revision == 2
                redis_clients.client.set(keys.revision("one"), "garbage")
                assert (await store.beat([], [])).revision is None

        play(scene())

    def test_reports_are_written_and_deleted_and_each_change_counts_up_the_reports_revision(
        self, redis_clients: RedisClients
    ) -> None:
        async def scene() -> None:
            side = SchedulerSide(redis_clients.client)
            async with redis_clients.store() as store:
                await store.beat([], [])
                assert redis_clients.client.get(keys.REPORTS_REVISION) is None
                await store.beat([REPORT_A, REPORT_B], [])
                assert (side.report("one", A), side.report("one", B)) == (REPORT_A, REPORT_B)
                await store.beat([], [A.key])
                assert (side.report("one", A), side.report("one", B)) == (None, REPORT_B)
                assert redis_clients.client.get(keys.REPORTS_REVISION) == b"2"
                await store.beat([], [])
                assert redis_clients.client.get(keys.REPORTS_REVISION) == b"2"

        play(scene())

    def test_a_report_of_a_key_that_is_open_again_is_not_deleted(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store:
                await store.beat([REPORT_A], [A.key])
                assert SchedulerSide(redis_clients.client).report("one", A) == REPORT_A

        play(scene())

    def test_a_heartbeat_extends_the_lifetime_of_the_listener_s_keys(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            SchedulerSide(redis_clients.client).assign("one", A)
            lifetimes = {keys.reports("one"): 3600, keys.revision("one"): 3600, keys.assignments("one"): 3600}
            async with redis_clients.store() as store:
                await store.beat([REPORT_A], [])
                for key in lifetimes:
                    assert redis_clients.client.expire(key, 5)
                await store.beat([], [])
                for key, seconds in lifetimes.items():
                    assert seconds - 2 <= redis_clients.client.ttl(key) <= seconds

        play(scene())

    def test_assignments_are_read_with_their_revision(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            side = SchedulerSide(redis_clients.client)
            async with redis_clients.store() as store:
                snapshot = await store.read_assignments()
                assert (snapshot.revision, snapshot.assignments) == (None, {})
                side.assign("two", A)
                side.assign("one", A, replace(B, draining=True))
                snapshot = await store.read_assignments()
                assert (snapshot.revision, snapshot.assignments) == (1, {A.key: A, B.key: replace(B, draining=True)})

        play(scene())

    @pytest.mark.parametrize("garbage", ["{", "[]", '{"connection_id":2}', b"\xff"])
    def test_an_unreadable_assignment_is_none_beside_the_others(
        self, redis_clients: RedisClients, garbage: str | bytes
    ) -> None:
        async def scene() -> None:
            SchedulerSide(redis_clients.client).assign("one", A)
            redis_clients.client.hset(keys.assignments("one"), B.key, garbage)
            async with redis_clients.store() as store:
                assert (await store.read_assignments()).assignments == {A.key: A, B.key: None}

        play(scene())

    def test_an_assignment_under_the_key_of_another_is_unreadable(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            side = SchedulerSide(redis_clients.client)
            side.assign("one", A)
            redis_clients.client.hset(
                keys.assignments("one"), B.key, redis_clients.client.hget(keys.assignments("one"), A.key)
            )
            async with redis_clients.store() as store:
                assert (await store.read_assignments()).assignments == {A.key: A, B.key: None}

        play(scene())

    def test_messages_are_pushed_in_order_into_their_queues(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            # More than are enqueued by one run of the script.
            batch = [message(number) for number in range(250)]
            async with redis_clients.store() as store:
                await store.push([*batch, encode_resync(ConnectionVersion(1, 1), "connected", full=True)])
            side = SchedulerSide(redis_clients.client)
            assert [body["number"] for body in side.pushed("admission")] == list(range(250))
            assert side.resyncs() == [(1, "connected")]

        play(scene())

    def test_a_repeated_batch_is_enqueued_once(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store:
                await store.push([message(1)])
                await store.push([message(1), message(2)])
            pushed = SchedulerSide(redis_clients.client).pushed("admission")
            assert [body["number"] for body in pushed] == [1, 2]
            assert queued.size(redis_clients.client, "admission") == 2

        play(scene())

    def test_a_connection_s_messages_beyond_its_bounds_are_refused_and_named(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            batch = [replace(message(number), is_bounded=number % 2 == 0) for number in range(250)]
            other = replace(message(1), message_key="2/message-1", is_bounded=True)
            async with redis_clients.store(bounds=Bounds(group_messages=100)) as store:
                refused = await store.push([*batch, encode_resync(ConnectionVersion(1, 1), "lost", full=True), other])
                assert refused == [batch[number] for number in range(200, 250, 2)]
                assert await store.push(batch[:100]) == [], "those are there"
            assert queued.size(redis_clients.client, "resync") == 1

        play(scene())

    def test_a_message_goes_to_the_worker_of_its_tag(self, redis_clients: RedisClients) -> None:
        client, sessions = redis_clients.client, ("a/aaaaaaaa-1", "b/bbbbbbbb-1")

        async def scene() -> None:
            async with redis_clients.store() as store:
                await store.push([replace(message(1), affinity="bbbbbbbb"), message(2)])

        for session in sessions:
            client.zadd(f"{keys.NAMESPACE}:sessions", {session: redis_clients.now_ms()})
            client.zadd(f"{keys.NAMESPACE}:queue:admission:idle", {session: 1})
            client.hset(f"{keys.NAMESPACE}:credits", session, 5)
            client.hset(f"{keys.NAMESPACE}:tags", session[2:10], session)
        with client.pubsub() as subscription:
            subscription.subscribe(*(f"{keys.NAMESPACE}:wake:{session}" for session in sessions))
            play(scene())
        in_flight = [client.smembers(f"{keys.NAMESPACE}:in-flight:{session}") for session in sessions]
        assert in_flight == [{b"admission/1/message-2"}, {b"admission/1/message-1"}]

    def test_a_push_loads_the_script_into_a_redis_that_has_lost_it(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store:
                await store.push([message(1)])
                redis_clients.client.script_flush()
                await store.push([message(2)])
            assert queued.size(redis_clients.client, "admission") == 2

        play(scene())

    def test_a_deregistered_listener_learns_how_many_others_are_alive(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store, redis_clients.store("two") as other:
                await store.beat([REPORT_A], [])
                assert await store.deregister() == 0
                await store.beat([], [])
                await other.beat([], [])
                silent_since = redis_clients.now_ms() - TIMEOUT_SECONDS * 1000 - 500
                redis_clients.client.zadd(keys.LISTENERS, {"lost": silent_since})
                assert await store.deregister() == 1
                assert redis_clients.client.zrange(keys.LISTENERS, 0, -1) == [b"lost", b"two"]
                assert redis_clients.client.hgetall(keys.CAPACITIES) == {b"two": b"7"}
                assert SchedulerSide(redis_clients.client).report("one", A) == REPORT_A, "until it is deleted"

        play(scene())

    def test_reports_are_removed_at_the_end(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store() as store, redis_clients.store("two") as other:
                await store.beat([REPORT_A], [])
                await other.beat([REPORT_A], [])
                await store.remove_reports()
            side = SchedulerSide(redis_clients.client)
            assert (side.report("one", A), side.report("two", A)) == (None, REPORT_A)

        play(scene())

    def test_every_operation_raises_queue_unavailable_without_redis(self, redis_clients: RedisClients) -> None:
        async def scene() -> None:
            async with redis_clients.store(nowhere=True) as store:
                for operation in (
                    lambda: store.beat([REPORT_A], []),
                    store.read_assignments,
                    lambda: store.push([message(1)]),
                    store.deregister,
                    store.remove_reports,
                ):
                    with pytest.raises(errors.QueueUnavailable):
                        await operation()

        play(scene())
