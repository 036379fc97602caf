"""Calls that `StasisBroadcast` offers to several apps: whoever claims one first gets it."""

import asyncio
from dataclasses import dataclass, field

from simulator import errors


@dataclass(eq=False)
class _Broadcast:
    winner: str | None = None
    claimed: asyncio.Event = field(default_factory=asyncio.Event)


class Broadcasts:
    """The calls on offer, and those that were claimed, until they leave Stasis again."""

    def __init__(self) -> None:
        self._by_channel: dict[str, _Broadcast] = {}

    def claim(self, channel_id: str, app: str) -> None:
        """Gives a call to an app; whether anybody listens there is seen only when the call enters it.

        Raises:
            errors.Refusal: nothing of that id is on offer (404), or another app was first (409).
        """
        broadcast = self._by_channel.get(channel_id)
        if broadcast is None:
            raise errors.Refusal(404, "Channel not found or not in broadcast state")
        if broadcast.winner is not None:
            raise errors.Refusal(409, "Channel has already been claimed by another application")
        broadcast.winner = app
        broadcast.claimed.set()

    async def winner(self, channel_id: str, timeout_seconds: float) -> str | None:
        """Waits for the first claim; None when there was none in time, and the call is on offer no more."""
        broadcast = self._by_channel[channel_id] = _Broadcast()
        try:
            async with asyncio.timeout(timeout_seconds):
                await broadcast.claimed.wait()
        except TimeoutError:
            self.forget(channel_id)
        return broadcast.winner

    def forget(self, channel_id: str) -> None:
        """A call has left Stasis, or ended: later claims find nothing."""
        self._by_channel.pop(channel_id, None)

    def clear(self) -> None:
        """Asterisk is gone."""
        self._by_channel.clear()
