"""Redis and Postgres fail over during calls, or a pooler is in between: the processes of the Procfile go on.

The servers are behind a proxy, whose address stays. No process is started again, and the old server lives on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devstack import servers
from devstack.pipeline import ROOT, SECRET_KEY
from shared.storage import migrations
from tests import arictl_program, databases
from tests.acceptance.environment import Deployment, Environment, running_deployment
from tests.support import failover, pooler

pytestmark = pytest.mark.services

#: From the fail-over until everything works again.
SECONDS = 5.0
#: From a caller's entry until it is connected, on a busy machine.
CONNECTED_SECONDS = 3.0


def arictl(deployment: Deployment, *arguments: str, database_url: str | None = None) -> str:
    """Run a command of arictl, as an operator does, and return what it prints."""
    run = arictl_program.runner(database_url or deployment.database_url, ROOT)
    done = run(*arguments, REDIS_URL=deployment.redis_url, SECRET_KEY=SECRET_KEY)
    return done.stdout + done.stderr


def callers_during(env: Environment, moved_at: float, *, every: float = 0.5) -> dict[str, float]:
    """Dial until everything has to work again, and once after that; return leg → when it was dialled."""
    dialled = {}
    while time.monotonic() < moved_at + SECONDS:
        dialled[env.dial()] = time.monotonic()
        time.sleep(every)
    dialled[env.dial()] = time.monotonic()
    return dialled


def assert_served(env: Environment, moved_at: float, dialled: dict[str, float]) -> None:
    """Check that each caller was connected: once everything works, or at once."""
    for leg in dialled:
        env.wait_state(leg, "connected", seconds=15)
    late = {}
    for leg, at in dialled.items():
        (call,) = env.pipeline.query(
            "SELECT extract(epoch FROM clock_timestamp() - connected_at)::float AS ago FROM ari.calls"
            " WHERE channel_id = %s",
            leg,
        )
        took = time.monotonic() - call["ago"] - max(at, moved_at + SECONDS)
        if took > CONNECTED_SECONDS:
            late[leg] = round(took, 1)
    assert not late, f"{late}\n{env.describe()}"


def move(deployment: Deployment, env: Environment, happen: Callable[[], None]) -> None:
    """Let a server fail over during calls; check that those stay, and that those who come are served."""
    stays, hangs_up = env.connect(2)
    happen()
    moved_at = time.monotonic()
    env.tenant.reconnect()
    deployment.pipeline.reconnect()
    env.control.hang_up(hangs_up)
    dialled = callers_during(env, moved_at)
    assert_served(env, moved_at, dialled)
    env.wait_state(hangs_up, "ended", seconds=15)
    # A replica that lost the last commits knows this call as one that is being set up: it is carried on with. If it
    # does not know it at all, a resync adopts the caller, who hears the agent until then. It may have lost as well that
    # the resync before has released its lease, which lasts 20 s.
    env.wait_state(stays, "connected", seconds=35)
    said = arictl(deployment, "doctor")
    assert "scheduler: scheduler/" in said, said
    assert "workers: 1 connected" in said, said
    env.end(stays, *dialled)


def test_redis_fails_over_during_calls(stack_folder: Path, all_logs: Path, database_url: str) -> None:
    with (
        failover.servers_in(stack_folder) as pair,
        running_deployment(
            folder=stack_folder, logs=all_logs / "redis-moves", database_url=database_url, redis_server=pair
        ) as deployment,
        deployment.environment() as env,
    ):
        move(deployment, env, pair.happen)


@pytest.mark.parametrize("how", ["happen", "happen_frozen"])
def test_postgres_fails_over_during_calls(stack_folder: Path, all_logs: Path, how: str) -> None:
    """To its replica; the old one is read-only, or answers nothing any more."""
    with (
        failover.postgres_in(stack_folder) as pair,
        running_deployment(
            folder=stack_folder, logs=all_logs / f"postgres-{how}", database_url=pair.url, agent_database=False
        ) as deployment,
        deployment.environment() as env,
    ):
        move(deployment, env, getattr(pair, how))


def test_calls_behind_a_pooler(stack_folder: Path, all_logs: Path, postgres_server: servers.Postgres) -> None:
    """The schema, the processes and arictl by its URL; ten connections of each process on three."""
    direct = databases.create(postgres_server.url)
    with pooler.running(stack_folder, direct) as pooled:
        migrations.upgrade(pooled)
        with (
            running_deployment(
                folder=stack_folder, logs=all_logs / "pooler", database_url=direct, DATABASE_URL=pooled
            ) as deployment,
            deployment.environment() as env,
        ):
            legs = env.connect(10)
            said = arictl(deployment, "doctor", database_url=pooled)
            assert "settings travel with each transaction" in said, said
            assert "statement_timeout 5000 ms" in said, said
            assert legs[0] in arictl(deployment, "trace", legs[0], database_url=pooled)
            env.end(*legs)
