"""A listener in this process, between a Redis written as the scheduler does and a server that plays Asterisk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Self

import redis
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from listener import main
from shared.assignments import Assignment, SocketState
from shared.process import sealing, settings
from tests.support import scheduler_side
from tests.support.scenes import until

SECRET_KEY = "a key of the listener's tests"
PASSWORD = "pass word & # % + : ="
SEALER = sealing.Sealer((SECRET_KEY,))


class Asterisk:
    """A websocket server that behaves like Asterisk: the newest socket of an app replaces the one before."""

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


class Scheduler(scheduler_side.SchedulerSide):
    """The scheduler's side of a real Redis."""

    def __init__(self, url: str) -> None:
        super().__init__(redis.Redis.from_url(url))
        self.url = url


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
    """A listener in this process that hardly waits between attempts."""
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


def state_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> SocketState | None:
    report = scheduler.report(listener.id, of)
    return report.state if report else None


def error_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> str:
    report = scheduler.report(listener.id, of)
    return report.error if report else ""


def reconnects_of(scheduler: Scheduler, listener: main.Listener, of: Assignment) -> int:
    report = scheduler.report(listener.id, of)
    return report.reconnects if report and report.state is SocketState.CONNECTED else -1
