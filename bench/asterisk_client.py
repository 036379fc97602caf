"""A minimal asyncio client of one Asterisk: requests on persistent connections, and events.

Used by the reference clients (`bench/floor.py`, `bench/single.py`) and the callers of `bench/setup.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from typing import Any

import aiohttp

Event = dict[str, Any]

#: Asterisk closes an idle connection after 15 s.
_IDLE_SECONDS = 10.0
_REQUEST = aiohttp.ClientTimeout(total=6)
_OPEN_SECONDS = 10.0


class Refused(Exception):
    """A request was answered with an error: HTTP status and Asterisk's message."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status} {said}")
        self.status = status


class Asterisk:
    """One Asterisk, for one ARI user and one event loop."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._ari = f"{url}/ari"

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> Any:
        """Make a request and return the JSON of the answer, None if it has none.

        Args:
            path: Below `/ari`; its ids are generated here and need no encoding.

        Raises:
            Refused: The status is not 2xx.
            aiohttp.ClientError: There is no answer.
            TimeoutError: There is none within 6 s.
        """
        async with self._session.request(
            method, self._ari + path, params=query, json=body, timeout=_REQUEST
        ) as response:
            text = await response.text()
            if response.status >= 300:
                raise Refused(response.status, text[:200])
            return json.loads(text) if text else None

    async def ask_gone(self, method: str, path: str) -> None:
        """Make a request that is also done if its subject is gone (404)."""
        try:
            await self.ask(method, path)
        except Refused as refused:
            if refused.status != 404:
                raise

    async def create_media(self, app: str, leg: str, client: str, parameters: Mapping[str, object]) -> None:
        """Create a media leg; it is ready at its own StasisStart."""
        pairs = ",".join(f"{name}={value}" for name, value in parameters.items())
        await self.ask("POST", "/channels/externalMedia", {
            "app": app, "external_host": client, "format": "ulaw", "transport": "websocket", "encapsulation": "none",
            "connection_type": "client", "direction": "both", "channelId": leg, "transport_data": f"v({pairs})",
        })  # fmt: skip

    async def create_bridge(self, bridge: str) -> None:
        """Create a mixing bridge."""
        await self.ask("POST", f"/bridges/{bridge}", {"type": "mixing", "name": bridge})

    async def answer(self, leg: str) -> None:
        """Answer a leg."""
        await self.ask("POST", f"/channels/{leg}/answer")

    async def join(self, bridge: str, *legs: str) -> None:
        """Add legs to a bridge."""
        await self.ask("POST", f"/bridges/{bridge}/addChannel", {"channel": ",".join(legs)})

    @contextlib.asynccontextmanager
    async def events(
        self, app: str, types: Collection[str], *, of_all: bool = False
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open an app's event socket, filtered to these types of events; read it with `read`.

        Args:
            of_all: Events of every channel and bridge of this Asterisk, not only the app's.
        """
        url = f"{self._ari.replace('http', 'ws', 1)}/events"
        query = {"app": app} | ({"subscribeAll": "true"} if of_all else {})
        async with self._session.ws_connect(url, params=query, heartbeat=5.0, max_msg_size=1 << 20) as socket:
            await self._filter(app, types)
            yield socket

    async def _filter(self, app: str, types: Collection[str]) -> None:
        """Set the app's event filter. The app exists only a moment after the handshake, so 404 is retried."""
        body = {"allowed": [{"type": name} for name in types]}
        async with asyncio.timeout(_OPEN_SECONDS):
            while True:
                try:
                    await self.ask("PUT", f"/applications/{app}/eventFilter", body=body)
                except Refused as refused:
                    if refused.status != 404:
                        raise
                    await asyncio.sleep(0.02)
                else:
                    return


async def read(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Event]:
    """Yield the events until the socket is closed."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            yield json.loads(message.data)


@contextlib.asynccontextmanager
async def connected(url: str, user: str, password: str, *, requests_at_once: int = 10) -> AsyncIterator[Asterisk]:
    """Connect a client, for `requests_at_once` concurrent requests (default: the worker's)."""
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    # One more connection, for the event socket.
    connector = aiohttp.TCPConnector(limit=requests_at_once + 1, keepalive_timeout=_IDLE_SECONDS)
    headers = {"Authorization": f"Basic {secret}"}
    unlimited = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=unlimited) as session:
        yield Asterisk(session, url)


class Tasks:
    """Background tasks, referenced until they are done; asyncio prints a failure on standard error."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def done(self) -> None:
        """Wait for all tasks; raise what any of them raised."""
        await asyncio.gather(*self._running)
