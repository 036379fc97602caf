"""The media endpoint of the development agent: accepts media legs as the platform does, then talks and listens.

The platform's rules: a valid token, and a run that is `initialized` and has its `provider` and `call_id`; the run is
then set `running`. The audio that it hears is recorded per run.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg_pool
from aiohttp import WSMsgType, web

from devstack import tones
from shared.platform.dograh import media_url

PATH = "/api/v1/telephony/ws/ari"
SUBPROTOCOL = "media"
#: Audio is sent in pieces of five frames: a fifth of the messages of a real agent; Asterisk re-times them.
PIECE_SECONDS = 0.1
Mode = Literal["echo", "tone", "mute"]

FIND_RUN = """
    SELECT state::text, initial_context ->> 'provider', gathered_context ->> 'call_id'
      FROM workflow_runs WHERE id = %s AND workflow_id = %s
"""
SET_RUNNING = "UPDATE workflow_runs SET state = 'running' WHERE id = %s AND state = 'initialized'"


@dataclass(kw_only=True)
class Session:
    """One media leg as the agent sees it."""

    run_id: int
    #: True while its socket is open.
    open: bool = True
    bytes_heard: int = 0
    #: The last audio heard.
    tail: bytearray = field(default_factory=bytearray)
    #: Text messages from Asterisk (`MEDIA_START …`).
    messages: list[str] = field(default_factory=list)

    def hear(self, audio: bytes) -> None:
        self.bytes_heard += len(audio)
        self.tail += audio
        if len(self.tail) > 4 * tones.WINDOW:
            del self.tail[: -tones.WINDOW]

    @property
    def dominant_frequency(self) -> float | None:
        """The strongest frequency of the last quarter of a second, in Hz; None for silence."""
        return tones.dominant_frequency(bytes(self.tail))


@dataclass(kw_only=True)
class Behaviour:
    """How the agent treats new legs; may be changed while it runs."""

    mode: Mode = "echo"
    tone_hz: int = 400
    accept_delay_seconds: float = 0
    #: Hang up after this time.
    close_after_seconds: float | None = None
    #: Hang up on each n-th leg after so many seconds: n and seconds.
    close_each: tuple[int, float] | None = None
    #: The folder for what was heard last on each leg, as `<run id>.ulaw`.
    record_in: Path | None = None
    #: HTTP status to refuse every leg with.
    refuse: int | None = None


class Refused(Exception):
    """The leg is not accepted: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Endpoint:
    """The websocket endpoint, in one event loop."""

    def __init__(self, behaviour: Behaviour, *, database_url: str | None, secret: str | None) -> None:
        self.behaviour = behaviour
        self.sessions: dict[int, Session] = {}
        self.refusals: list[str] = []
        #: Media socket → its connection.
        self._sockets: dict[web.WebSocketResponse, asyncio.Transport | None] = {}
        self._talks = 0
        self._secret = secret
        # Opened in the loop that uses it. Autocommit: each statement is a transaction, as in the platform.
        self._pool = (
            psycopg_pool.AsyncConnectionPool(
                database_url,
                min_size=1,
                max_size=4,
                open=False,
                timeout=2,
                check=psycopg_pool.AsyncConnectionPool.check_connection,
                kwargs={"autocommit": True, "connect_timeout": 5, "tcp_user_timeout": 5000},
            )
            if database_url
            else None
        )

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[int]:
        """Serve on a loopback port (0: any free one); yields the port."""
        application = web.Application()
        application.router.add_get(PATH, self._accept)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            if self._pool:
                await self._pool.open()
            yield runner.addresses[0][1]
        finally:
            await self.close_all()
            await runner.cleanup()
            if self._pool:
                await self._pool.close()

    async def break_all(self) -> None:
        """Break every connection without a close frame."""
        for transport in list(self._sockets.values()):
            if transport is not None:
                transport.abort()

    async def close_all(self) -> None:
        """Close every media socket, as an agent does that hangs up."""
        await asyncio.gather(*(socket.close() for socket in list(self._sockets)), return_exceptions=True)

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviour
        if behaviour.accept_delay_seconds:
            await asyncio.sleep(behaviour.accept_delay_seconds)
            if request.transport is None or request.transport.is_closing():
                # Asterisk has given up: the run must stay unchanged for the next attempt.
                return web.Response(status=408)
        try:
            if behaviour.refuse:
                raise Refused(behaviour.refuse, "refused by setting")
            run_id = await self._admit(request)
        except Refused as refusal:
            self.refusals.append(f"{refusal.status} {refusal}")
            return web.Response(status=refusal.status, text=f"{refusal}\n")
        socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=1 << 20)
        await socket.prepare(request)
        session = self.sessions[run_id] = Session(run_id=run_id)
        self._sockets[socket] = request.transport
        try:
            await talk(socket, session, behaviour, close_after_seconds=self._closes_after(behaviour))
        finally:
            session.open = False
            if behaviour.record_in:
                (behaviour.record_in / f"{run_id}.ulaw").write_bytes(session.tail)
            self._sockets.pop(socket, None)
        return socket

    async def _admit(self, request: web.Request) -> int:
        """Return the run of a leg that may be accepted, and set it running.

        Raises:
            Refused: with the platform's reason.
        """
        # The newest platform's query names the organization, the one before the user.
        owner = "organization_id" if "organization_id" in request.query else "user_id"
        names = ("workflow_id", owner, "workflow_run_id")
        try:
            ids = {name: int(request.query[name]) for name in names}
        except (KeyError, ValueError):
            raise Refused(400, f"{', '.join(names)} must be numbers") from None
        if self._secret and not media_url.valid(request.query.get("token", ""), self._secret, ids):
            raise Refused(403, "wrong token")
        workflow_id, run_id = ids["workflow_id"], ids["workflow_run_id"]
        if self._pool:
            async with self._pool.connection() as connection:
                found = await (await connection.execute(FIND_RUN, (run_id, workflow_id))).fetchone()
                if found is None:
                    raise Refused(404, f"no run {run_id} of workflow {workflow_id}")
                state, provider, call_id = found
                if provider != "ari" or not call_id:
                    raise Refused(409, f"run {run_id} has provider {provider!r} and call_id {call_id!r}")
                if (await connection.execute(SET_RUNNING, (run_id,))).rowcount != 1:
                    raise Refused(409, f"run {run_id} is {state}, not initialized")
        return run_id

    def _closes_after(self, behaviour: Behaviour) -> float | None:
        self._talks += 1
        if behaviour.close_each and self._talks % behaviour.close_each[0] == 0:
            return behaviour.close_each[1]
        return behaviour.close_after_seconds


async def talk(
    socket: web.WebSocketResponse,
    session: Session,
    behaviour: Behaviour,
    *,
    close_after_seconds: float | None = None,
) -> None:
    """Talk and listen on a media socket until it is closed."""
    background = []
    if behaviour.mode == "tone":
        background.append(asyncio.ensure_future(_send_tone(socket, behaviour.tone_hz)))
    if close_after_seconds is not None:
        background.append(asyncio.ensure_future(_close_after(socket, close_after_seconds)))
    try:
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                session.hear(message.data)
                if behaviour.mode == "echo":
                    await socket.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                session.messages.append(message.data)
    except ConnectionError:
        pass  # The leg ended while audio was sent to it: an ordinary end.
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _send_tone(socket: web.WebSocketResponse, frequency_hz: int) -> None:
    audio = tones.tone(frequency_hz)
    size = round(tones.RATE_HZ * PIECE_SECONDS)
    pieces = [audio[start : start + size] for start in range(0, len(audio), size)]
    loop = asyncio.get_running_loop()
    started, sent = loop.time(), 0
    while not socket.closed:
        await socket.send_bytes(pieces[sent % len(pieces)])
        sent += 1
        await asyncio.sleep(max(0.0, started + sent * PIECE_SECONDS - loop.time()))


async def _close_after(socket: web.WebSocketResponse, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await socket.close()
