"""The sockets of a listener follow its assignments: opened, replaced, drained and closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shared import keys
from shared.assignments import SocketState
from tests.support.listener_harness import (
    SEALER,
    Asterisk,
    Scheduler,
    assignment,
    connected,
    error_of,
    listening,
    stasis_start,
    state_of,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


@pytest.mark.parametrize("newer", [{"epoch": 2}, {"fingerprint": "second"}, {"fingerprint": "second", "app": "new"}])
def test_a_newer_assignment_is_opened_before_the_older_is_closed(scheduler: Scheduler, newer: dict[str, Any]) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            scheduler.assign(listener.id, replace(ours, **newer))
            await until(lambda: len(pbx.sockets) == 2, "opened")
            assert pbx.overlapped == [False, True]
            await pbx.send(stasis_start("on the new one"))
            await until(lambda: pbx.closed == [pbx.sockets[0]], "the older closed")
            await until(lambda: scheduler.is_connected(listener.id, replace(ours, **newer)), "reported")
            await until(lambda: scheduler.callers() == ["on the new one"], "events flow")
            await asyncio.sleep(0.3)
            assert state_of(scheduler, listener, ours) is SocketState.CONNECTED
            assert len(pbx.asked) == 2

    play(scene())


def test_the_older_stays_while_the_newer_cannot_be_opened(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            wrong = replace(ours, epoch=2, fingerprint="wrong", sealed_password=SEALER.seal("wrong"))
            scheduler.assign(listener.id, wrong)
            await until(lambda: "(401)" in error_of(scheduler, listener, ours), "reported")
            await pbx.send(stasis_start("still heard"))
            await until(lambda: scheduler.callers() == ["still heard"], "events flow on the older one")
            assert not pbx.closed
            await connected(scheduler, listener, replace(ours, epoch=3))
            await until(lambda: pbx.closed == [pbx.sockets[0]], "the older closed")

    play(scene())


def test_a_draining_socket_stays_while_it_is_open_and_is_not_opened_again(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, closed = assignment(pbx, 1), replace(assignment(other, 2), endpoint="http://127.0.0.1:9")
            await connected(scheduler, listener, ours)
            scheduler.assign(listener.id, ours, closed)
            await until(lambda: error_of(scheduler, listener, closed) == "connection refused", "tried")
            draining = [replace(each, draining=True) for each in (ours, closed)]
            scheduler.assign(listener.id, *draining)
            await until(
                lambda: state_of(scheduler, listener, closed) is SocketState.REPLACED, "given up, as it is not open"
            )
            await pbx.send(stasis_start("still heard"))
            await until(lambda: scheduler.callers() == ["still heard"], "events flow")
            assert scheduler.is_connected(listener.id, ours)
            pbx.newest.transport.abort()
            await until(lambda: state_of(scheduler, listener, ours) is SocketState.REPLACED, "broken")
            await asyncio.sleep(0.3)
            assert len(pbx.asked) == 1, "another listener is to open it"
            # Assigned again under a new epoch, it is opened.
            await connected(scheduler, listener, replace(ours, epoch=3))
            assert len(pbx.asked) == 2

    play(scene())


def test_a_revoked_assignment_is_closed_and_its_report_deleted(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(pbx.closed) == 1, "closed")
            await until(lambda: scheduler.report(listener.id, ours) is None, "report deleted")
            # Without a revision nothing is assigned, and nothing revoked.
            scheduler.redis.delete(keys.assignments(listener.id), keys.revision(listener.id))
            await asyncio.sleep(0.5)
            assert not other.closed

    play(scene())
