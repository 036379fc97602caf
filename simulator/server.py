"""The HTTP server of one simulated Asterisk: sign-in, faults, the request log, the event websocket."""

import asyncio
import base64
import binascii
import ipaddress
import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from simulator import (
    control_api,
    errors,
    event_sockets,
    instance,
    rest,
    rest_applications,
    rest_asterisk,
    rest_bridges,
    rest_channels,
    rest_events,
    scenarios,
    settings,
)

_ROUTES = [
    *rest_applications.ROUTES,
    *rest_asterisk.ROUTES,
    *rest_channels.ROUTES,
    *rest_bridges.ROUTES,
    *rest_events.ROUTES,
]
_SHUTDOWN_SECONDS = 0.2


class Server:
    """One simulated Asterisk with its port."""

    def __init__(self, configured: settings.Settings, scenario: scenarios.Scenario | None = None) -> None:
        self.settings = configured
        self.instance = instance.Instance(configured)
        self.switch = self.instance.switch
        self.faults = self.instance.faults
        self.port = 0
        self._scenario = scenario
        self._playing: asyncio.Task[None] | None = None
        self._runner: web.ServerRunner | None = None
        self._socket: socket.socket | None = None
        self._sessions: set[web.RequestHandler] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Starts listening and sets `port` to the real port."""
        self._runner = web.ServerRunner(
            web.Server(self._handle, keepalive_timeout=self.settings.keep_alive_seconds, access_log=None),
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        self._socket = socket.create_server((host, port))
        await web.SockSite(self._runner, self._socket, backlog=512).start()
        self.port = self._runner.addresses[0][1]
        if self._scenario is not None:
            self._playing = asyncio.create_task(scenarios.play(self._scenario, self.instance))

    async def stop(self) -> None:
        """Cuts all connections and closes the port."""
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)
        self.faults.clear()
        await self.switch.stop()
        if self._socket is not None:
            # Stop accepting first, and let connections that were just accepted be set up: one that is still being set
            # up when its server closes is never closed (Python 3.11).
            asyncio.get_running_loop().remove_reader(self._socket)
            for _ in range(3):
                await asyncio.sleep(0)
        for session in self._sessions:
            if session.transport is not None:
                session.transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if path.startswith("/simulator/"):
            return await self._control(request, path.removeprefix("/simulator/"))
        if not self.switch.is_running or self._is_session_too_many(request):
            return _cut(request)
        return await self._ari(request, path)

    async def _control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        try:
            if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:  # noqa: S104 - an unknown address
                raise errors.Refusal(403, "Control requests are accepted from loopback only")
            handler, names = rest.match(control_api.ROUTES, request.method, _segments(path))
            answer = await handler(self.instance, await _parsed(request, names))
        except errors.Refusal as refusal:
            answer = rest.Answer(refusal.status, {"message": refusal.message})
        return _response(answer)

    async def _ari(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        root = f"{self.settings.path_prefix}/ari/"
        segments = _segments(path.removeprefix(root)) if path.startswith(root) else []
        logged = instance.LoggedRequest(
            method=request.method,
            path="/" + "/".join(segments) if segments else path,
            query=dict(request.query),
            started_at=time.monotonic(),
        )
        self.instance.log.append(logged)
        life = self.switch.life
        try:
            response = await self._answered(request, segments, logged)
        except errors.Refusal as refusal:
            response = _response(rest.Answer(refusal.status, {"message": refusal.message}))
        except errors.Cut:
            response = None
        logged.ms = (time.monotonic() - logged.started_at) * 1000
        if response is None or life != self.switch.life:
            logged.status = 0
            return _cut(request)
        logged.status = response.status
        return response

    async def _answered(
        self, request: web.BaseRequest, segments: list[str], logged: instance.LoggedRequest
    ) -> web.StreamResponse:
        if not segments:
            raise errors.Refusal(404, "Resource not found")
        if not self._is_user(request):
            refused = _response(rest.Answer(401, {"message": "Authentication required"}))
            refused.headers["WWW-Authenticate"] = 'Basic realm="Asterisk REST Interface"'
            return refused
        if request.method != "GET" and _credentials(request).partition(":")[0] in self.settings.read_only_users:
            raise errors.Refusal(403, "Write access denied")
        life = self.switch.life
        fault = await self.faults.strike("before", request.method, logged.path)
        if life != self.switch.life:
            raise errors.Cut
        if fault is not None:
            raise fault
        if segments == ["events"]:
            return await self._listen(request, logged)
        handler, names = rest.match(_ROUTES, request.method, segments)
        refusal: errors.Refusal | None = None
        answer = rest.NO_CONTENT
        try:
            answer = await handler(self.switch, await _parsed(request, names))
        except errors.Refusal as exc:
            refusal = exc
        fault = await self.faults.strike("after", request.method, logged.path)
        if fault is not None:
            raise fault
        if refusal is not None:
            raise refusal
        return _response(answer)

    async def _listen(self, request: web.BaseRequest, logged: instance.LoggedRequest) -> web.StreamResponse:
        names = [name for name in request.query.get("app", "").split(",") if name]
        if not names:
            raise errors.Refusal(400, "HTTP request is missing param: [app]")
        websocket = web.WebSocketResponse(compress=False, protocols=("ari",), timeout=1.0)
        if not websocket.can_prepare(request):
            raise errors.Refusal(426, "Upgrade Required")
        life = self.switch.life
        await websocket.prepare(request)
        if request.transport is None or life != self.switch.life:
            raise errors.Cut
        logged.status = 101
        socket = event_sockets.EventSocket(websocket, request.transport, self.settings.event_write_timeout_seconds)
        is_all = request.query.get("subscribeAll", "").lower() == "true"
        self.switch.applications.connect(names, socket, subscribe_all=is_all)
        writing = self.switch.spawn(socket.write())
        try:
            async for _ in websocket:
                pass
        finally:
            self.switch.applications.disconnect(socket)
            writing.cancel()
        return websocket

    def _is_user(self, request: web.BaseRequest) -> bool:
        user, colon, password = _credentials(request).partition(":")
        return bool(colon) and self.settings.users.get(user) == password

    def _is_session_too_many(self, request: web.BaseRequest) -> bool:
        if request.protocol not in self._sessions:
            if len(self._sessions) >= self.settings.session_limit:
                self._sessions = {session for session in self._sessions if session.transport is not None}
            if len(self._sessions) >= self.settings.session_limit:
                return True
            self._sessions.add(request.protocol)
        return False


def _credentials(request: web.BaseRequest) -> str:
    """Returns `user:password`; nothing if there are none."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return request.query.get("api_key", "")
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _segments(path: str) -> list[str]:
    return [unquote(segment) for segment in path.split("/")]


async def _parsed(request: web.BaseRequest, names: list[str]) -> rest.Request:
    text = await request.read()
    body = None
    if text and "form" not in request.content_type:
        try:
            body = json.loads(text)
        except ValueError as exc:
            raise errors.Refusal(400, "Invalid JSON") from exc
    return rest.Request(method=request.method, query=request.query, body=body, names=names)


def _response(answer: rest.Answer) -> web.Response:
    headers = {"Server": "Asterisk/simulated"}
    if answer.body is None:
        return web.Response(status=answer.status, headers=headers)
    dumps: Callable[[Any], str] = json.dumps
    return web.json_response(answer.body, status=answer.status, headers=headers, dumps=dumps)


def _cut(request: web.BaseRequest) -> web.Response:
    """Drops the connection; the response that is returned is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
