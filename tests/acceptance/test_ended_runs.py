"""What follows a run without a conversation reaches the platform's Redis, also when that is away meanwhile."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from devstack import servers
from shared.platform.dograh import arq_jobs, outbox
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, only_call, run_row, waiting_run
from tests.acceptance.test_platform_legs import platform_calls, platform_channel

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def platform_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    """The platform's own Redis."""
    with servers.Redis(stack_folder / f"platform-redis-{uuid.uuid4().hex[:8]}") as server:
        yield server


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, platform_redis: servers.Redis) -> Iterator[Deployment]:
    """Its URL names a database that arq does not look at."""
    with deploy("ended-runs", PLATFORM_REDIS_URL=platform_redis.url.removesuffix("/0") + "/5") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        made.tenant.configure(made.asterisk.url, **LOCAL)
        yield made


def told(server: servers.Redis, run_id: int) -> list[dict[str, Any]]:
    """The jobs about a run."""
    with redis.Redis.from_url(server.url) as client:
        texts = [client.get(arq_jobs.key(name.decode())) for name in client.zrange(arq_jobs.QUEUE, 0, -1)]
    return [job for job in map(pickle.loads, filter(None, texts)) if job["a"] == (run_id,)]


def busy_call_of_a_campaign(env: Environment) -> int:
    run_id, leg = waiting_run(env), platform_channel()
    env.pipeline.execute("UPDATE workflow_runs SET campaign_id = 3, queued_run_id = 4 WHERE id = %s", run_id)
    platform_calls(env, run_id, "busy", channel_id=leg)
    assert only_call(env, "ended")["outcome"] == "busy"
    return run_id


def test_a_busy_far_end_of_a_campaign_is_told_of(env: Environment, platform_redis: servers.Redis) -> None:
    with redis.Redis.from_url(platform_redis.url) as client, client.pubsub(ignore_subscribe_messages=True) as events:
        events.subscribe(outbox.CHANNEL)
        events.get_message(timeout=5)
        run_id = busy_call_of_a_campaign(env)
        env.until(lambda: told(platform_redis, run_id), seconds=5, what="its job is enqueued")
        message = events.get_message(timeout=5)
        assert message is not None
        event = json.loads(message["data"])
        assert events.get_message(timeout=1) is None
    assert (event["type"], event["workflow_run_id"], event["reason"]) == ("retry_needed", run_id, "busy")
    assert (event["campaign_id"], event["queued_run_id"]) == (3, 4)
    tags = run_row(env, run_id)["gathered_context"]["call_tags"]
    assert tags == ["not_connected", "telephony_busy"]


def test_a_conversation_is_not_told_of(env: Environment, platform_redis: servers.Redis) -> None:
    (leg,) = env.connect()
    run_id = env.pipeline.call(leg)["workflow_run_id"]
    env.end(leg)
    assert env.pipeline.value("SELECT count(*) FROM ari.outbox WHERE workflow_run_id = %s", run_id) == 0
    assert told(platform_redis, run_id) == []


def test_legs_go_and_the_run_ends_while_that_redis_is_away_and_the_scheduler_dies(
    env: Environment, platform_redis: servers.Redis
) -> None:
    platform_redis.stop()
    run_id = busy_call_of_a_campaign(env)
    assert run_row(env, run_id)["is_completed"]
    env.wait_empty()
    env.pipeline.kill("scheduler")
    platform_redis.start()
    with redis.Redis.from_url(platform_redis.url) as client, client.pubsub(ignore_subscribe_messages=True) as events:
        events.subscribe(outbox.CHANNEL)
        events.get_message(timeout=5)
        env.pipeline.start("scheduler")
        message = events.get_message(timeout=15)
        assert message is not None
        assert json.loads(message["data"])["workflow_run_id"] == run_id
        assert events.get_message(timeout=1) is None
    assert len(told(platform_redis, run_id)) == 1
    env.until(
        lambda: not env.pipeline.value("SELECT count(*) FROM ari.outbox WHERE workflow_run_id = %s", run_id),
        seconds=5,
        what="nothing waits",
    )
