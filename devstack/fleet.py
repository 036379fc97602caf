"""Many connections on several listeners: one simulated Asterisk with an app per tenant, and real processes.

The times are those of production, so what is measured here is what an operator gets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from devstack import servers
from devstack.agent import Agent
from devstack.endpoint import Behaviour
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant
from simulator.control import Control
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk

#: Shorter times where nothing is measured.
_SHORTER = {"CONFIGURATIONS_SECONDS": "0.5", "LOG_FORMAT": "json"}


#: The listener's log event of an open socket; it has the keys `connection` and `epoch`.
SOCKET_OPENED = "socket connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLifetime:
    """The lifetime of an event socket as the Asterisk saw it; times are time.monotonic()."""

    app: str
    opened_at: float
    #: None while it is open.
    closed_at: float | None


@dataclass(kw_only=True)
class Fleet:
    """The processes, the apps of the tenants, and the one Asterisk of all apps."""

    pipeline: Pipeline
    asterisk: SimulatedAsterisk
    redis: servers.Redis
    apps: list[str]
    dialled: list[str] = field(default_factory=list)

    @property
    def control(self) -> Control:
        return self.asterisk.control

    # ── assignments ────────────────────────────────────────────────────────────────────────────────────────────────

    def assignments(self) -> dict[str, tuple[str | None, int]]:
        """Return app → listener (as named in the Procfile) and epoch."""
        rows = self.pipeline.query(
            "SELECT app, listener_id, epoch FROM ari.connection_versions WHERE retired_at IS NULL"
        )
        return {row["app"]: (_process(row["listener_id"]), row["epoch"]) for row in rows}

    def shares(self) -> dict[str | None, int]:
        """Return listener → number of sockets assigned to it."""
        return Counter(listener for listener, _ in self.assignments().values())

    def is_settled(self, *names: str) -> bool:
        """Return True if exactly these listeners share the sockets evenly, each open, and none is handed over."""
        rows = self.pipeline.query(
            "SELECT listener_id, socket_state, previous_listener_id FROM ari.connection_versions"
            " WHERE retired_at IS NULL"
        )
        if any(row["socket_state"] != "connected" or row["previous_listener_id"] is not None for row in rows):
            return False
        counts = Counter(_process(row["listener_id"]) for row in rows)
        return counts.keys() == set(names) and max(counts.values()) - min(counts.values()) <= 1

    def wait_settled(self, *names: str, seconds: float = 20) -> None:
        self.until(lambda: self.is_settled(*names), seconds=seconds, what=f"settled on {names}: {self.shares()}")

    def is_heard(self) -> bool:
        """Return True if every app has an event socket, according to the Asterisk."""
        return all(any(socket["is_hearing"] for socket in self.control.sockets(app)) for app in self.apps)

    def lifetimes(self, *, since: float = 0.0) -> dict[str, list[SocketLifetime]]:
        """Return app → its event sockets that were open at some time since then, by the time of their opening."""
        found = [
            SocketLifetime(
                app=request.query["app"],
                opened_at=request.started_at,
                closed_at=None if request.ms is None else request.started_at + request.ms / 1000,
            )
            for request in self.control.requests("GET", "/events")
            if request.status == 101
        ]
        found = [lifetime for lifetime in found if lifetime.closed_at is None or lifetime.closed_at >= since]
        found.sort(key=lambda lifetime: lifetime.opened_at)
        return {app: [lifetime for lifetime in found if lifetime.app == app] for app in self.apps}

    def openings(self) -> dict[str, list[int]]:
        """Return connection key → the epochs of its sockets, by the time of their opening."""
        opened = []
        for log in self.pipeline.logs.glob("listener*.log"):
            for line in log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if said.get("event_name") == SOCKET_OPENED:
                        opened.append((said["timestamp"], said["connection"], said["epoch"]))
        epochs: dict[str, list[int]] = {}
        for _, connection, epoch in sorted(opened):
            epochs.setdefault(connection, []).append(epoch)
        return epochs

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def dial(self, app: str, **how: Any) -> str:
        leg = self.control.dial(app, channel_id=f"caller-{uuid.uuid4().hex[:12]}", **how)
        self.dialled.append(leg)
        return leg

    def connect_all(self, *, each: int = 1) -> list[str]:
        """Make `each` calls to every app and wait until they are connected."""
        legs = [self.dial(app) for app in self.apps for _ in range(each)]
        self.wait_states(legs, "connected")
        return legs

    @contextlib.contextmanager
    def callers(
        self,
        *,
        rate: float = 20.0,
        talk_seconds: float = 8.0,
        dialplan: Literal["recommended", "plain"] = "recommended",
    ) -> Iterator[list[str]]:
        """Make `rate` calls per second, to one app after the other; yields the list of the legs so far."""
        legs: list[str] = []
        stop = threading.Event()

        def call() -> None:
            apps = itertools.cycle(self.apps)
            due = time.monotonic()
            while not stop.wait(max(0.0, due - time.monotonic())):
                legs.append(self.dial(next(apps), dialplan=dialplan, hang_up_after=talk_seconds))
                due += 1 / rate

        calling = threading.Thread(target=call, name="callers")
        calling.start()
        try:
            yield legs
        finally:
            stop.set()
            calling.join()

    def wait_states(self, legs: list[str], *states: str, seconds: float = 30) -> None:
        def arrived() -> bool:
            return Counter(call["state"] in states for call in self.pipeline.calls(*legs))[True] == len(set(legs))

        self.until(arrived, seconds=seconds, what=f"{len(legs)} calls are {states}")

    def until(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        wait_until(condition, seconds=seconds, what=lambda: f"{what}\n{self.describe()}")

    def lost(self, legs: list[str]) -> list[str]:
        """Return the timelines of those callers that were never connected."""
        calls = {call["channel_id"]: call for call in self.pipeline.calls(*legs)}
        served = {leg for leg, call in calls.items() if call["connected_at"] is not None}
        return [
            f"{leg}: {calls[leg]['outcome']} {calls[leg]['reason']}\n{self.pipeline.story(leg)}"
            if leg in calls
            else leg
            for leg in legs
            if leg not in served
        ]

    def end(self, legs: list[str]) -> None:
        """Hang these callers up and wait for the end of their calls."""
        for leg in legs:
            with contextlib.suppress(Exception):
                self.control.hang_up(leg)
        self.wait_states(legs, "ended")

    def end_connected(self) -> None:
        """Hang up the callers of connected calls."""
        if legs := [call["channel_id"] for call in self.pipeline.calls() if call["state"] == "connected"]:
            self.end(legs)

    def assert_invariants(self) -> None:
        """Check the invariants: one call and one run per caller, no id used twice, nothing left."""
        self.until(
            lambda: not self.control.channels() and not self.control.bridges(), seconds=30, what="nothing is left"
        )
        assert self.control.crashes == 0
        made = Counter(
            request.query["channelId"] for request in self.control.requests("POST", "/channels/externalMedia")
        )
        assert max(made.values(), default=1) == 1, "an id was used twice"
        calls = self.pipeline.calls()
        assert Counter(call["channel_id"] for call in calls) == Counter(self.dialled), "one call each"
        runs = [call["workflow_run_id"] for call in calls if call["workflow_run_id"] is not None]
        assert len(runs) == len(set(runs)) == self.pipeline.value("SELECT count(*) FROM workflow_runs")
        assert not self.pipeline.value("SELECT count(*) FROM workflow_runs WHERE NOT is_completed")
        letters = self.pipeline.query("SELECT name, detail FROM ari.timeline WHERE kind = 'dead-letter'")
        assert not letters, f"dead letters: {letters}"

    def describe(self) -> str:
        states = self.pipeline.query(
            "SELECT listener_id, previous_listener_id, epoch, socket_state, last_error, count(*)"
            " FROM ari.connection_versions"
            " WHERE retired_at IS NULL GROUP BY 1, 2, 3, 4, 5"
        )
        calls = self.pipeline.query("SELECT state, outcome, reason, count(*) FROM ari.calls GROUP BY 1, 2, 3")
        return "\n".join([*map(str, states), *map(str, calls), self.pipeline.log_tail()])


def _process(listener_id: str | None) -> str | None:
    """Return the name that a process was started under."""
    return re.sub(r"-[0-9a-f]{8}$", "", listener_id) if listener_id is not None else None


def overlaps(lifetimes: list[SocketLifetime]) -> list[float]:
    """Return for each socket of an app and its successor how long both were open; negative for a gap."""
    return [
        (previous.closed_at if previous.closed_at is not None else time.monotonic()) - newer.opened_at
        for previous, newer in itertools.pairwise(lifetimes)
    ]


@contextlib.contextmanager
def running_fleet(
    kind: type[Pipeline] = Pipeline,
    /,
    *,
    folder: Path,
    logs: Path,
    database_url: str,
    connections: int,
    processes: tuple[str, ...],
    **environment: str,
) -> Iterator[Fleet]:
    """Start the processes with `connections` tenants, and wait until all are connected."""
    logs.mkdir(parents=True)
    apps = [f"app-{number}" for number in range(connections)]
    configured = Settings(audio=False, session_limit=connections * 4 + 200)
    with contextlib.ExitStack() as stack:
        redis_server = stack.enter_context(servers.Redis(folder / f"redis-{uuid.uuid4().hex[:8]}"))
        pipeline = stack.enter_context(
            kind(database_url=database_url, redis_url=redis_server.url, logs=logs, **(_SHORTER | environment))
        )
        agent = stack.enter_context(Agent(database_url=None, secret=pipeline.media_secret, behaviour=Behaviour()))
        asterisk = stack.enter_context(
            SimulatedAsterisk(configured, users=dict.fromkeys(apps, PASSWORD), media_url=agent.url)
        )
        for app in apps:
            tenant = Tenant(database_url, app)
            tenant.configure(asterisk.url, app=app)
            tenant.close()
        pipeline.start(*processes)
        fleet = Fleet(pipeline=pipeline, asterisk=asterisk, redis=redis_server, apps=apps)
        fleet.wait_settled(*(name for name in processes if name.startswith("listener")), seconds=60)
        yield fleet
