"""A simulated Asterisk inside a test: runs in its own thread, controlled through the control client."""

import asyncio
import dataclasses
import threading
from collections.abc import Mapping

from simulator import control, scenarios, server, settings

_STOP_SECONDS = 10.0


class SimulatedAsterisk:
    """Runs for the length of a `with` block, on loopback and a free port.

    `url` is what a tenant configures as its ARI endpoint (`http://127.0.0.1:PORT` and the path prefix); `events_url` is
    the same for websockets. `control` is its control client.

    Args:
        configured: all settings; the arguments below override it.
        users: ARI users and passwords (default demo / demo).
        media_url: where the websocket client `media` connects to.
        path_prefix: path before `/ari`.
        scenario: callers and faults, played from the start.
    """

    control: control.Control

    def __init__(
        self,
        configured: settings.Settings | None = None,
        *,
        users: Mapping[str, str] | None = None,
        media_url: str | None = None,
        path_prefix: str | None = None,
        scenario: scenarios.Scenario | None = None,
    ) -> None:
        whole = configured or settings.Settings()
        if users is not None:
            whole = dataclasses.replace(whole, users=users)
        if media_url is not None:
            whole = dataclasses.replace(whole, media_urls={**whole.media_urls, "media": media_url})
        if path_prefix is not None:
            whole = dataclasses.replace(whole, path_prefix=path_prefix)
        self.settings = whole
        self.port = 0
        self._scenario = scenario
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="simulated-asterisk", daemon=True)

    @property
    def url(self) -> str:
        """Base of the REST surface, without `/ari`."""
        return f"http://127.0.0.1:{self.port}{self.settings.path_prefix}"

    @property
    def events_url(self) -> str:
        """Base of the event socket, without `/ari`."""
        return f"ws://127.0.0.1:{self.port}{self.settings.path_prefix}"

    def start(self) -> "SimulatedAsterisk":
        """Starts it; returns when it answers."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError("the simulated Asterisk did not start") from self._failure
        self.control = control.Control(f"http://127.0.0.1:{self.port}")
        return self

    def stop(self) -> None:
        """Stops it and closes its port."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_SECONDS)

    def __enter__(self) -> "SimulatedAsterisk":
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _work(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as exc:  # noqa: BLE001 - any failure is raised in the thread that started this one
            self._failure = exc
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        running = server.Server(self.settings, self._scenario)
        await running.start()
        self.port = running.port
        self._ready.set()
        try:
            await self._stopping.wait()
        finally:
            await running.stop()
