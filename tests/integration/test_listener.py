"""The listener between a real Redis and a websocket server that plays Asterisk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import dramatiq
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from devstack import servers
from listener import main, sieve
from shared import assignments, errors, keys, messages, queues
from shared.assignments import Assignment, Report, SocketState
from shared.asterisk import events
from shared.process import sealing, settings
from tests.support import queued

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
SECRET_KEY = "a key of the listener's tests"
PASSWORD = "pass word & # % + : ="
SEALER = sealing.Sealer((SECRET_KEY,))


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


async def until(holds: Callable[[], bool], what: str, *, seconds: float = 6.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


class Asterisk:
    """A websocket server with what matters of Asterisk: the newest socket of an app replaces the one before."""

    def __init__(self, *, prefix: str = "") -> None:
        self.prefix = prefix
        self.asked: list[Request] = []
        self.sockets: list[ServerConnection] = []
        self.closed: list[ServerConnection] = []
        #: Of each socket, whether the one before was open when it was opened.
        self.overlapped: list[bool] = []
        self.refusal: Response | HTTPStatus | None = None
        self.password = PASSWORD
        self._port = 0
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}"

    @property
    def newest(self) -> ServerConnection:
        return self.sockets[-1]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await serve(self._talk, "127.0.0.1", self._port, process_request=self._answer, close_timeout=0.5)
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(request)
        if isinstance(self.refusal, Response):
            return self.refusal
        if self.refusal is not None:
            return connection.respond(self.refusal, "")
        user, _, password = base64.b64decode(request.headers["Authorization"].split()[1]).decode().partition(":")
        if not request.path.startswith(f"{self.prefix}/ari/events?"):
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        if (user, password) != ("voiceai", self.password):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "")
        return None

    async def _talk(self, socket: ServerConnection) -> None:
        before = self.newest if self.sockets and self.newest not in self.closed else None
        self.overlapped.append(before is not None)
        self.sockets.append(socket)
        if before is not None and app_of(before) == app_of(socket):
            await before.send(json.dumps({"type": "ApplicationReplaced", "application": "voiceai"}))
        await socket.wait_closed()
        self.closed.append(socket)

    async def send(self, document: object, socket: ServerConnection | None = None) -> None:
        await (socket or self.newest).send(document if isinstance(document, str) else json.dumps(document))


def app_of(socket: ServerConnection) -> str:
    assert socket.request is not None
    return socket.request.path.partition("?")[2]


def stasis_start(channel_id: str) -> dict[str, Any]:
    return {
        "type": "StasisStart",
        "timestamp": "2026-01-01T00:00:00.000+0000",
        "args": [],
        "channel": {
            "id": channel_id,
            "name": f"PJSIP/{channel_id}",
            "state": "Ring",
            "creationtime": "2026-01-01T00:00:00.000+0000",
            "caller": {"name": "", "number": "100"},
            "dialplan": {"context": "inbound", "exten": "200", "priority": 1, "app_name": "Stasis", "app_data": "v"},
        },
        "application": "voiceai",
    }


def stasis_end(channel_id: str) -> dict[str, Any]:
    return {**stasis_start(channel_id), "type": "StasisEnd"}


class Scheduler:
    """Its side of Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url)

    def assign(self, listener_id: str, *assigned: Assignment) -> None:
        pipe = self.redis.pipeline(transaction=True)
        pipe.delete(keys.assignments(listener_id))
        for each in assigned:
            pipe.hset(keys.assignments(listener_id), each.key, assignments.encode(each))
        pipe.incr(keys.revision(listener_id))
        pipe.execute()

    def report(self, listener_id: str, assignment: Assignment) -> Report | None:
        text = self.redis.hget(keys.reports(listener_id), assignment.key)
        return None if text is None else assignments.decode_report(text)

    def is_connected(self, listener_id: str, assignment: Assignment) -> bool:
        report = self.report(listener_id, assignment)
        return report is not None and (report.state, report.epoch) == (SocketState.CONNECTED, assignment.epoch)

    def pushed(self, queue: str) -> list[dict[str, Any]]:
        return [message["kwargs"] for message in queued.messages(self.redis, queue)]

    def callers(self) -> list[str]:
        return [body["event"]["channel"]["id"] for body in self.pushed("admission")]

    def resyncs(self) -> list[tuple[int, str]]:
        return [(body["connection_id"], body["reason"]) for body in self.pushed("resync")]


@pytest.fixture
def scheduler(redis_url: str) -> Iterator[Scheduler]:
    scheduler = Scheduler(redis_url)
    yield scheduler
    scheduler.redis.close()


@pytest.fixture
def mortal_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    """A Redis of this test's own, to be killed."""
    with servers.Redis(stack_folder / f"redis-{uuid.uuid4().hex[:8]}") as server:
        yield server


def assignment(pbx: Asterisk, number: int = 1, *, password: str = PASSWORD, app: str = "voiceai") -> Assignment:
    return Assignment(
        connection_id=number,
        version=1,
        organization_id=1,
        epoch=1,
        endpoint=pbx.endpoint,
        app=app,
        user="voiceai",
        sealed_password=SEALER.seal(password),
        fingerprint="first",
    )


@contextlib.asynccontextmanager
async def listening(redis_url: str, **overrides: Any) -> AsyncIterator[main.Listener]:
    """A listener in this process, that hardly waits between attempts."""
    values = {"redis_url": redis_url, "secret_key": SECRET_KEY, "heartbeat_seconds": 0.2, "drain_seconds": 3.0}
    listener = main.Listener(settings.Listener.model_validate(values | overrides), jitter=lambda: 0.05)
    stop = asyncio.Event()
    running = asyncio.create_task(listener.run(stop))
    try:
        yield listener
    finally:
        stop.set()
        await running


async def connected(scheduler: Scheduler, listener: main.Listener, *assigned: Assignment) -> None:
    scheduler.assign(listener.id, *assigned)
    await until(lambda: all(scheduler.is_connected(listener.id, each) for each in assigned), "connected")


@pytest.mark.parametrize("password", ["plain", PASSWORD, "ümläut €", " ", "100%&a=b#c+d:e"])
def test_any_password_arrives_in_the_header_and_never_in_the_address(scheduler: Scheduler, password: str) -> None:
    async def scene() -> None:
        async with Asterisk(prefix="/a/prefix") as pbx, listening(scheduler.url) as listener:
            pbx.password = password
            await connected(scheduler, listener, assignment(pbx, password=password, app="voice ai&x"))
            assert pbx.asked[0].path == "/a/prefix/ari/events?app=voice%20ai%26x&subscribeAll=false"

    play(scene())


def test_a_real_dramatiq_worker_gets_what_was_pushed(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            await connected(scheduler, listener, assignment(pbx, 7))
            for number in range(600):
                await pbx.send(stasis_start(f"caller-{number}"))
            await pbx.send({"type": "ChannelVarset", "application": "voiceai"})
            await pbx.send(stasis_end("caller-0"))
            await until(lambda: len(scheduler.pushed("teardown")) == 1, "pushed")

    play(scene())
    broker = queues.broker(scheduler.url, threads=1)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in messages.ACTORS}
    for name, queue in messages.ACTORS.items():
        # Bound now: the loop moves on.
        def note(_into: list[dict[str, Any]] = seen[name], **body: Any) -> None:
            _into.append(body)

        dramatiq.actor(actor_name=name, queue_name=queue, broker=broker)(note)
    worker = dramatiq.Worker(broker, worker_threads=1)
    worker.start()
    try:
        for queue in ("admission", "teardown", "resync"):
            broker.join(queue, timeout=10_000)
        worker.join()
    finally:
        worker.stop()
        broker.close()
    assert [body["event"]["channel"]["id"] for body in seen["caller_entered"]] == [f"caller-{n}" for n in range(600)]
    assert [body["event"]["type"] for body in seen["leg_ended"]] == ["StasisEnd"]
    assert seen["resync_connection"] == [
        {"v": 1, "connection_id": 7, "connection_version": 1, "reason": "connected", "full": True}
    ]
    first = seen["caller_entered"][0]
    assert (first["v"], first["connection_id"], first["connection_version"]) == (1, 7, 1)
    now_seconds, _microseconds = scheduler.redis.time()
    assert abs(first["at_ms"] / 1000 - now_seconds) < 15
    # Nothing is left behind.
    assert queued.size(scheduler.redis, "admission") == 0


def test_a_stranger_who_takes_the_app_over_is_reported_and_not_fought(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            await pbx.send({"type": "ApplicationReplaced", "application": "voiceai"})
            await until(lambda: len(pbx.closed) == 1, "closed")
            await until(lambda: state_of(scheduler, listener, ours) is SocketState.REPLACED, "reported")
            # Read again, in any revision, it is still the epoch that lost.
            scheduler.assign(listener.id, ours)
            await asyncio.sleep(0.5)
            assert len(pbx.asked) == 1
            await connected(scheduler, listener, replace(ours, epoch=2))
            assert len(pbx.asked) == 2

    play(scene())


def state_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> SocketState | None:
    report = scheduler.report(listener.id, of)
    return report.state if report else None


def test_a_broken_socket_is_opened_again_and_resynced(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            pbx.newest.transport.abort()
            await until(lambda: len(pbx.sockets) == 2, "opened again")
            await pbx.send(stasis_start("after"))
            await until(lambda: scheduler.callers() == ["after"], "event of the new socket")
            assert scheduler.resyncs() == [(1, "connected"), (1, "connected")]
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "reported")
            assert scheduler.is_connected(listener.id, ours)
            assert error_of(scheduler, listener, ours) == ""

    play(scene())


def test_a_restarting_asterisk_is_not_taken_for_a_wrong_address(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            await connected(scheduler, listener, assignment(pbx))
            pbx.refusal = HTTPStatus.NOT_FOUND
            pbx.newest.transport.abort()
            await until(lambda: len(pbx.asked) >= 3, "asked again while ARI is not loaded")
            pbx.refusal = None
            await until(lambda: len(pbx.sockets) == 2, "opened again")

    play(scene())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (HTTPStatus.UNAUTHORIZED, "wrong ARI user or password (401)"),
        (HTTPStatus.FORBIDDEN, "(403)"),
        (HTTPStatus.NOT_FOUND, "(404)"),
    ],
)
def test_what_lasts_is_tried_slowly_and_explained(scheduler: Scheduler, status: HTTPStatus, words: str) -> None:
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


def error_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> str:
    report = scheduler.report(listener.id, of)
    return report.error if report else ""


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


def test_an_endpoint_that_the_guard_refuses_is_explained_and_tried_slowly(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            guarded = replace(assignment(pbx, 1), endpoint="http://169.254.169.254")
            wrapped = replace(assignment(pbx, 2), endpoint="http://[::ffff:169.254.169.254]:8088")
            fine = assignment(pbx, 3)
            scheduler.assign(listener.id, guarded, wrapped, fine)
            await until(lambda: scheduler.is_connected(listener.id, fine), "one tenant's fault is that tenant's")
            await until(lambda: "metadata service" in error_of(scheduler, listener, guarded), "explained")
            await until(lambda: "metadata service" in error_of(scheduler, listener, wrapped), "explained")
            assert state_of(scheduler, listener, guarded) is SocketState.CONNECTING

    play(scene())


def reconnects_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> int:
    report = scheduler.report(listener.id, of)
    return report.reconnects if report and report.state is SocketState.CONNECTED else -1


def headers_of(values: dict[str, str]) -> Any:
    from websockets.datastructures import Headers  # noqa: PLC0415 - for this one test

    return Headers(values)


def test_unreachable_broken_and_unsealable_are_told_apart(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            nobody = replace(assignment(pbx, 1), endpoint="http://127.0.0.1:9")
            no_address = replace(assignment(pbx, 2), endpoint="pbx")
            unsealable = replace(assignment(pbx, 3), sealed_password="other")
            fine = assignment(pbx, 4)
            scheduler.assign(listener.id, nobody, no_address, unsealable, fine)
            await until(lambda: scheduler.is_connected(listener.id, fine), "one tenant's fault is that tenant's")
            await until(lambda: error_of(scheduler, listener, nobody) == "connection refused", "refused")
            await until(lambda: "not http(s)://" in error_of(scheduler, listener, no_address), "no address")
            await until(lambda: "SECRET_KEYs" in error_of(scheduler, listener, unsealable), "unsealable")

    play(scene())


def test_hostile_messages_cost_their_sender_only(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            garbage: list[Any] = ["", "garbage", "[" * 100_000, "[]", '{"type":7}', '{"type":"StasisStart"}', "\x00"]
            garbage.append({**stasis_start("x"), "args": "not a list"})
            garbage.append({**stasis_start("x" * 1000)})
            for each in garbage:
                await pbx.send(each)
            await pbx.newest.send(b"\xff\xfe\x00 binary")
            await pbx.newest.send(b"\xff invalid as text", text=True)
            await pbx.send(stasis_start("still here"))
            await until(lambda: scheduler.callers() == ["still here"], "the socket goes on")
            await pbx.send("x" * (2**20 + 1))
            await until(lambda: len(pbx.sockets) == 2, "closed and opened again")
            assert pbx.sockets[0].close_code == 1009
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "reported")
            report, unharmed = scheduler.report(listener.id, ours), scheduler.report(listener.id, theirs)
            assert report is not None
            assert unharmed is not None
            assert (report.unreadable, report.reconnects) == (len(garbage) + 3, 1)
            assert (unharmed.unreadable, unharmed.reconnects) == (0, 0)
            resyncs = sorted(scheduler.resyncs())
            assert resyncs == [(1, "connected"), (1, "connected"), (2, "connected")], "the closed one, and no other"

    play(scene())


#: Anything JSON can hold, and what only escapes can: NUL, half a surrogate pair.
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_messages = st.one_of(
    st.builds(
        lambda key, value: {**stasis_start("x"), key: value}, st.sampled_from(sorted(stasis_start("x"))), _values
    ),
    st.builds(
        lambda key, value: {**stasis_start("x"), "channel": {**stasis_start("x")["channel"], key: value}},
        st.sampled_from(sorted(stasis_start("x")["channel"])),
        _values,
    ),
    st.sampled_from(["[" * 50_000, '{"type":"StasisStart","a":' * 20_000]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@hypothesis_settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(sent=st.lists(_messages, min_size=20, max_size=60))
def test_whatever_an_asterisk_sends_is_counted_or_passed_on(scheduler: Scheduler, sent: list[Any]) -> None:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in sent]

    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx, 1)
            await connected(scheduler, listener, ours)
            for text in texts:
                await pbx.send(text)
            last = f"still here {uuid.uuid4().hex}"
            await pbx.send(stasis_start(last))
            await until(lambda: last in scheduler.callers(), "the socket lives")
            refused = sum(map(is_refused, texts))
            await until(lambda: unreadable_of(scheduler, listener, ours) == refused, "each refused one was counted")
            assert len(pbx.sockets) == 1

    play(scene())


def is_refused(text: str) -> bool:
    if not sieve.may_be_wanted(text.encode()):
        return False
    try:
        events.parse(text)
    except errors.InvalidEvent:
        return True
    return False


def unreadable_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> int:
    report = scheduler.report(listener.id, of)
    return report.unreadable if report else -1


def test_a_fault_of_ours_in_one_socket_is_reported_and_survived(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_be_wanted(raw: bytes) -> bool:
        if raw == b"fault":
            raise RuntimeError("a fault of ours")
        return True

    async def scene() -> None:
        monkeypatch.setattr(sieve, "may_be_wanted", may_be_wanted)
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            await pbx.send("fault")
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "opened again")
            await other.send(stasis_start("unharmed"))
            await until(lambda: scheduler.callers() == ["unharmed"], "the other goes on")
            assert not other.closed

    play(scene())


def test_an_outage_of_redis_loses_nothing_that_fitted(mortal_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(mortal_redis.url)
        async with Asterisk() as pbx, Asterisk() as breaking, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(breaking, 2)
            await connected(scheduler, listener, ours, theirs)
            await asyncio.to_thread(mortal_redis.kill)
            for number in range(300):
                await pbx.send(stasis_start(f"caller-{number}"))
            await asyncio.sleep(1.5)
            breaking.newest.transport.abort()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(mortal_redis.start)
            await until(lambda: len(scheduler.callers()) == 300, "pushed once Redis is back")
            assert scheduler.callers() == [f"caller-{number}" for number in range(300)]
            # Redis came back empty: what we hold is reported, nothing is dropped, and nothing opened unasked.
            await until(lambda: scheduler.is_connected(listener.id, ours), "reported again")
            await asyncio.sleep(0.3)
            assert (len(pbx.asked), len(breaking.asked)) == (1, 1)
            assert not pbx.closed
            # Its revision counts from 1 again, no higher than the one we know: closes nothing.
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(breaking.sockets) == 2, "opened on an assignment just read")
            assert (len(pbx.asked), pbx.closed) == (1, [])
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(pbx.closed) == 1, "a later revision closes")
        scheduler.redis.close()

    play(scene())


def test_an_emptied_redis_is_told_again_what_is_held(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            scheduler.redis.flushdb()
            await until(lambda: scheduler.is_connected(listener.id, ours), "reported again", seconds=2)
            assert len(pbx.asked) == 1
            assert not pbx.closed

    play(scene())


def test_what_does_not_fit_is_resynced(mortal_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(mortal_redis.url)
        async with (
            Asterisk() as pbx,
            Asterisk() as other,
            listening(scheduler.url, listener_buffer=50, listener_buffer_share=10) as listener,
        ):
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            await asyncio.to_thread(mortal_redis.kill)
            for number in range(30):
                await pbx.send(stasis_start(f"caller-{number}"))
            await other.send(stasis_start("other"))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(mortal_redis.start)
            await until(lambda: (1, "events were lost") in scheduler.resyncs(), "resynced")
            assert set(scheduler.callers()) == {f"caller-{number}" for number in range(10)} | {"other"}
            assert scheduler.resyncs() == [(1, "events were lost")]
            await until(lambda: scheduler.report(listener.id, ours) is not None, "reported again")
            report = scheduler.report(listener.id, ours)
            assert report is not None
            assert report.dropped == 20
        scheduler.redis.close()

    play(scene())


@pytest.mark.parametrize("newer", [{"epoch": 2}, {"fingerprint": "second"}, {"fingerprint": "second", "app": "new"}])
def test_a_newer_assignment_is_opened_before_the_older_goes(scheduler: Scheduler, newer: dict[str, Any]) -> None:
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


def test_a_socket_that_is_to_yield_stays_while_it_is_open_and_is_not_opened_again(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, closed = assignment(pbx, 1), replace(assignment(other, 2), endpoint="http://127.0.0.1:9")
            await connected(scheduler, listener, ours)
            scheduler.assign(listener.id, ours, closed)
            await until(lambda: error_of(scheduler, listener, closed) == "connection refused", "tried")
            draining = [replace(each, draining=True) for each in (ours, closed)]
            scheduler.assign(listener.id, *draining)
            await until(
                lambda: state_of(scheduler, listener, closed) is SocketState.REPLACED, "given up, not being open"
            )
            await pbx.send(stasis_start("still heard"))
            await until(lambda: scheduler.callers() == ["still heard"], "events flow")
            assert scheduler.is_connected(listener.id, ours)
            pbx.newest.transport.abort()
            await until(lambda: state_of(scheduler, listener, ours) is SocketState.REPLACED, "broken")
            await asyncio.sleep(0.3)
            assert len(pbx.asked) == 1, "another listener is to open it"
            # It comes back to us: under a new epoch it is opened.
            await connected(scheduler, listener, replace(ours, epoch=3))
            assert len(pbx.asked) == 2

    play(scene())


def test_one_that_was_taken_for_dead_opens_nothing_it_is_not_told_of_anew(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            # Struck out while it slept, and told anew without what others have by now.
            scheduler.redis.delete(keys.assignments(listener.id), keys.revision(listener.id))
            scheduler.redis.zrem(keys.LISTENERS, listener.id)
            await until(lambda: scheduler.redis.zscore(keys.LISTENERS, listener.id) is not None, "back")
            scheduler.assign(listener.id, ours)
            await until(lambda: scheduler.is_connected(listener.id, ours), "told anew")
            assert not other.closed, "closed by whoever takes it over, not by a doubt"
            other.newest.transport.abort()
            await until(lambda: state_of(scheduler, listener, theirs) is SocketState.REPLACED, "broken")
            pbx.newest.transport.abort()
            await until(lambda: len(pbx.sockets) == 2, "what is ours is opened again")
            assert len(other.asked) == 1, "stolen"

    play(scene())


def test_a_listener_tells_how_many_sockets_it_may_hold_and_whenever_it_has_news(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url, listener_capacity=7) as listener:
            await until(lambda: scheduler.redis.hget(keys.CAPACITIES, listener.id) == b"7", "told")
            news = int(scheduler.redis.get(keys.REPORTS_REVISION) or 0)
            await connected(scheduler, listener, assignment(pbx))
            assert int(scheduler.redis.get(keys.REPORTS_REVISION)) > news
        assert scheduler.redis.hget(keys.CAPACITIES, listener.id) is None, "gone when it left"

    play(scene())


def test_what_was_wrong_is_told_when_all_is_well_again(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            ours = assignment(pbx)
            await connected(scheduler, listener, ours)
            pbx.newest.transport.abort()
            await until(lambda: reconnects_of(scheduler, listener, ours) == 1, "opened again")
            report = scheduler.report(listener.id, ours)
            assert report is not None
            assert (report.error, report.last_error) == ("", "the connection was cut")
            assert report.last_error_ms is not None

    play(scene())


def test_what_is_no_longer_assigned_is_closed_and_its_report_removed(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(pbx.closed) == 1, "closed")
            await until(lambda: scheduler.report(listener.id, ours) is None, "report removed")
            # Without a revision nothing is assigned, and nothing taken away.
            scheduler.redis.delete(keys.assignments(listener.id), keys.revision(listener.id))
            await asyncio.sleep(0.5)
            assert not other.closed

    play(scene())


def test_leaving_hands_over_to_whoever_else_listens(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:
            async with listening(scheduler.url) as staying:
                leaving = listening(scheduler.url, drain_seconds=10.0)
                left = await leaving.__aenter__()
                ours = assignment(pbx)
                await connected(scheduler, left, ours)
                stopping = asyncio.create_task(leaving.__aexit__(None, None, None))
                await until(lambda: scheduler.redis.zscore(keys.LISTENERS, left.id) is None, "not counted on any more")
                await pbx.send(stasis_start("in between"))
                assert not pbx.closed
                await connected(scheduler, staying, replace(ours, epoch=2))
                # At once, not only when it has waited long enough.
                await asyncio.wait_for(stopping, 1)
                assert pbx.closed == [pbx.sockets[0]]
                assert scheduler.callers() == ["in between"]
            assert len(pbx.asked) == 2

    play(scene())


def test_leaving_is_bounded_while_redis_is_away(mortal_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(mortal_redis.url)
        async with Asterisk() as pbx:
            leaving = listening(scheduler.url, drain_seconds=1.0)
            listener = await leaving.__aenter__()
            await connected(scheduler, listener, assignment(pbx))
            await asyncio.to_thread(mortal_redis.kill)
            await pbx.send(stasis_start("nowhere to go"))
            await asyncio.wait_for(leaving.__aexit__(None, None, None), 2.5)
            assert len(pbx.closed) == 1
        scheduler.redis.close()

    play(scene())


async def spawn(redis_url: str | None, **environment: str) -> asyncio.subprocess.Process:
    ours = {"SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "debug", "PYTHONPATH": str(ROOT), "HEARTBEAT_SECONDS": "0.2"}
    if redis_url is not None:
        ours["REDIS_URL"] = redis_url
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "listener.main"),
        cwd="/",
        env={"PATH": os.environ["PATH"], **ours, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def with_process(
    redis_url: str, act: Callable[[asyncio.subprocess.Process], Awaitable[None]], **environment: str
) -> tuple[int, str]:
    """Its exit status and all it said."""
    process = await spawn(redis_url, **environment)
    try:
        await act(process)
        output, _ = await asyncio.wait_for(process.communicate(), 8)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def test_sigterm_ends_the_process_cleanly_and_no_secret_was_logged(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:

            async def act(process: asyncio.subprocess.Process) -> None:
                await until(lambda: scheduler.redis.zcard(keys.LISTENERS) == 1, "heartbeat")
                listener_id = scheduler.redis.zrange(keys.LISTENERS, 0, -1)[0].decode()
                assert listener_id.startswith("one-")
                wrong = replace(assignment(pbx, 2), sealed_password=SEALER.seal("hunter2-hunter2"))
                scheduler.assign(listener_id, assignment(pbx), wrong)
                await until(lambda: scheduler.is_connected(listener_id, assignment(pbx)), "connected")
                await pbx.send("garbage")
                await pbx.send(stasis_start("last"))
                process.send_signal(signal.SIGTERM)

            status, output = await with_process(scheduler.url, act, PROCESS_NAME="one")
            assert status == 0
            assert scheduler.callers() == ["last"]
            assert scheduler.redis.zcard(keys.LISTENERS) == 0
            assert not list(scheduler.redis.scan_iter("ari:reports:*"))
            assert len(pbx.closed) == 1
            assert pbx.closed[0].close_code == 1000
            secrets = [PASSWORD, "hunter2-hunter2", SECRET_KEY, scheduler.url.split("@")[0].split(":")[-1]]
            secrets += [request.headers["Authorization"].split()[1] for request in pbx.asked]
            assert not [secret for secret in secrets if secret in output]
            assert "connected" in output
            assert "Traceback" not in output

    play(scene())


def test_a_second_signal_ends_the_process_at_once(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx:

            async def act(process: asyncio.subprocess.Process) -> None:
                await until(lambda: scheduler.redis.zcard(keys.LISTENERS) == 1, "heartbeat")
                listener_id = scheduler.redis.zrange(keys.LISTENERS, 0, -1)[0].decode()
                # Another listener, so that the first signal waits for a hand-over that does not come.
                seconds, _ = scheduler.redis.time()
                scheduler.redis.zadd(keys.LISTENERS, {"other": (seconds + 60) * 1000})
                await connected_process(scheduler, listener_id, assignment(pbx))
                process.send_signal(signal.SIGTERM)
                await until(lambda: scheduler.redis.zscore(keys.LISTENERS, listener_id) is None, "leaving")
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(1):
                    await process.wait()

            status, _ = await with_process(scheduler.url, act)
            assert status == 128 + signal.SIGTERM

    play(scene())


async def connected_process(scheduler: Scheduler, listener_id: str, assigned: Assignment) -> None:
    scheduler.assign(listener_id, assigned)
    await until(lambda: scheduler.is_connected(listener_id, assigned), "connected")


@pytest.mark.parametrize(
    ("redis_url", "complaint"), [(None, "REDIS_URL: is not set"), ("redis://:hunter2@host:port/0", "not a usable URL")]
)
def test_wrong_settings_are_explained(redis_url: str | None, complaint: str) -> None:
    async def scene() -> None:
        process = await spawn(redis_url)
        output, _ = await asyncio.wait_for(process.communicate(), 8)
        assert process.returncode == 2
        assert complaint in output.decode()
        assert "Traceback" not in output.decode()
        assert "hunter2" not in output.decode()

    play(scene())
