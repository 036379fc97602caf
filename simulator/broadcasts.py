"""Calls that `StasisBroadcast` offers to several apps: the first app to claim a call gets it."""

import asyncio
from dataclasses import dataclass, field

from simulator import errors


@dataclass(eq=False)
class _Broadcast:
    winner: str | None = None
    claimed: asyncio.Event = field(default_factory=asyncio.Event)


class Broadcasts:
    """The offered calls, and the claimed ones until they leave Stasis."""

    def __init__(self) -> None:
        self._by_channel: dict[str, _Broadcast] = {}

    def claim(self, channel_id: str, app: str) -> None:
        """Claims a call for an app. Whether the app has a socket is checked when the call enters it.

        Raises:
            errors.Refusal: no call of that id is offered (404), or another app was first (409).
        """
        broadcast = self._by_channel.get(channel_id)
        if broadcast is None:
            raise errors.Refusal(404, "Channel not found or not in broadcast state")
        if broadcast.winner is not None:
            raise errors.Refusal(409, "Channel has already been claimed by another application")
        broadcast.winner = app
        broadcast.claimed.set()

    async def winner(self, channel_id: str, timeout_seconds: float) -> str | None:
        """Waits for the first claim and returns its app; None if none came in time, which ends the offer."""
        broadcast = self._by_channel[channel_id] = _Broadcast()
        try:
            async with asyncio.timeout(timeout_seconds):
                await broadcast.claimed.wait()
        except TimeoutError:
            self.forget(channel_id)
        return broadcast.winner

    def forget(self, channel_id: str) -> None:
        """Removes a call that has left Stasis or ended."""
        self._by_channel.pop(channel_id, None)

    def clear(self) -> None:
        """Removes all calls: Asterisk is gone."""
        self._by_channel.clear()
