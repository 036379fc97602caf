"""What `Heartbeats` promises over a `RedisStore`; run on fakeredis (unit) and on a real Redis (integration) alike.

The sockets are faked, Redis is not replaced by a fake of our own: `RedisStoreContract` holds on both kinds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

from listener import tasks
from listener.assignment_lease import AssignmentLease
from listener.buffer import Buffer, EncodedMessage
from listener.connect_limiter import ConnectLimiter
from listener.event_socket import SocketContext
from listener.heartbeats import Heartbeats
from listener.redis_store import AssignmentSnapshot, HeartbeatReply, RedisStore
from listener.socket_pool import SocketPool
from listener.websocket import SocketBroken
from shared import errors, keys
from shared.assignments import Report
from shared.call.ids import ConnectionVersion
from shared.process.redis_clock import RedisClock
from tests.support.redis_store_contract import TIMEOUT_SECONDS, A, B, RedisClients
from tests.support.scenes import play, until
from tests.support.scheduler_side import SchedulerSide


class FakeStream:
    """An event socket on which nothing happens until it is broken."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = False
        self._broken = asyncio.Event()

    def break_off(self) -> None:
        self._broken.set()

    async def pass_messages(self, _take: Callable[[bytes], bool]) -> None:
        await self._broken.wait()
        raise SocketBroken("connection lost")

    async def close(self) -> None:
        self.closed = True


class InterruptibleStore:
    """A `RedisStore` whose Redis can be made unavailable; counts the reads of the assignments."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.available = True
        self.reads = 0

    async def beat(self, reports: Iterable[Report], deleted: Iterable[str]) -> HeartbeatReply:
        self._check()
        return await self._store.beat(reports, deleted)

    async def read_assignments(self) -> AssignmentSnapshot:
        self._check()
        self.reads += 1
        return await self._store.read_assignments()

    def wakeups(self) -> AsyncIterator[None]:
        return self._store.wakeups()

    def _check(self) -> None:
        if not self.available:
            raise errors.QueueUnavailable("made unavailable by the test")


class Scene:
    """The heartbeats of listener `one`, with the sockets they open."""

    def __init__(
        self, redis_clients: RedisClients, store: RedisStore, *, capacity: int, interval_seconds: float
    ) -> None:
        self.redis = redis_clients.client
        self.scheduler = SchedulerSide(redis_clients.client)
        self.store = InterruptibleStore(store)
        self.streams: list[FakeStream] = []
        self.lease = AssignmentLease(TIMEOUT_SECONDS)
        self.buffer = Buffer(capacity=2, share=1)
        self.clock = RedisClock()
        self.pool = SocketPool(
            SocketContext(
                connect=self._connect,
                unseal=lambda sealed: sealed,
                buffer=self.buffer,
                now_ms=lambda: self.clock.now_ms() or 0,
                lease=self.lease,
                limiter=ConnectLimiter(),
                jitter=lambda: 0.001,
            )
        )
        self.heartbeats = Heartbeats(
            self.store,
            pool=self.pool,
            buffer=self.buffer,
            clock=self.clock,
            lease=self.lease,
            interval_seconds=interval_seconds,
            capacity=capacity,
        )

    async def _connect(self, url: str, _authorization: str, _ca_bundle: str | None, _name: str) -> FakeStream:
        self.streams.append(FakeStream(url))
        return self.streams[-1]

    async def opened(self, number: int) -> None:
        """Wait until so many streams were opened since the beginning."""
        await until(lambda: len(self.streams) == number, f"{number} opened")
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def beating(
    redis_clients: RedisClients, *, capacity: int = 7, interval_seconds: float = 0.2
) -> AsyncIterator[Scene]:
    """Heartbeats of listener `one` that are sent when the scene says so."""
    async with redis_clients.store(capacity=capacity) as store:
        scene = Scene(redis_clients, store, capacity=capacity, interval_seconds=interval_seconds)
        try:
            yield scene
        finally:
            await scene.pool.close()


class HeartbeatsContract:
    """Mixed into a test class by a module that has the fixture `redis_clients`."""

    def test_assigned_sockets_are_opened_and_reported(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                scene.scheduler.assign("one", A, B)
                await scene.heartbeats.beat()
                await scene.opened(2)
                await scene.heartbeats.beat()
                assert scene.scheduler.is_connected("one", A)
                assert scene.scheduler.is_connected("one", B)
                now_ms = scene.clock.now_ms()
                assert now_ms is not None
                assert abs(now_ms - redis_clients.now_ms()) < 1000

        play(play_it())

    def test_the_lease_is_valid_only_with_assignments(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                await scene.heartbeats.beat()
                assert not scene.lease.valid
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                assert scene.lease.valid
                scene.redis.delete(keys.revision("one"), keys.assignments("one"))
                await scene.heartbeats.beat()
                assert not scene.lease.valid

        play(play_it())

    def test_assignments_are_read_again_only_when_their_revision_changes(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                scene.lease.revoke()
                await scene.heartbeats.beat()
                assert scene.lease.valid, "renewed by the same revision"
                assert scene.store.reads == 1
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                assert scene.store.reads == 2

        play(play_it())

    def test_a_revoked_assignment_is_closed_and_its_report_deleted(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                scene.scheduler.assign("one", A, B)
                await scene.heartbeats.beat()
                await scene.opened(2)
                await scene.heartbeats.beat()
                scene.scheduler.assign("one", B)
                await scene.heartbeats.beat()
                await scene.heartbeats.beat()
                assert scene.scheduler.report("one", A) is None
                assert scene.scheduler.is_connected("one", B)
                await until(lambda: sum(stream.closed for stream in scene.streams) == 1, "closed")

        play(play_it())

    def test_an_emptied_redis_gets_all_reports_again_and_nothing_is_closed(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                for _ in range(3):
                    scene.scheduler.assign("one", A, B)
                await scene.heartbeats.beat()
                await scene.opened(2)
                await scene.heartbeats.beat()
                scene.redis.flushdb()
                await scene.heartbeats.beat()
                await scene.heartbeats.beat()
                assert scene.scheduler.is_connected("one", A)
                assert scene.scheduler.is_connected("one", B)
                # The first assignments after that may be incomplete: B stays, but is not opened again.
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                assert scene.lease.valid
                assert scene.pool.assigned == {A.key: A, B.key: replace(B, draining=True)}
                assert not any(stream.closed for stream in scene.streams)
                # The next ones are complete again.
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                assert scene.pool.assigned == {A.key: A}

        play(play_it())

    def test_a_revision_that_went_down_closes_nothing(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                for _ in range(3):
                    scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                scene.redis.delete(keys.revision("one"))
                scene.scheduler.assign("one", B)
                await scene.heartbeats.beat()
                assert scene.pool.assigned == {A.key: replace(A, draining=True), B.key: B}

        play(play_it())

    def test_without_redis_open_sockets_stay_and_none_is_opened(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                await scene.opened(1)
                scene.store.available = False
                await scene.heartbeats.beat()
                assert not scene.lease.valid
                scene.streams[0].break_off()
                await asyncio.sleep(0.05)
                assert len(scene.streams) == 1
                scene.store.available = True
                await scene.heartbeats.beat()
                assert scene.store.reads == 2, "read again, though the revision is the same"
                await scene.opened(2)

        play(play_it())

    def test_a_draining_socket_stays_until_it_breaks(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                scene.scheduler.assign("one", A)
                await scene.heartbeats.beat()
                await scene.opened(1)
                scene.scheduler.assign("one", replace(A, draining=True))
                await scene.heartbeats.beat()
                assert scene.scheduler.is_connected("one", A)
                scene.streams[0].break_off()
                await until(lambda: not scene.pool.is_any_open, "broken")
                await scene.heartbeats.beat()
                assert not scene.scheduler.is_connected("one", A)
                assert len(scene.streams) == 1

        play(play_it())

    def test_assignments_beyond_the_capacity_are_not_opened(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients, capacity=1) as scene:
                scene.scheduler.assign("one", A, B)
                await scene.heartbeats.beat()
                assert set(scene.pool.assigned) in ({A.key}, {B.key})
                assert scene.redis.hget(keys.CAPACITIES, "one") == b"1"

        play(play_it())

    def test_a_heartbeat_resyncs_a_connection_that_lost_events(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients) as scene:
                event = EncodedMessage(ConnectionVersion(1, 1), "admission", "1/event", b"x")
                assert scene.buffer.put(event)
                assert not scene.buffer.put(event)
                scene.buffer.done(await scene.buffer.next_batch(10))
                await scene.heartbeats.beat()
                (resync,) = await scene.buffer.next_batch(10)
                assert resync.queue == "resync"

        play(play_it())

    def test_a_change_is_reported_before_the_interval_ends(self, redis_clients: RedisClients) -> None:
        async def play_it() -> None:
            async with beating(redis_clients, interval_seconds=60.0) as scene:
                scene.scheduler.assign("one", A)
                running = asyncio.create_task(scene.heartbeats.run())
                try:
                    await until(lambda: scene.scheduler.is_connected("one", A), "reported")
                finally:
                    await tasks.end([running], patience_seconds=1.0)

        play(play_it())
