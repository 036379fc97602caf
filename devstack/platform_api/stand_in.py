"""The stand-in of the platform's API in a thread, for tests."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from devstack import processes
from devstack.loop_thread import LoopThread
from devstack.platform_api import media, server
from devstack.platform_api.calls import Placed, Request
from devstack.platform_api.server import Behaviour, Options
from devstack.platform_api.transfers import Result


class StandIn:
    """A context manager, or `start()` and `stop()` on the same port.

    Attributes:
        behaviour: its fields may be changed at any time.
        api: what runs; while it is started.
    """

    api: server.PlatformApi

    def __init__(self, options: Options, *, port: int | None = None, behaviour: Behaviour | None = None) -> None:
        self.options = options
        self.behaviour = behaviour or Behaviour()
        self.port = port or processes.free_port()
        self._thread: LoopThread[tuple[server.PlatformApi, int]] | None = None

    @property
    def url(self) -> str:
        """The URL of the API: also that of the quota service."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def media_url(self) -> str:
        """The URL for websocket_client.conf."""
        return f"ws://127.0.0.1:{self.port}{media.PATH}"

    def start(self) -> None:
        """Listen. Raises OSError: the port is in use."""
        self._thread = LoopThread("platform-api", server.serving(self.options, self.behaviour, port=self.port))
        self.api, _ = self._thread.start()

    def stop(self) -> None:
        """Close every session and the port."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def call(self, workflow_id: int, number: str, **how: Any) -> Placed:
        """Place a call; returns once call_id is written. Raises NotPlaced."""
        return self._started.run(self.api.call(Request(workflow_id=workflow_id, number=number, **how)))

    def hang_up(self, run_id: int) -> None:
        """Let the agent of a run hang up."""
        self._started.run(self.api.hang_up(run_id))

    def transfer(self, run_id: int, number: str, *, seconds: int = 30) -> Result:
        """Let the agent of a run transfer its caller; returns once it has, or could not."""
        return self._started.run(self.api.transfer(run_id, number, seconds=seconds))

    @property
    def _started(self) -> LoopThread[tuple[server.PlatformApi, int]]:
        assert self._thread is not None, "it was not started"
        return self._thread

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
