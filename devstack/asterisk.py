"""A real Asterisk for tests and for `make run ASTERISK=real`: started, crashed, restarted and asked from here.

Calls need no phone: a Local channel's one half enters the dialplan as a ringing inbound call, its other half runs an
extension of the context `far` and so behaves like a caller. What it hears can be recorded, and its frequency asked for.
"""

import os
import secrets
import shutil
import time
import uuid
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests

from devstack import asterisk_config, folders, processes, tones
from devstack.asterisk_config import ADMINISTRATOR, Configuration
from devstack.asterisk_root import Root

PREFERRED_PORT = 18088
#: In front, not behind: Asterisk 22.10 refuses an id (409) that is the beginning of a live channel's id (measured).
FAR_PREFIX = "far-"


class Switch:
    """An Asterisk reached over ARI: calls dialled in, channels and bridges listed.

    Args:
        url: without `/ari`, path prefix included.
        configuration: what it was, or will be, configured with.
    """

    def __init__(self, url: str, user: str, password: str, configuration: Configuration) -> None:
        self.url = url
        self.configuration = configuration
        self._session = requests.Session()
        self._session.auth = (user, password)

    def request(self, method: str, path: str, *, body: Any = None, **query: str) -> requests.Response:
        """One ARI request, `path` as in `/channels`; any status is returned."""
        return self._session.request(method, f"{self.url}/ari{path}", params=query, json=body, timeout=10)

    def dial(
        self,
        context: str = "inbound",
        *,
        called: str = "5551234",
        caller: str = "4915550001",
        far: str = "wait",
        channel_id: str | None = None,
        other_channel_id: str | None = None,
        listen: bool = False,
    ) -> str:
        """Let somebody call in; returns the id of the leg that enters the dialplan.

        Args:
            context: of the dialplan, decides the app.
            far: what the caller does: `wait`, `tone` (1004 Hz), `play400` (400 Hz, any number), `echo`, `busy`,
                `reject`, `congestion`, `ring` (never answers).
            channel_id: of the leg that enters the dialplan (the call's), made up when missing.
            other_channel_id: of the caller's own half.
            listen: record what the caller hears, for `heard_by_caller`.
        """
        leg = channel_id or f"call-{uuid.uuid4().hex}"
        caller_half = other_channel_id or FAR_PREFIX + leg
        answer = self.request(
            "POST",
            "/channels",
            body={"variables": {"HEARD": leg}} if listen else None,
            endpoint=f"Local/{called}@{context}",
            context="far",
            extension=far,
            priority="1",
            callerId=caller,
            # As a telephone has it. Without, a Local channel talks in 192 kHz, and resampling fills the processor.
            formats="ulaw",
            channelId=caller_half,
            otherChannelId=leg,
        )
        answer.raise_for_status()
        return leg

    def hang_up(self, channel_id: str) -> None:
        """Hang a leg up, as its caller would when it is the caller's half; nothing happens when it is gone."""
        answer = self.request("DELETE", f"/channels/{quote(channel_id, safe='')}")
        if answer.status_code != 404:
            answer.raise_for_status()

    def hang_up_caller(self, channel_id: str) -> None:
        """The caller of this leg (as returned by `dial`) hangs up."""
        self.hang_up(FAR_PREFIX + channel_id)

    def channels(self) -> list[dict[str, Any]]:
        answer = self.request("GET", "/channels")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def bridges(self) -> list[dict[str, Any]]:
        answer = self.request("GET", "/bridges")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def answers(self) -> bool:
        """Whether ARI is there."""
        try:
            return self.request("GET", "/asterisk/ping").status_code == 200
        except requests.RequestException:
            return False

    def close(self) -> None:
        self._session.close()


def existing() -> Switch | None:
    """The Asterisk that environment variables name, None without them.

    `ASTERISK_URL` (with any path prefix), `ASTERISK_USER`, `ASTERISK_PASSWORD`; `ASTERISK_APP` (default: the user)
    entered from the dialplan context `ASTERISK_CONTEXT` (inbound); the websocket client `ASTERISK_CLIENT` (media),
    which connects to `ASTERISK_MEDIA_URL`. Its dialplan needs the context `far` of `devstack/asterisk_config.py`.
    """
    given = os.environ
    if not (url := given.get("ASTERISK_URL")):
        return None
    user, password = given.get("ASTERISK_USER", "voiceai"), given.get("ASTERISK_PASSWORD", "")
    client = asterisk_config.Client(uri=given.get("ASTERISK_MEDIA_URL", "ws://127.0.0.1:18765"))
    configuration = Configuration(
        contexts={given.get("ASTERISK_CONTEXT", "inbound"): given.get("ASTERISK_APP", user)},
        users={user: password},
        clients={given.get("ASTERISK_CLIENT", "media"): client},
    )
    return Switch(url.rstrip("/"), user, password, configuration)


class RealAsterisk(Switch):
    """An instance of our own.

    Args:
        root: where Asterisk is installed.
        folder: of this instance alone; made when missing.
        configuration: kept as `.configuration`; after a change call `reload()`.
    """

    def __init__(
        self, root: Root, folder: Path, configuration: Configuration | None = None, *, preferred_port: int | None = None
    ) -> None:
        self._root = root
        self._folder = folder
        configuration = configuration or Configuration()
        self.port = processes.free_port(preferred_port)
        prefix = configuration.prefix.strip("/")
        self._password = secrets.token_urlsafe(24)
        self._name = f"ari-pipeline-{secrets.token_hex(6)}"
        self._process: processes.Kept | None = None
        url = f"http://127.0.0.1:{self.port}" + (f"/{prefix}" if prefix else "")
        super().__init__(url, ADMINISTRATOR, self._password, configuration)
        folders.make(folder, mode=0o700)
        for part in ("etc", "lib", "spool", "run", "log", "recordings"):
            folders.make(folder / part, mode=0o755)

    @property
    def users(self) -> dict[str, str]:
        """ARI user → password."""
        return self.configuration.users

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._write()
        self._process = processes.Kept(
            self._root.command(self._folder, self._name),
            log=self._folder / "log" / "console",
            environment={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        )
        self.wait_ready()

    def wait_ready(self, *, timeout_seconds: float = 30) -> None:
        """Wait until every module is loaded and ARI answers."""
        assert self._process
        self._process.wait_until(self.answers, timeout_seconds=timeout_seconds)
        self.cli("core waitfullybooted")

    def stop(self) -> None:
        """Stop it; its calls end."""
        self._session.close()
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """Kill -9, as a crash would."""
        if self._process:
            self._process.kill()

    def restart(self) -> None:
        """Crash and come back on the same port, all calls gone."""
        self.kill()
        self.start()

    def reload(self) -> None:
        """Take over a changed `.configuration` (users, clients, dialplan) without a restart."""
        self._write()
        for command in ("module reload res_ari.so", "module reload res_websocket_client.so", "dialplan reload"):
            self.cli(command)

    def cli(self, command: str) -> str:
        """Give a command on Asterisk's console, returns what it prints."""
        return processes.run(self._root.command_line(self._folder, self._name, command), timeout_seconds=30)

    def log(self) -> str:
        """Asterisk's notices, warnings and errors so far."""
        path = self._folder / "log" / "messages"
        return path.read_text(errors="replace") if path.exists() else ""

    def heard_by_caller(self, channel_id: str, *, seconds: float = 5, at_least_seconds: float = 1) -> float | None:
        """The dominant frequency in Hz of what a caller dialled with `listen=True` hears; None for silence.

        Args:
            channel_id: as returned by `dial`.
            seconds: how long to wait for something to be heard.
            at_least_seconds: how much audio there must be before it is judged.
        """
        recording = self._folder / "recordings" / f"{channel_id}.{asterisk_config.RECORDING_TYPE}"
        deadline = time.monotonic() + seconds
        frequency = None
        while frequency is None and time.monotonic() < deadline:
            time.sleep(0.1)
            samples = array("h", recording.read_bytes()[: recording.stat().st_size & ~1] if recording.exists() else b"")
            if len(samples) >= at_least_seconds * tones.RATE_HZ:
                frequency = tones.strongest(samples)
        return frequency

    def _write(self) -> None:
        asterisk_config.write(
            self._folder / "etc",
            self.configuration,
            port=self.port,
            password=self._password,
            modules=self._root.modules,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Nothing of it is worth a clean stop, which takes a second.
        self.close()
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
