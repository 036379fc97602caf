"""The event socket of an app, read up to an awaited event or until nothing comes."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from websockets.sync.client import ClientConnection

JSONObject = dict[str, Any]
#: Events that a real Asterisk sends and the simulated one does not: the product ignores them.
CHATTER = {"ChannelVarset", "ChannelConnectedLine", "ChannelCallerId", "ChannelDialplan"}


def until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """Poll until the condition holds and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return found


def about(event: JSONObject) -> str | None:
    """Return the id of the channel of an event; of a Dial, that of its peer."""
    channel: JSONObject = event.get("channel") or event.get("peer") or {}
    return channel.get("id")


class Events:
    """An event socket of one app."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[JSONObject] = []

    def next(self, kind: str, channel_id: str | None = None, seconds: float = 6.0) -> JSONObject:
        """Read to the next event of this type (and channel, or peer of a Dial)."""
        deadline = time.monotonic() + seconds
        while True:
            event: JSONObject = json.loads(self.socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            self.seen.append(event)
            if event["type"] == kind and channel_id in (None, about(event)):
                return event

    def find(self, kind: str, channel_id: str) -> JSONObject:
        """Return the first event of this type and channel since `rest`, read already or not."""
        read = (event for event in self.seen if event["type"] == kind and about(event) == channel_id)
        return next(read, None) or self.next(kind, channel_id)

    def rest(self, seconds: float = 0.3) -> list[JSONObject]:
        """Return the events since the last call, reading until none comes for `seconds`."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.seen.append(json.loads(self.socket.recv(timeout=seconds)))
        taken, self.seen = self.seen, []
        return taken

    def types(self, channel_id: str | None = None, seconds: float = 0.3) -> list[str]:
        """The types of `rest()`; of the events about one channel only, if named."""
        return [
            event["type"]
            for event in self.rest(seconds)
            if event["type"] not in CHATTER and channel_id in (None, about(event))
        ]
