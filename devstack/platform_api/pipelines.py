"""Voice pipelines: what the platform runs for each media leg that it has accepted, from the first audio to the end."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from aiohttp import web

from devstack import endpoint
from devstack.platform_api.runs import Configuration, Run

End = Literal["user_hangup", "agent_hangup", "transferred"]


class Pipeline:
    """One run's media leg.

    Attributes:
        end: how the call has ended; the caller's or Asterisk's end of the socket until something else is said.
        over: set once the audio has ended.
    """

    def __init__(self, run: Run, configuration: Configuration, socket: web.WebSocketResponse) -> None:
        self.run = run
        self.configuration = configuration
        self.session = endpoint.Session(run_id=run.id)
        self.end: End = "user_hangup"
        self.over = asyncio.Event()
        self._socket = socket
        self._began = time.monotonic()

    @property
    def call_id(self) -> str:
        """The caller's channel, or the far end's."""
        return str(self.run.gathered.get("call_id", ""))

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began

    async def talk(self, behaviour: endpoint.Behaviour) -> None:
        """Talk and listen until the socket is closed."""
        try:
            await endpoint.talk(self._socket, self.session, behaviour)
        finally:
            self.session.open = False
            self.over.set()

    async def close(self, end: End) -> None:
        """End the audio."""
        self.end = end
        await self._socket.close()
