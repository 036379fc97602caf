"""Heartbeats on a real Redis: reports, capacity, and a Redis or a scheduler that forgot the listener."""

from __future__ import annotations

import pytest

from shared import keys
from shared.assignments import SocketState
from tests.support.listener_harness import Asterisk, Scheduler, assignment, connected, listening, state_of
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


def test_an_emptied_redis_gets_all_reports_again(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            scheduler.redis.flushdb()
            await until(lambda: scheduler.is_connected(listener.id, ours), "reported again", seconds=2)
            assert len(pbx.asked) == 1
            assert not pbx.closed

    play(scene())


def test_reports_that_expired_while_redis_could_not_be_reached_are_sent_again(scheduler: Scheduler) -> None:
    """A quiet socket has nothing else to report: without one, the next hand-off would close it too early."""

    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            quiet, another = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, quiet, another)
            scheduler.redis.delete(keys.reports(listener.id))
            await until(lambda: scheduler.is_connected(listener.id, quiet), "reported again", seconds=2)
            await until(lambda: scheduler.is_connected(listener.id, another), "reported again", seconds=2)

    play(scene())


def test_a_listener_counted_as_lost_opens_only_what_is_assigned_again(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            # The scheduler counted it as lost while it slept, and assigns it only what no other listener has by now.
            scheduler.redis.delete(keys.assignments(listener.id), keys.revision(listener.id))
            scheduler.redis.zrem(keys.LISTENERS, listener.id)
            await until(lambda: scheduler.redis.zscore(keys.LISTENERS, listener.id) is not None, "back")
            scheduler.assign(listener.id, ours)
            await until(lambda: scheduler.is_connected(listener.id, ours), "assigned again")
            assert not other.closed, "only the listener that takes it over closes it"
            other.newest.transport.abort()
            await until(lambda: state_of(scheduler, listener, theirs) is SocketState.REPLACED, "broken")
            pbx.newest.transport.abort()
            await until(lambda: len(pbx.sockets) == 2, "the assigned one is opened again")
            assert len(other.asked) == 1, "taken from another listener"

    play(scene())


def test_a_listener_reports_its_capacity_and_counts_up_the_reports_revision(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url, listener_capacity=7) as listener:
            await until(lambda: scheduler.redis.hget(keys.CAPACITIES, listener.id) == b"7", "reported")
            before = int(scheduler.redis.get(keys.REPORTS_REVISION) or 0)
            await connected(scheduler, listener, assignment(pbx))
            assert int(scheduler.redis.get(keys.REPORTS_REVISION)) > before
        assert scheduler.redis.hget(keys.CAPACITIES, listener.id) is None, "deleted at the end"

    play(scene())
