"""One event socket: opened with any credentials, opened again when it breaks, and its errors explained."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from websockets.http11 import Response

from shared.assignments import SocketState
from tests.support.listener_harness import (
    PASSWORD,
    Asterisk,
    Scheduler,
    assignment,
    connected,
    error_of,
    listening,
    reconnects_of,
    stasis_start,
    state_of,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


@pytest.mark.parametrize("password", ["plain", PASSWORD, "ümläut €", " ", "100%&a=b#c+d:e"])
def test_any_password_arrives_in_the_header_and_never_in_the_address(scheduler: Scheduler, password: str) -> None:
    async def scene() -> None:
        async with Asterisk(prefix="/a/prefix") as pbx, listening(scheduler.url) as listener:
            pbx.password = password
            await connected(scheduler, listener, assignment(pbx, password=password, app="voice ai&x"))
            assert pbx.asked[0].path == "/a/prefix/ari/events?app=voice%20ai%26x&subscribeAll=false"

    play(scene())


def test_a_competing_client_that_takes_over_the_app_is_reported_and_not_fought(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            await pbx.send({"type": "ApplicationReplaced", "application": "voiceai"})
            await until(lambda: len(pbx.closed) == 1, "closed")
            await until(lambda: state_of(scheduler, listener, ours) is SocketState.REPLACED, "reported")
            # Under a new revision it is still the epoch that was taken over.
            scheduler.assign(listener.id, ours)
            await asyncio.sleep(0.5)
            assert len(pbx.asked) == 1
            await connected(scheduler, listener, replace(ours, epoch=2))
            assert len(pbx.asked) == 2

    play(scene())


def test_a_broken_socket_is_opened_again_and_resynced(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            pbx.newest.transport.abort()
            await until(lambda: len(pbx.sockets) == 2, "opened again")
            await pbx.send(stasis_start("after"))
            await until(lambda: scheduler.callers() == ["after"], "event of the new socket")
            # The second takes the place of the first, which still waits.
            assert scheduler.resyncs() == [(1, "connected")]
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "reported")
            assert scheduler.is_connected(listener.id, ours)
            assert error_of(scheduler, listener, ours) == ""

    play(scene())


@pytest.mark.parametrize("was_connected", [True, False])
@pytest.mark.parametrize("status", [HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY])
def test_a_starting_asterisk_is_not_taken_for_a_wrong_address(
    scheduler: Scheduler, status: HTTPStatus, *, was_connected: bool
) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            if was_connected:
                await connected(scheduler, listener, assignment(pbx))
                pbx.newest.transport.abort()
            pbx.refusal = status
            scheduler.assign(listener.id, assignment(pbx))
            await until(lambda: len(pbx.asked) >= 3, "asked again while ARI is not loaded")
            pbx.refusal = None
            await until(lambda: len(pbx.sockets) == 1 + was_connected, "opened")

    play(scene())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (HTTPStatus.UNAUTHORIZED, "wrong ARI user or password (401)"),
        (HTTPStatus.FORBIDDEN, "(403)"),
    ],
)
def test_a_wrong_password_is_tried_seldom_and_explained(scheduler: Scheduler, status: HTTPStatus, words: str) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            pbx.refusal = status
            scheduler.assign(listener.id, ours)
            await until(lambda: words in error_of(scheduler, listener, ours), "reason reported")
            await asyncio.sleep(0.5)
            assert len(pbx.asked) == 1
            assert state_of(scheduler, listener, ours) is SocketState.CONNECTING

    play(scene())


def test_a_redirect_is_not_followed(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            location = f"{other.endpoint.replace('http', 'ws')}/ari/events?app=voiceai"
            pbx.refusal = Response(302, "Found", headers_of({"Location": location, "Content-Length": "0"}))
            scheduler.assign(listener.id, ours)
            await until(lambda: "HTTP 302" in error_of(scheduler, listener, ours), "refused")
            assert not other.asked

    play(scene())


def headers_of(values: dict[str, str]) -> Any:
    from websockets.datastructures import Headers  # noqa: PLC0415 - for this one test

    return Headers(values)


def test_an_endpoint_that_the_guard_refuses_is_explained_and_tried_slowly(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            guarded = replace(assignment(pbx, 1), endpoint="http://169.254.169.254")
            wrapped = replace(assignment(pbx, 2), endpoint="http://[::ffff:169.254.169.254]:8088")
            fine = assignment(pbx, 3)
            scheduler.assign(listener.id, guarded, wrapped, fine)
            await until(lambda: scheduler.is_connected(listener.id, fine), "other assignments are unaffected")
            await until(lambda: "metadata service" in error_of(scheduler, listener, guarded), "explained")
            await until(lambda: "metadata service" in error_of(scheduler, listener, wrapped), "explained")
            assert state_of(scheduler, listener, guarded) is SocketState.CONNECTING

    play(scene())


def test_unreachable_invalid_and_unsealable_assignments_have_their_own_errors(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            unreachable = replace(assignment(pbx, 1), endpoint="http://127.0.0.1:9")
            invalid = replace(assignment(pbx, 2), endpoint="pbx")
            unsealable = replace(assignment(pbx, 3), sealed_password="other")
            fine = assignment(pbx, 4)
            scheduler.assign(listener.id, unreachable, invalid, unsealable, fine)
            await until(lambda: scheduler.is_connected(listener.id, fine), "other assignments are unaffected")
            await until(lambda: error_of(scheduler, listener, unreachable) == "connection refused", "refused")
            await until(lambda: "not http(s)://" in error_of(scheduler, listener, invalid), "invalid endpoint")
            await until(lambda: "SECRET_KEYs" in error_of(scheduler, listener, unsealable), "unsealable")

    play(scene())


def test_the_last_error_stays_in_the_report_of_a_healthy_socket(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            pbx.newest.transport.abort()
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "opened again")
            report = scheduler.report(listener.id, ours)
            assert report is not None
            assert (report.error, report.last_error) == ("", "connection lost")
            assert report.last_error_ms is not None

    play(scene())
