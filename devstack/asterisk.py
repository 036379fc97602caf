"""A real Asterisk for tests and for `make run ASTERISK=real`: starts, crashes, restarts and queries it.

Calls need no phone: one half of a Local channel enters the dialplan as a ringing inbound call, the other half runs an
extension of the context `far` and so behaves like a caller. The audio it hears can be recorded and analysed.
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
#: A prefix, not a suffix: Asterisk 22.10 refuses an id (409) that is a prefix of a live channel's id (measured).
FAR_PREFIX = "far-"


class Switch:
    """An Asterisk reached over ARI: makes calls into it, lists channels and bridges.

    Args:
        url: without `/ari`, path prefix included.
        configuration: its configuration, applied or to be applied.
    """

    def __init__(self, url: str, user: str, password: str, configuration: Configuration) -> None:
        self.url = url
        self.configuration = configuration
        self._session = requests.Session()
        self._session.auth = (user, password)

    def request(self, method: str, path: str, *, body: Any = None, **query: str) -> requests.Response:
        """Make an ARI request, `path` as in `/channels`; any status is returned."""
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
        """Start an inbound call; return the id of the leg that enters the dialplan.

        Args:
            context: in the dialplan; decides the app.
            far: what the caller does: `wait`, `tone` (1004 Hz), `play400` (400 Hz, any number), `echo`, `busy`,
                `reject`, `congestion`, `ring` (never answers).
            channel_id: of the leg that enters the dialplan (the call's), generated if missing.
            other_channel_id: of the caller's half.
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
            # As a telephone does. By default a Local channel uses 192 kHz, and resampling keeps the processor busy.
            formats="ulaw",
            channelId=caller_half,
            otherChannelId=leg,
        )
        answer.raise_for_status()
        return leg

    def hang_up(self, channel_id: str) -> None:
        """Hang a leg up (the caller's half: as its caller would); a leg that is gone is no error."""
        answer = self.request("DELETE", f"/channels/{quote(channel_id, safe='')}")
        if answer.status_code != 404:
            answer.raise_for_status()

    def hang_up_caller(self, channel_id: str) -> None:
        """Make the caller of a leg (as returned by `dial`) hang up."""
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
        """Return True if ARI answers."""
        try:
            return self.request("GET", "/asterisk/ping").status_code == 200
        except requests.RequestException:
            return False

    def close(self) -> None:
        self._session.close()


def existing() -> Switch | None:
    """Return the Asterisk that environment variables name, None without them.

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
    """An instance that this process runs.

    Args:
        root: where Asterisk is installed.
        folder: of this instance alone; created if missing.
        configuration: available as `.configuration`; call `reload()` after a change.
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
        self._process: processes.GuardedProcess | None = None
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
        self._process = processes.GuardedProcess(
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
        """Kill it by SIGKILL, as a crash would."""
        if self._process:
            self._process.kill()

    def restart(self) -> None:
        """Kill it and start it on the same port; all calls are gone."""
        self.kill()
        self.start()

    def reload(self) -> None:
        """Apply a changed `.configuration` (users, clients, dialplan) without a restart."""
        self._write()
        for command in ("module reload res_ari.so", "module reload res_websocket_client.so", "dialplan reload"):
            self.cli(command)

    def cli(self, command: str) -> str:
        """Run a command on Asterisk's console and return its output."""
        return processes.run(self._root.command_line(self._folder, self._name, command), timeout_seconds=30)

    def act(self, action: str, **fields: str) -> None:
        """Carry out an AMI action. The configuration needs a `manager_port`; an action that is refused is an error."""
        with requests.Session() as session:
            login = {"action": "Login", "username": ADMINISTRATOR, "secret": self._password}
            for query in (login, {"action": action, **fields}):
                # Beside the prefix of ARI.
                answer = session.get(f"{self.url}/rawman", params=query, timeout=10)
                answer.raise_for_status()
                assert "Response: Success" in answer.text, answer.text

    def log(self) -> str:
        """Return Asterisk's notices, warnings and errors so far."""
        path = self._folder / "log" / "messages"
        return path.read_text(errors="replace") if path.exists() else ""

    def heard_by_caller(self, channel_id: str, *, seconds: float = 5, at_least_seconds: float = 1) -> float | None:
        """Return the dominant frequency in Hz that a caller dialled with `listen=True` hears; None for silence.

        Args:
            channel_id: as returned by `dial`.
            seconds: longest wait for audio.
            at_least_seconds: shortest recording that is analysed.
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
        # A clean stop takes a second and has no use here.
        self.close()
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
