"""Open pages are kept current by one sample for all, in bounded streams that end with their session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from console import streams
from console.sampling import Sampled
from console.streams import Streams
from shared import errors
from shared.operator.users import Sessions, hash_of


class FakeSessions:
    """Every token names a session that lives, but those that have ended."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.looked_up = 0
        #: Cleared, Postgres is frozen.
        self.answers = threading.Event()
        self.answers.set()

    def user_of(self, token: str) -> object | None:
        return (
            None
            if token in self.ended
            else SimpleNamespace(name=token.partition("-")[0], organization_id=7 if token == "tenant" else None)
        )

    def keep(self, hashes: Iterable[bytes]) -> set[bytes]:
        self.looked_up += 1
        self.answers.wait(10)
        return set(hashes) - {hash_of(token) for token in self.ended}


class Source:
    """What a topic samples."""

    def __init__(self) -> None:
        self.parts = {"figures": "<b>1</b>", "list": "same"}
        self.taken = 0
        self.fails = False

    def __call__(self) -> Mapping[str, str]:
        self.taken += 1
        if self.fails:
            raise errors.DatabaseUnavailable("Postgres is away")
        return dict(self.parts)


@pytest.fixture
def sessions() -> FakeSessions:
    return FakeSessions()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def made(sessions: FakeSessions, source: Source, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Streams]:
    monkeypatch.setattr(streams, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(streams, "SESSIONS_SECONDS", 0.02)
    topic = Sampled(source, seconds=0.02)
    return lambda: Streams(cast(Sessions, sessions), {"overview": topic}, most=3, most_of_user=2)


def request(token: str = "s", query: str = "topic=overview", method: str = "GET") -> Request:
    """Return a request for a stream; the session's user is named by what stands before a hyphen in its token."""
    return Request(
        {
            "type": "http", "method": method, "path": "/live", "query_string": query.encode(), "scheme": "http",
            "headers": [(b"cookie", f"ari-session={token}".encode())],
        }
    )  # fmt: skip


async def opened(made: Streams, **how: str) -> AsyncIterator[str]:
    answer = await made._open(request(**how))
    assert answer.status_code == 200, answer.body
    return cast(AsyncIterator[str], cast(Any, answer).body_iterator)


async def running(made: Streams, act: Callable[[], Any]) -> None:
    ticking = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(10):
            await act()
    finally:
        ticking.cancel()


async def until(events: AsyncIterator[str], text: str) -> str:
    async for told in events:
        if text in told:
            return told
    raise AssertionError(f"the stream ended without {text}")


def test_a_page_is_told_what_has_changed_and_how_old_it_is(made: Callable[[], Streams], source: Source) -> None:
    async def act() -> None:
        all_streams = made()

        async def read() -> None:
            events = await opened(all_streams)
            first = await until(events, "event: figures")
            assert "data: <b>1</b>" in first
            assert "event: list" in first
            source.parts["figures"] = "<b>2</b>\n<i>"
            second = await until(events, "event: figures")
            assert "data: <b>2</b>\ndata: <i>\n\n" in second
            assert "event: list" not in second, "it has that already"
            assert 'event: tick\ndata: {"age": ' in second

        await running(all_streams, read)

    asyncio.run(act())


def test_all_pages_share_one_sample_and_without_a_page_none_is_taken(
    made: Callable[[], Streams], source: Source
) -> None:
    async def act() -> None:
        all_streams = made()

        async def read() -> None:
            await asyncio.sleep(0.1)
            assert source.taken == 0
            readers = [await opened(all_streams, token=token) for token in ("a", "b", "c")]
            for _ in range(5):
                await asyncio.gather(*(until(events, "event: tick") for events in readers))
            assert 1 <= source.taken <= 5
            for events in readers:
                await cast(Any, events).aclose()
            await asyncio.sleep(0.05)
            taken = source.taken
            await asyncio.sleep(0.1)
            assert source.taken == taken
            assert len(all_streams) == 0

        await running(all_streams, read)

    asyncio.run(act())


def test_a_sample_that_fails_leaves_what_was_and_says_why(made: Callable[[], Streams], source: Source) -> None:
    async def act() -> None:
        all_streams = made()

        async def read() -> None:
            events = await opened(all_streams)
            await until(events, "event: figures")
            source.fails = True
            assert "event: figures" not in await until(events, "Postgres is away")
            source.fails = False
            await until(events, '"problem": ""')

        await running(all_streams, read)

    asyncio.run(act())


def test_a_stream_ends_with_its_session(made: Callable[[], Streams], sessions: FakeSessions) -> None:
    async def act() -> None:
        all_streams = made()

        async def read() -> None:
            events, other = await opened(all_streams, token="s"), await opened(all_streams, token="t")
            await asyncio.gather(until(events, "event: tick"), until(other, "event: tick"))
            sessions.ended.add("s")
            async for _ in events:
                pass
            await until(other, "event: tick")
            assert (await all_streams._open(request("s"))).status_code == 401

        await running(all_streams, read)

    asyncio.run(act())


def test_a_look_up_of_sessions_that_takes_long_delays_no_tick(
    made: Callable[[], Streams], sessions: FakeSessions
) -> None:
    async def act() -> None:
        all_streams = made()

        async def read() -> None:
            events = await opened(all_streams)
            sessions.answers.clear()
            try:
                async with asyncio.timeout(5):
                    while not sessions.looked_up:
                        await until(events, "event: tick")
                    for _ in range(10):
                        await until(events, "event: tick")
            finally:
                sessions.answers.set()
            assert sessions.looked_up == 1, "one at a time"
            await all_streams.settle()
            sessions.ended.add("s")
            async for _ in events:
                pass

        await running(all_streams, read)

    asyncio.run(act())


def test_streams_are_bounded_in_number(made: Callable[[], Streams]) -> None:
    async def act() -> None:
        all_streams = made()
        kept = [await opened(all_streams, token=token) for token in ("a", "b", "c")]
        for events in kept:
            await anext(events)
        answer = await all_streams._open(request("d"))
        assert (answer.status_code, b"3 pages are open" in answer.body) == (503, True)
        await cast(Any, kept[0]).aclose()
        assert (await all_streams._open(request("d"))).status_code == 200

    asyncio.run(act())


def test_one_user_does_not_hold_all_streams(made: Callable[[], Streams]) -> None:
    async def act() -> None:
        all_streams = made()
        kept = [await opened(all_streams, token=token) for token in ("olga-1", "olga-2", "olga-1")]
        for events in kept[:2]:
            await anext(events)
        with pytest.raises(StopAsyncIteration):
            await anext(kept[2])
        answer = await all_streams._open(request("olga-3"))
        assert (answer.status_code, b"You have 2 pages open" in answer.body) == (503, True)
        assert (await all_streams._open(request("vera-1"))).status_code == 200

    asyncio.run(act())


def test_a_request_for_the_head_alone_holds_no_stream(made: Callable[[], Streams]) -> None:
    async def act() -> None:
        all_streams = made()
        answer = await all_streams._open(request(method="HEAD"))
        assert (answer.status_code, answer.media_type, answer.body) == (200, "text/event-stream", b"")
        assert (await all_streams._open(request("tenant", method="HEAD"))).status_code == 404
        assert len(all_streams) == 0

    asyncio.run(act())


def test_a_user_of_one_organization_gets_no_topic_of_all(made: Callable[[], Streams]) -> None:
    async def act() -> None:
        all_streams = made()
        assert (await all_streams._open(request("tenant"))).status_code == 404
        assert (await all_streams._open(request("tenant", query=""))).status_code == 200
        assert (await all_streams._open(request(query="topic=other"))).status_code == 404

    asyncio.run(act())


def test_a_reader_that_takes_nothing_is_dropped(made: Callable[[], Streams], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SLOW_SECONDS", 0.05)

    async def act() -> None:
        all_streams = made()
        answer = await all_streams._open(request())

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            # Full, as the connection to a reader that has stopped reading.
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        async def serve() -> None:
            await answer(request().scope, receive, send)

        await running(all_streams, serve)
        assert len(all_streams) == 0

    asyncio.run(act())


def test_no_text_begins_a_field_of_its_own() -> None:
    """A line of the stream ends with a carriage return, too."""
    assert streams._event("list", "a\revent: tick\r\nb\nc") == (
        "event: list\ndata: a\ndata: event: tick\ndata: b\ndata: c\n\n"
    )


def test_of_many_that_ask_for_a_sample_at_once_one_takes_it() -> None:
    source, begin = Source(), threading.Barrier(8)
    sampled = Sampled(source, seconds=60)

    def ask() -> None:
        begin.wait(5)
        sampled.refreshed()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert source.taken == 1
