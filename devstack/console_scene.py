"""A pipeline worth looking at, with the console in front: a quarter of an hour of calls, one spike, one failure class.

Used by `make screenshots` and by bench/console.py. The calls of the past are rows; those of now are real ones.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dramatiq
import psycopg

from devstack import agent, demo, platform_tables, processes, servers
from devstack.pipeline import CONSOLE, Pipeline, procfile, wait_until
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from shared import queues
from shared.call.states import Fault
from shared.operator.users import Users
from shared.storage import database, migrations
from simulator.errors import ControlError
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk

USER, USER_PASSWORD = "demo", "a password of the demo"
_SECONDS = 880
_SPIKE = (300, 380)

_CALL = """
INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id, channel_created, entry,
    direction, state, received_at, state_since, lock_version, step_retries, channel_name, caller_number, called_number,
    args, continue_in_dialplan, attempt, legs_created, media_ready, caller_left, connected_at, ending_at, ended_at,
    outcome, reason, fault)
SELECT gen_random_uuid(), connection_id, version, organization_id, 'past-' || gen_random_uuid(), 'past', 1, 'inbound',
    'ended', at, at + interval '40 s', 1, 0, 'PJSIP/trunk', %(caller)s, %(called)s, '{}', false, 1, %(setup)s::float
    IS NOT NULL, %(setup)s::float IS NOT NULL, false, at + make_interval(secs => %(setup)s), least(at + interval '40 s',
    now()), least(at + interval '40 s', now()), %(outcome)s, %(reason)s, %(fault)s
FROM ari.connections, (SELECT now() - make_interval(secs => %(age)s) AS at) AS moment
WHERE organization_id = %(organization)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The console and what is behind it."""

    url: str
    pipeline: Pipeline
    asterisk: SimulatedAsterisk
    media: agent.Agent
    tenant: Tenant

    def happen(self) -> str:
        """Let the agent refuse a caller, messages fail, and callers talk; return the id of the call that failed."""
        self.media.behaviour.refuse = 409
        refused = self.dial()
        wait_until(lambda: self.pipeline.state(refused) == "ended", seconds=30, what="the agent refuses a caller")
        self.media.behaviour.refuse = None
        call_id = str(self.pipeline.call(refused)["call_id"])
        self._fail_messages(call_id)
        talking = [self.dial() for _ in range(3)]
        wait_until(
            lambda: {self.pipeline.state(leg) for leg in talking} == {"connected"}, seconds=10, what="callers talk"
        )
        return call_id

    def dial(self) -> str:
        """Return the channel of a new caller."""
        return self.asterisk.control.dial("voiceai", caller=demo.CALLERS[0], called=demo.CALLED)

    def hang_up(self) -> None:
        """End all calls."""
        for channel in self.asterisk.control.channels():
            # The pipeline may be faster.
            if channel["app"]:
                with contextlib.suppress(ControlError):
                    self.asterisk.control.hang_up(channel["id"])
        wait_until(lambda: not self.asterisk.control.channels(), seconds=10, what="all calls have ended")

    def _fail_messages(self, call_id: str) -> None:
        """Send messages of a release that this one does not know: each becomes a dead letter at once."""
        connection_id = self.pipeline.value("SELECT max(connection_id) FROM ari.connections")
        queue = queues.BrokerCommandQueue(queues.broker(self.pipeline.redis_url))
        for version in (99, 99, 98):
            body = {"v": version, "call_id": call_id, "attempt": 1}
            queue.send(
                dramatiq.Message(queue_name="bridge", actor_name="join_legs", args=(), kwargs=body,
                                 options={"group": connection_id})
            )  # fmt: skip
        is_there = "SELECT count(*) >= 3 FROM ari.timeline WHERE kind = 'dead-letter'"
        wait_until(lambda: self.pipeline.value(is_there), seconds=10, what="messages fail")


@contextlib.contextmanager
def running(folder: Path, *, calls: int = 3_500, seed: int = 1) -> Iterator[Scene]:
    """Start servers, processes, an agent and a simulated Asterisk; write the calls of the past.

    Args:
        folder: Of this run; empty.
        calls: How many calls were received in the last quarter of an hour.
    """
    (folder / "logs").mkdir()
    port = processes.free_port()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(servers.Postgres(folder / "postgres", durable=False)).url
        cache = stack.enter_context(servers.Redis(folder / "redis"))
        platform_tables.create(url, "stand-alone")
        migrations.upgrade(url)
        add_user(url)
        pipeline = stack.enter_context(
            Pipeline(database_url=url, redis_url=cache.url, logs=folder / "logs", CONSOLE_PORT=str(port))
        )
        media = stack.enter_context(agent.Agent(database_url=url, secret=pipeline.media_secret))
        asterisk = stack.enter_context(
            SimulatedAsterisk(Settings(audio=False), users={"voiceai": PASSWORD}, media_url=media.url)
        )
        tenant = stack.enter_context(closing_tenant(url, "demo"))
        tenant.configure(asterisk.url)
        pipeline.start(*procfile())
        pipeline.wait_connected()
        wait_until(lambda: not processes.port_is_free(port), seconds=20, what=f"{CONSOLE} listens")
        write_past(url, tenant.organization_id, calls, random.Random(seed))  # noqa: S311 - no secret
        yield Scene(url=f"http://127.0.0.1:{port}", pipeline=pipeline, asterisk=asterisk, media=media, tenant=tenant)


def add_user(database_url: str) -> None:
    """Add the user who may do everything."""
    db = database.Database(database_url, size=1)
    db.open()
    with contextlib.closing(db):
        Users(db).add(USER, USER_PASSWORD, "operate")


def write_past(database_url: str, organization_id: int, calls: int, draw: random.Random) -> None:
    """Write calls of the last quarter of an hour; for a while the set-up took long, and the agent refused some."""
    rows = []
    for _ in range(calls):
        age = 10 + draw.random() * _SECONDS
        is_slow = _SPIKE[0] < age < _SPIKE[1]
        failed = draw.random() < (0.12 if is_slow else 0.008)
        rows.append(
            {
                "organization": organization_id,
                "age": age,
                "setup": None if failed else draw.lognormvariate(-1.6, 0.35) * (5 if is_slow else 1),
                "caller": draw.choice(demo.CALLERS),
                "called": demo.CALLED,
                "outcome": "failed" if failed else "completed",
                "reason": "voice agent not reached: it refused the socket" if failed else "caller hung up",
                "fault": Fault.AGENT if failed else None,
            }
        )
    with contextlib.closing(psycopg.connect(database_url, autocommit=True)) as connection:
        connection.cursor().executemany(_CALL, rows)
        connection.execute("ANALYZE ari.calls")
