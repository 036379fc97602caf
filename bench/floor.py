"""The lower bound of a set-up time: a bare asyncio client, no database, no queue. `python -m bench.floor`

On a caller's StasisStart it requests media leg and bridge in parallel; on the media leg's it answers and adds both legs
in parallel; when either leg ends it removes the other one and the bridge. Nothing is recorded, checked, retried or
recovered.

Environment: `ARI_URL`, `ARI_APP` (also the user), `ARI_PASSWORD`, `MEDIA_CLIENT`. Prints `ready` once its event socket
is open.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from dataclasses import dataclass

from bench import asterisk_client
from bench.asterisk_client import Asterisk, Event, Tasks


@dataclass(kw_only=True)
class Call:
    """A caller, the ids of its media leg and bridge, and whether the bridge exists."""

    caller: str
    media: str
    bridge: str
    bridged: asyncio.Future[None]


class Floor:
    """The calls of one app."""

    def __init__(self, asterisk: Asterisk, app: str, client: str, tasks: Tasks) -> None:
        self._asterisk = asterisk
        self._app = app
        self._client = client
        self._tasks = tasks
        #: By the id of either leg.
        self._calls: dict[str, Call] = {}
        self._count = 0

    def handle(self, event: Event) -> None:
        """Handle an event."""
        leg = event["channel"]["id"]
        if event["type"] == "StasisEnd":
            if (call := self._calls.pop(leg, None)) is not None:
                self._tasks.start(self._end(call))
        elif (call := self._calls.get(leg)) is not None:
            self._tasks.start(self._join(call))
        else:
            self._tasks.start(self._begin(leg))

    async def _begin(self, caller: str) -> None:
        self._count += 1
        name = f"floor-{uuid.uuid4().hex}"
        bridged = asyncio.get_running_loop().create_future()
        call = Call(caller=caller, media=f"{name}-m", bridge=f"{name}-b", bridged=bridged)
        self._calls[caller] = self._calls[call.media] = call
        whose = {"workflow_id": 1, "user_id": 1, "workflow_run_id": self._count}
        await asyncio.gather(
            self._bridge(call), self._asterisk.create_media(self._app, call.media, self._client, whose)
        )

    async def _bridge(self, call: Call) -> None:
        await self._asterisk.create_bridge(call.bridge)
        call.bridged.set_result(None)

    async def _join(self, call: Call) -> None:
        await call.bridged
        await asyncio.gather(
            self._asterisk.answer(call.caller), self._asterisk.join(call.bridge, call.caller, call.media)
        )

    async def _end(self, call: Call) -> None:
        left = self._calls.pop(call.media, None) or self._calls.pop(call.caller, None)
        if left is not None:
            await asyncio.gather(
                self._asterisk.ask_gone("DELETE", f"/channels/{call.media}"),
                self._asterisk.ask_gone("DELETE", f"/channels/{call.caller}"),
                self._asterisk.ask_gone("DELETE", f"/bridges/{call.bridge}"),
            )


async def serve(url: str, app: str, password: str, client: str) -> None:
    """Serve until the event socket is closed."""
    async with (
        asterisk_client.connected(url, app, password) as asterisk,
        asterisk.events(app, ["StasisStart", "StasisEnd"]) as socket,
    ):
        floor = Floor(asterisk, app, client, Tasks())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async for event in asterisk_client.read(socket):
            floor.handle(event)


if __name__ == "__main__":
    given = os.environ
    asyncio.run(serve(given["ARI_URL"], given["ARI_APP"], given["ARI_PASSWORD"], given["MEDIA_CLIENT"]))
