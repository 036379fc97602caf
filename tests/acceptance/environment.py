"""A deployment that serves many tenants at once, each with its own simulated Asterisk, and with short times.

The processes run once for all tests of a file. Each test has an environment, a tenant with its Asterisk, whose end
checks the invariants.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import psycopg
import redis
import requests

from devstack import servers
from devstack.agent import Agent
from devstack.endpoint import Behaviour
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from shared import messages, queues
from shared.asterisk import events
from shared.call.ids import ConnectionVersion
from shared.storage.timeline import MESSAGE_BEGUN
from simulator.control import Control, LoggedRequest
from simulator.errors import ControlError
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests.support import queued
from tests.support.forked import ForkedPipeline

APP = "voiceai"
EVENTS = [
    "StasisStart", "StasisEnd", "ChannelDestroyed", "ChannelHangupRequest", "Dial", "ApplicationReplaced",
]  # fmt: skip
#: Shorter times than in production, so that a test takes seconds.
FAST = {
    "ASSIGN_SECONDS": "0.2",
    "CONFIGURATIONS_SECONDS": "0.3",
    "CONNECT_SECONDS": "1",
    "HEARTBEAT_SECONDS": "0.25",
    "MEDIA_CHECK_SECONDS": "1",
    "QUEUE_SECONDS": "2",
    "READ_SECONDS": "3",
    "RESYNC_SECONDS": "1",
    "STALE_START_SECONDS": "30",
    "SWEEP_SECONDS": "0.5",
}


@dataclass(kw_only=True)
class Deployment:
    """The processes of the product with their own servers and agent."""

    pipeline: Pipeline
    agent: Agent
    database_url: str
    redis_url: str
    #: True if calls carry audio: fifty packets a second each way.
    audio: bool

    @contextlib.contextmanager
    def environment(self, *, media_urls: dict[str, str] | None = None) -> Iterator[Environment]:
        """Connect a tenant with its Asterisk; check the invariants at the end."""
        configured = Settings(media_urls=media_urls or {}, audio=self.audio)
        with contextlib.ExitStack() as stack:
            asterisk = stack.enter_context(
                SimulatedAsterisk(configured, users={APP: PASSWORD}, media_url=self.agent.url)
            )
            tenant = stack.enter_context(closing_tenant(self.database_url, f"tenant-{uuid.uuid4().hex[:8]}"))
            made = Environment(pipeline=self.pipeline, tenant=tenant, asterisk=asterisk)
            tenant.configure(asterisk.url)
            stack.callback(_unless_disconnected, tenant.remove_configuration)
            made.wait_ready()
            try:
                yield made
                made.assert_invariants()
            finally:
                made.hang_up_all()

    @contextlib.contextmanager
    def queue(self) -> Iterator[redis.Redis]:
        """Connect to the Redis of the processes."""
        with contextlib.closing(queues.client(self.redis_url)) as client:
            yield client

    def wait_idle(self, client: redis.Redis, *, seconds: float = 10) -> None:
        """Wait until no message is queued or in flight."""
        wait_until(
            lambda: not any(queued.size(client, name) for name in messages.QUEUES),
            seconds=seconds,
            every=0.01,
            what="every message was processed",
        )


@dataclass(kw_only=True)
class Environment:
    """One tenant and its Asterisk."""

    pipeline: Pipeline
    tenant: Tenant
    asterisk: SimulatedAsterisk
    #: Ids, shaped like ours, that the test itself has created.
    forged: set[str] = field(default_factory=set)
    #: Runs that the test itself has created, as the platform does for its own calls.
    platform_runs: set[int] = field(default_factory=set)

    @property
    def control(self) -> Control:
        return self.asterisk.control

    @property
    def connection(self) -> dict[str, Any]:
        """The connection's id and version."""
        (found,) = self.pipeline.query(
            "SELECT connection_id, version FROM ari.connections WHERE organization_id = %s", self.tenant.organization_id
        )
        return found

    def wait_ready(self, *, seconds: float = 15) -> None:
        """Wait until the event socket is open and the first resync has set the event filter."""
        self.until(lambda: self.pipeline.connected(self.asterisk.url), seconds=seconds, what="the socket is up")
        self.until(
            lambda: self.count("PUT", "/applications/voiceai/eventFilter"), seconds=seconds, what="the filter is set"
        )

    def dial(self, **how: Any) -> str:
        """Start an inbound call. Its id is unique: the simulator's own ids repeat in other environments."""
        return self.control.dial(APP, **({"channel_id": f"caller-{uuid.uuid4().hex[:12]}"} | how))

    def connect(self, count: int = 1) -> list[str]:
        """Make calls and wait until they are connected."""
        legs = [self.dial() for _ in range(count)]
        for leg in legs:
            self.wait_state(leg, "connected")
        return legs

    def wait_state(self, leg: str, *states: str, seconds: float = 10) -> None:
        """Wait until the newest call of a leg is in one of these states."""
        self.until(lambda: self.pipeline.state(leg) in states, seconds=seconds, what=f"{leg} is {' or '.join(states)}")

    def wait_empty(self, *, seconds: float = 10) -> None:
        """Wait until no channel and no bridge is left."""
        self.until(
            lambda: not self.control.channels() and not self.control.bridges(), seconds=seconds, what="nothing is left"
        )

    def until(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        """Poll until a condition holds; on timeout, fail with a description of the environment."""
        wait_until(condition, seconds=seconds, what=lambda: f"{what}\n{self.describe()}")

    def end(self, *legs: str) -> None:
        """Hang up callers; wait until all that was created for them is gone."""
        for leg in legs:
            self.control.hang_up(leg)
        for leg in legs:
            self.wait_state(leg, "ended")
        self.wait_empty()

    def end_one(self, leg: str) -> None:
        """Hang up one of several callers."""
        self.control.hang_up(leg)
        self.wait_state(leg, "ended")

    def hang_up_all(self) -> None:
        """Hang up who is left. A call that a failed test leaves would count in the tests after it."""
        with contextlib.suppress(ControlError):
            for channel in self.control.channels():
                self.control.hang_up(channel["id"])

    def own(self, leg: str, kind: str, attempt: int = 1) -> str:
        """Return the id of the media leg (`m`) or the bridge (`b`) of a leg's newest call."""
        return self.pipeline.own_id(self.pipeline.calls(leg)[-1], kind, attempt)

    def is_joined(self, leg: str, attempt: int = 1) -> bool:
        """Return True if exactly the caller and the agent are in the call's bridge."""
        wanted = {leg, self.own(leg, "m", attempt)}
        bridge_id = self.own(leg, "b", attempt)
        return any(b["id"] == bridge_id and set(b["channels"]) == wanted for b in self.control.bridges())

    def run(self, leg: str) -> dict[str, Any]:
        """Return the run of a leg's newest call."""
        (found,) = self.pipeline.query(
            "SELECT * FROM workflow_runs WHERE id = %s", self.pipeline.calls(leg)[-1]["workflow_run_id"]
        )
        return found

    def runs(self) -> int:
        """Return the number of runs of the tenant."""
        count = self.pipeline.value(
            "SELECT count(*) FROM workflow_runs WHERE workflow_id = %s", self.tenant.workflow_id
        )
        return int(count)

    def calls(self) -> list[dict[str, Any]]:
        """Return the tenant's calls."""
        return self.pipeline.query(
            "SELECT * FROM ari.calls WHERE organization_id = %s ORDER BY received_at", self.tenant.organization_id
        )

    def facts(self, leg: str) -> list[str]:
        """Return the names of the timeline entries of a leg's calls, but for those of messages."""
        return [row["name"] for row in self.pipeline.timeline(leg) if row["name"] != MESSAGE_BEGUN]

    def connection_entries(self) -> list[str]:
        """Return the timeline entries of the connection, as `name: detail`."""
        rows = self.pipeline.query(
            "SELECT name, detail FROM ari.timeline WHERE connection_id = %s ORDER BY id",
            self.connection["connection_id"],
        )
        return [f"{row['name']}: {row['detail']}" for row in rows]

    def asked(self, method: str, path: str) -> list[LoggedRequest]:
        """Return the requests made so far to a path."""
        return self.control.requests(method, path)

    def count(self, method: str, path: str) -> int:
        """Return the number of requests made so far to a path."""
        return len(self.asked(method, path))

    def rest(self, method: str, path: str, **query: str) -> requests.Response:
        """Make a request as another ARI client: the owner of the Asterisk, another controller."""
        if method == "POST":
            self.forged.update(query.get("channelId", "").split())
        answer = requests.request(
            method, f"{self.asterisk.url}/ari{path}", params=query, auth=(APP, PASSWORD), timeout=5
        )
        answer.raise_for_status()
        return answer

    def push_event(self, client: redis.Redis, event: events.Event) -> None:
        """Enqueue the message that a listener would enqueue for an event."""
        seconds, micros = client.time()
        connection = self.connection
        message = messages.of_event(
            event,
            connection=ConnectionVersion(connection["connection_id"], connection["version"]),
            at_ms=seconds * 1000 + micros // 1000,
        )
        assert message is not None
        queues.BrokerCommandQueue(queues.broker(self.pipeline.redis_url)).send(message)

    def describe(self) -> str:
        """Return all that is known of the environment, for failures."""
        stories = [
            f"-- {call['channel_id']} {call['state']} {call['outcome']} {call['reason']}\n"
            f"{self.pipeline.story(call['channel_id'])}"
            for call in self.calls()
        ]
        channels = [
            (channel["id"], channel["state"], channel["app"], channel["bridge_id"])
            for channel in self.control.channels()
        ]
        bridges = [(bridge["id"], bridge["channels"]) for bridge in self.control.bridges()]
        letters = self.pipeline.query("SELECT name, detail FROM ari.timeline WHERE kind = 'dead-letter'")
        return "\n".join([
            *stories,
            f"-- of the connection: {self.connection_entries()}",
            f"-- channels: {channels}",
            f"-- bridges: {bridges}",
            f"-- dead letters: {letters}",
        ])  # fmt: skip

    def assert_invariants(self) -> None:
        """Check the invariants of every test, whatever fault it injected."""
        assert self.control.crashes == 0, f"Asterisk crashed\n{self.describe()}"
        made = Counter(
            request.query["channelId"]
            for request in self.asked("POST", "/channels/externalMedia")
            if request.query.get("channelId") not in self.forged
        )
        assert not [one for one, times in made.items() if times > 1], f"an id was used twice: {made}\n{self.describe()}"
        doubly = self.pipeline.query(
            "SELECT workflow_run_id FROM ari.calls WHERE organization_id = %s AND workflow_run_id IS NOT NULL"
            " GROUP BY 1 HAVING count(*) > 1",
            self.tenant.organization_id,
        )
        assert not doubly, f"two calls with one run\n{self.describe()}"
        with_call = {call["workflow_run_id"] for call in self.calls()} - {None}
        runs = self.pipeline.query("SELECT id FROM workflow_runs WHERE workflow_id = %s", self.tenant.workflow_id)
        assert {run["id"] for run in runs} - self.platform_runs == with_call - self.platform_runs, (
            f"a run without a call\n{self.describe()}"
        )
        open_runs = self.pipeline.query(
            "SELECT r.id FROM workflow_runs r JOIN ari.calls c ON c.workflow_run_id = r.id"
            " WHERE c.organization_id = %s AND c.state = 'ended' AND NOT r.is_completed",
            self.tenant.organization_id,
        )
        assert not open_runs, f"a run that outlived its call\n{self.describe()}"
        letters = self.pipeline.query("SELECT name, detail FROM ari.timeline WHERE kind = 'dead-letter'")
        assert not letters, f"dead letters: {letters}"


def _unless_disconnected(act: Callable[[], None]) -> None:
    """Do something that fails if the test has killed the tenant's Postgres."""
    with contextlib.suppress(psycopg.OperationalError):
        act()


class HasUrl(Protocol):
    """A server, or what leads to it."""

    @property
    def url(self) -> str: ...


#: The type of the fixture `deploy`.
Deploy = Callable[..., AbstractContextManager[Deployment]]


@contextlib.contextmanager
def running_deployment(
    *,
    folder: Path,
    logs: Path,
    database_url: str,
    redis_server: HasUrl | None = None,
    processes: tuple[str, ...] = (),
    agent_database: bool = True,
    audio: bool = False,
    times: Mapping[str, str] = MappingProxyType(FAST),
    **environment: str,
) -> Iterator[Deployment]:
    """Start the processes (by default all) with short times and their own Redis."""
    logs.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        own_redis = redis_server or stack.enter_context(servers.Redis(folder / f"redis-{uuid.uuid4().hex[:8]}"))
        pipeline = stack.enter_context(
            ForkedPipeline(database_url=database_url, redis_url=own_redis.url, logs=logs, **{**times, **environment})
        )
        agent = stack.enter_context(
            Agent(
                database_url=database_url if agent_database else None,
                secret=pipeline.media_secret,
                behaviour=Behaviour(mode="tone", tone_hz=400) if audio else Behaviour(),
            )
        )
        pipeline.start(*processes)
        yield Deployment(
            pipeline=pipeline, agent=agent, database_url=database_url, redis_url=own_redis.url, audio=audio
        )
