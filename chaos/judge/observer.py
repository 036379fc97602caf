"""Watches one Asterisk, the tables and the sockets from outside, and keeps the history of all legs and bridges.

Events come by a websocket that is subscribed to everything. Once a second the lists of channels and bridges are asked
for, the tables are counted and the kernel's sockets too. Each observation is a line of `observations.jsonl`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

import psycopg
import requests
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from chaos.judge import history, sockets
from chaos.judge.evidence import Left
from chaos.judge.history import History
from chaos.judge.spec import Spec
from chaos.judge.tables import Database, Tables

APP = "judge"
_POLL_SECONDS = 1.0
_RECONNECT_SECONDS = 0.1
_TIMEOUT_SECONDS = 5.0
#: The last look waits so long for a server that does not answer.
_LAST_LOOK_SECONDS = 15.0
#: Of an event: what its line keeps.
_KEPT = ("type", "timestamp", "cause", "variable", "value", "dialstatus")
#: Events that say nothing about calls, half of all.
_NOISE = {"ChannelDialplan", "ChannelCallerId", "ChannelConnectedLine", "DeviceStateChanged"}


class Observer:
    """Observes from `start` on, in threads of its own, for as long as the process lives.

    Its websocket is never closed: closing one that is subscribed to everything can make Asterisk hang (asterisk#2170).
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._history = History(spec.apps)
        self._sampled, self._asked = self._database(), self._database()
        self._log: TextIO = (spec.folder / "observations.jsonl").open("a", buffering=1)
        self._has_events = False
        #: Since when no events come.
        self._blind_since = time.time()
        self._startup: str | None = None
        self._polled = False

    def start(self) -> None:
        """Begin to observe."""
        for work in (self._follow_events, self._poll_for_ever):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether events come, and Asterisk and the tables have been asked once."""
        return self._has_events and self._polled

    def in_setup(self) -> dict[str, str]:
        """Return the callers who are in an app now and not in a bridge with a second channel, with their apps."""
        with self._lock:
            return self._history.in_setup()

    def last_look(self) -> tuple[Tables, Left]:
        """Look once more, at everything.

        Raises:
            requests.RequestException, psycopg.Error: A server does not answer for 15 s.
        """
        deadline = time.monotonic() + _LAST_LOOK_SECONDS
        while True:
            try:
                # Twice: what one look finds is taken over by the next.
                self._look()
                channels, bridges = self._look()
                left = Left(
                    channels=sorted(channel["id"] for channel in channels),
                    bridges=sorted(bridge["id"] for bridge in bridges),
                    media_sockets=sockets.established(self._spec.agent_port),
                )
                return self._asked.read(), left
            except (requests.RequestException, psycopg.Error):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[History]:
        """The history, which does not change meanwhile."""
        with self._lock:
            if not self._has_events:
                self._history.blind.append((self._blind_since, time.time()))
            yield self._history

    def story(self, call_id: str) -> list[str]:
        """Return the timeline of a call; what kept it from being read instead."""
        try:
            return self._asked.story(call_id)
        except psycopg.Error as exc:
            return [f"the timeline cannot be read: {exc}"]

    def _follow_events(self) -> None:
        """Read events; connect again whenever Asterisk is back."""
        while True:
            with contextlib.suppress(OSError, WebSocketException, requests.RequestException):
                self._ask_startup()
                with self._connect() as socket:
                    self._sees(True)
                    for message in socket:
                        self._take(json.loads(message))
            if self._has_events:
                self._sees(False)
            time.sleep(_RECONNECT_SECONDS)

    def _sees(self, has_events: bool) -> None:
        """Events come from now on, or come no longer."""
        now = time.time()
        with self._lock:
            self._has_events = has_events
            if has_events:
                self._history.blind.append((self._blind_since, now))
            else:
                self._blind_since = now
        self._write(has_events=has_events)

    def _connect(self) -> ClientConnection:
        spec = self._spec
        token = base64.b64encode(f"{spec.user}:{spec.password}".encode()).decode()
        return connect(
            f"{spec.asterisk_url.replace('http', 'ws', 1)}/ari/events?app={APP}&subscribeAll=true",
            additional_headers={"Authorization": f"Basic {token}"},
            open_timeout=_TIMEOUT_SECONDS,
            # A reader that stalls for 100 ms is cut off: everything that comes is taken at once.
            max_queue=None,
            # Asterisk's own end of the connection says when it dies.
            ping_interval=None,
            compression=None,
        )

    def _take(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._history.event(event)
        if event["type"] not in _NOISE:
            ids = {name: event[name]["id"] for name in ("channel", "bridge", "peer") if name in event}
            self._write(**{name: event[name] for name in _KEPT if name in event} | ids)

    def _poll_for_ever(self) -> None:
        while True:
            seen: dict[str, Any] = {}
            with contextlib.suppress(requests.RequestException):
                channels, bridges = self._look()
                seen |= {"channels": len(channels), "bridges": len(bridges)}
            with contextlib.suppress(psycopg.Error):
                seen |= self._sampled.sample()
            seen["media_sockets"] = sockets.established(self._spec.agent_port)
            self._polled = self._polled or {"channels", "calls"} <= seen.keys()
            self._write(**seen)
            time.sleep(_POLL_SECONDS)

    def _look(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Ask for all channels and bridges, and compare them with the history."""
        self._ask_startup()
        asked_at = time.time()
        channels, bridges = self._get("channels"), self._get("bridges")
        with self._lock:
            self._history.reconcile(channels, bridges, asked_at)
        return channels, bridges

    def _ask_startup(self) -> None:
        """Find out whether Asterisk was started again."""
        startup = self._get("asterisk/info", only="status")["status"]["startup_time"]
        with self._lock:
            if self._startup not in (None, startup):
                self._history.restarted(died_at=self._blind_since, started_at=history.moment(startup))
            self._startup = startup

    def _get(self, path: str, **query: str) -> Any:
        spec = self._spec
        url, auth = f"{spec.asterisk_url}/ari/{path}", (spec.user, spec.password)
        answer = requests.get(url, params=query, auth=auth, timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
        return answer.json()

    def _database(self) -> Database:
        """A connection of its own: a transaction is not shared between threads."""
        return Database(url=self._spec.database_url, organizations=sorted(set(self._spec.apps.values())))

    def _write(self, **observation: Any) -> None:
        self._log.write(json.dumps({"at": round(time.time(), 3), **observation}) + "\n")
