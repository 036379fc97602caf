"""The development voice agent: it replaces the platform's, and is not part of the product.

It echoes what it hears or sends a tone, and records what it heard. In tests it runs in a thread (`Agent`), for
`make run` as a process (`python -m devstack.agent`).
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import processes
from devstack.endpoint import PATH, Behaviour, Endpoint, Session
from devstack.loop_thread import LoopThread
from shared.process import sealing

PREFERRED_PORT = 18765


class Agent:
    """The agent in its own thread, for tests: a context manager, or `start()` and `stop()` on the same port.

    Attributes:
        behaviour: its fields may be changed at any time.
        sessions: run id → what the agent heard.
        refusals: status and reason of each refused leg.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        secret: str | None = None,
        port: int | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.port = port or processes.free_port()
        self._database_url = database_url
        self._secret = secret
        self.sessions: dict[int, Session] = {}
        self.refusals: list[str] = []
        self._thread: LoopThread[Endpoint] | None = None

    @property
    def url(self) -> str:
        """The URL for websocket_client.conf."""
        return f"ws://127.0.0.1:{self.port}{PATH}"

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is in use.
        """
        self._thread = LoopThread("agent", self._serving())
        self._endpoint = self._thread.start()

    def stop(self) -> None:
        """Close every session and the port."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def break_all(self) -> None:
        """Break the connection of every media socket, as a process that dies does."""
        if self._thread is not None:
            self._thread.run(self._endpoint.break_all())

    def close_all(self) -> None:
        """Close every media socket; new ones are still accepted."""
        if self._thread is not None:
            self._thread.run(self._endpoint.close_all())

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[Endpoint]:
        endpoint = Endpoint(self.behaviour, database_url=self._database_url, secret=self._secret)
        endpoint.sessions, endpoint.refusals = self.sessions, self.refusals
        async with endpoint.listening(self.port):
            yield endpoint

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


async def serve(behaviour: Behaviour, *, port: int, database_url: str | None, secret: str | None) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Endpoint(behaviour, database_url=database_url, secret=secret).listening(port) as bound:
        sys.stdout.write(f"agent listens on ws://127.0.0.1:{bound}{PATH}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m devstack.agent", description="The development voice agent.")
    parser.add_argument("--port", type=int, default=PREFERRED_PORT, help="loopback port, 0 for any")
    parser.add_argument("--mode", choices=["echo", "tone"], default="echo")
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="default: env DATABASE_URL")
    parser.add_argument("--accept-delay", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--close-after", type=float, metavar="SECONDS")
    parser.add_argument("--close-each", nargs=2, type=float, metavar=("N", "SECONDS"), help="each N-th leg, earlier")
    parser.add_argument("--record-in", type=Path, metavar="FOLDER", help="for what is heard last on each leg")
    parser.add_argument("--refuse", type=int, metavar="STATUS", help="refuse every leg with this HTTP status")
    options = parser.parse_args()
    behaviour = Behaviour(
        mode=options.mode,
        accept_delay_seconds=options.accept_delay,
        close_after_seconds=options.close_after,
        close_each=(int(options.close_each[0]), options.close_each[1]) if options.close_each else None,
        record_in=options.record_in,
        refuse=options.refuse,
    )
    secret = os.environ.get("MEDIA_TOKEN_SECRET")
    if not secret and (keys := os.environ.get("SECRET_KEY")):
        # As the pipeline does without MEDIA_TOKEN_SECRET.
        secret = sealing.media_secret(keys.split(",")[0].strip())
    asyncio.run(serve(behaviour, port=options.port, database_url=options.database_url, secret=secret))


if __name__ == "__main__":
    main()
