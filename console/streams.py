"""Keeps open pages current: one ticker for all, and a bounded stream of server-sent events for each.

A stream keeps nothing for its reader: when the reader has taken one turn's events, the next turn has what is newest
then. So a slow reader costs no memory, and one that takes nothing for some seconds is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from console import tokens
from console.sampling import Published, Sampled
from shared import errors
from shared.operator.users import Sessions, hash_of

_log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
#: A reader that does not take its events within this time is dropped.
SLOW_SECONDS = 10.0
#: How often the sessions of all streams are looked up, by one statement.
SESSIONS_SECONDS = 10.0
#: A browser that has lost its stream asks for it again after this time.
_RETRY_MS = 1000
_MEDIA_TYPE = "text/event-stream"
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(eq=False, slots=True, kw_only=True)
class _Reader:
    """One open page."""

    token_hash: bytes
    user: str
    #: None for a page that only wants to know that the server is there.
    topic: Sampled | None
    #: The number of the newest sample that the page has.
    has: int


class Streams:
    """The streams of all open pages.

    Args:
        topics: Name → what pages may ask to be kept current about.
        most: The largest number of streams.
        most_of_user: And of one user, in all sessions together.
    """

    def __init__(self, sessions: Sessions, topics: Mapping[str, Sampled], *, most: int, most_of_user: int) -> None:
        self._sessions = sessions
        self._topics = topics
        self._most = most
        self._most_of_user = most_of_user
        self._readers: set[_Reader] = set()
        self._turn = asyncio.Event()
        self._is_closing = False
        #: The monotonic clock when the event loop last came round.
        self.ticked_at = time.monotonic()
        self._sampling: dict[Sampled, asyncio.Task[Published]] = {}
        self._looking_up: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._readers)

    def route(self) -> Route:
        """Return the route of the streams: `/live?topic=…&since=…`."""
        return Route("/live", self._open, methods=["GET"])

    async def run(self) -> None:
        """Wake all streams once a second, for ever."""
        looked_up_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.ticked_at = time.monotonic()
            if self._is_closing:
                self._wake()
                return
            for topic in {reader.topic for reader in self._readers if reader.topic is not None}:
                self._refresh(topic)
            if self._readers and time.monotonic() - looked_up_at >= SESSIONS_SECONDS:
                looked_up_at = time.monotonic()
                self._look_up_sessions()
            self._wake()

    def close_soon(self) -> None:
        """End all streams with the next tick: the process stops. From any thread."""
        self._is_closing = True

    async def settle(self) -> None:
        """Wait for the samples that are being taken, and for the sessions that are being looked up."""
        looking_up = [self._looking_up] if self._looking_up is not None else []
        await asyncio.gather(*self._sampling.values(), *looking_up, return_exceptions=True)

    def _wake(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _refresh(self, topic: Sampled) -> None:
        """Start to take a sample; a server that is slow to answer does not hold up the ticks."""
        running = self._sampling.get(topic)
        if running is None or running.done():
            self._sampling[topic] = asyncio.create_task(run_in_threadpool(topic.refreshed))

    def _look_up_sessions(self) -> None:
        """Start to end the streams of those who have signed out; as samples, it does not hold up the ticks."""
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.create_task(self._end_those_signed_out())

    async def _end_those_signed_out(self) -> None:
        # Without Postgres all stay: they show no more than they have.
        with contextlib.suppress(errors.DatabaseUnavailable):
            asked = {reader.token_hash for reader in self._readers}
            ended = asked - await run_in_threadpool(self._sessions.keep, asked)
            self._readers = {reader for reader in self._readers if reader.token_hash not in ended}

    async def _open(self, request: Request) -> Response:
        if tokens.is_cross_site(request):
            return PlainTextResponse("another site may not open a stream", status_code=403)
        token = tokens.session(request)
        try:
            user = await run_in_threadpool(self._sessions.user_of, token) if token else None
        except errors.PipelineError as exc:
            return PlainTextResponse(f"Postgres does not answer: {exc}", status_code=503)
        if user is None:
            return PlainTextResponse("signed out", status_code=401)
        name = request.query_params.get("topic", "")
        if name and (name not in self._topics or user.organization_id is not None):
            return PlainTextResponse("no such topic", status_code=404)
        refusal = self._refusal(user.name)
        if refusal:
            return PlainTextResponse(refusal, status_code=503)
        since = request.query_params.get("since", "0")
        has = int(since) if since.isascii() and since.isdigit() and len(since) < 18 else 0
        reader = _Reader(token_hash=hash_of(token), user=user.name, topic=self._topics.get(name), has=has)
        # Of an answer to HEAD no reader takes the body: a stream would be held for ever.
        return Response(media_type=_MEDIA_TYPE) if request.method == "HEAD" else _EventStream(self._events(reader))

    def _refusal(self, user: str) -> str:
        """Return why this user gets no further stream; empty if there is nothing against it."""
        if sum(reader.user == user for reader in self._readers) >= self._most_of_user:
            return f"You have {self._most_of_user} pages open, and no further one is kept current: close some."
        if len(self._readers) >= self._most:
            return f"{self._most} pages are open, and no further one is kept current until others are closed."
        return ""

    async def _events(self, reader: _Reader) -> AsyncGenerator[str, None]:
        if self._refusal(reader.user):
            # Others have come between the request and its answer.
            return
        self._readers.add(reader)
        try:
            yield f"retry: {_RETRY_MS}\n\n"
            while reader in self._readers and not self._is_closing:
                turn = self._turn
                yield _told(reader)
                await turn.wait()
        finally:
            self._readers.discard(reader)


def _told(reader: _Reader) -> str:
    """Return what a reader does not have yet, and a tick with the age of what it has then."""
    if reader.topic is None:
        return _event("tick", "{}")
    newest = reader.topic.newest
    # A number ahead of ours is of another process, whose clock goes differently.
    has = reader.has if reader.has <= newest.number else 0
    reader.has = newest.number
    parts = [_event(name, newest.parts[name]) for name, number in newest.changed.items() if number > has]
    about = {"age": newest.age_ms, "problem": newest.problem} if newest.number else {}
    return "".join(parts) + _event("tick", json.dumps(about))


def _event(name: str, data: str) -> str:
    # A carriage return ends a line of the stream, too: what follows would be a field of its own.
    return f"event: {name}\n" + "".join(f"data: {line}\n" for line in _LINE_END.split(data)) + "\n"


class _EventStream(StreamingResponse):
    """A stream that ends when its reader takes nothing for `SLOW_SECONDS`."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, media_type=_MEDIA_TYPE)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SLOW_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            _log.info("slow reader dropped")
        finally:
            # Broken off while it sent, it would count as open until Python collects it.
            await self._events.aclose()
