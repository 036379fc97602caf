"""Connections of browsers: those that ask for nothing are closed, for each counts as one of a bounded number."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: A connection is closed if it has not sent the whole head of a request within one to two of these.
SILENT_SECONDS = 10.0


class Protocol(H11Protocol):
    """HTTP/1.1 whose silent connections are closed: the library waits for the end of a request's head for ever."""

    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to look at the connection."""
        super().connection_made(transport)
        self._look = self.loop.call_later(SILENT_SECONDS, self._close_if_silent, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self, had: Any) -> None:
        """Close it if the last request is the one that it had at the last look, and was answered."""
        last: Any = self.cycle
        if last is had and (last is None or last.response_complete):
            self.transport.close()
            return
        self._look = self.loop.call_later(SILENT_SECONDS, self._close_if_silent, last)
