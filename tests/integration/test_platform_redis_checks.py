"""What the doctor says of the platform's Redis."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from devstack import servers
from shared.operator.checks import platform_redis_checks
from shared.operator.checks.findings import Finding, Level
from shared.platform.dograh.layouts import Found, Layout
from tests.support import platform_api
from tests.support.platform_api import PlatformApi

pytestmark = pytest.mark.services

OWN = "redis://127.0.0.1:1/0"


def found(layout: Layout) -> Found:
    return Found(layout=layout, is_set=False, revision="abc", missing=())


def check(url: str | None, *, own: str = OWN, layout: Layout = Layout.NEWEST, seconds: float = 2.0) -> list[Finding]:
    takes_slots = layout is Layout.NEWEST
    return platform_redis_checks.check(url, own, found(layout), seconds=seconds, takes_slots=takes_slots)


def said(findings: list[Finding]) -> list[tuple[Level, str]]:
    return [(finding.level, finding.seen) for finding in findings]


def test_the_api_s_database_is_in_order(redis_url: str) -> None:
    with platform_api.connected(redis_url) as client:
        PlatformApi(client=client).acquire(1, limit=1)
    (finding,) = check(redis_url)
    assert said([finding]) == [(Level.OK, "the platform's API uses it; 1 calls are counted, 0 of them ours")]


def test_a_database_without_the_api_s_keys_is_said(redis_url: str) -> None:
    (finding,) = check(redis_url)
    assert said([finding]) == [(Level.WARNING, "nothing of the platform's API is in this database")]
    with platform_api.connected(redis_url) as client:
        # What we write ourselves tells nothing.
        client.hset("ari-pipeline:slots", "1_a", "1.0 [1, 2, []]")
        client.zadd("concurrent_calls_fleet", {"1:1_a": 1.0})
        assert check(redis_url)[0].level is Level.WARNING
        client.set("arq:queue:health-check", "x")
        assert check(redis_url)[0].level is Level.OK


def test_one_database_for_both_is_said(redis_url: str) -> None:
    findings = check(redis_url, own=re.sub(r"/0$", "/0?socket_timeout=2", redis_url))
    assert "PLATFORM_REDIS_URL and REDIS_URL are one database" in [finding.seen for finding in findings]
    findings = check(redis_url, own=re.sub(r"/0$", "/1", redis_url))
    assert "PLATFORM_REDIS_URL and REDIS_URL are one database" not in [finding.seen for finding in findings]


def test_a_redis_that_is_not_named_is_said_in_the_newest_layout_alone() -> None:
    (finding,) = check(None)
    assert finding.level is Level.WARNING
    assert "PLATFORM_REDIS_URL is not set: callers are counted from our own calls alone" in finding.seen
    assert check(None, layout=Layout.FEBRUARY_2026) == []


def test_a_redis_that_is_away_is_found_and_its_password_is_not_shown() -> None:
    (finding,) = check("redis://:hunter2@127.0.0.1:1/0")
    assert finding.level is Level.WRONG
    assert "hunter2" not in finding.seen
    (finding,) = check("redis://:hunter2@127.0.0.1:port/0")
    assert (finding.level, "hunter2" in finding.seen) == (Level.WRONG, False)


def _read_only(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")


def _full(client: redis.Redis) -> None:
    client.config_set("maxmemory", "100kb")


@pytest.mark.parametrize(("fault", "words"), [(_read_only, "it is read-only"), (_full, "of its maxmemory used")])
def test_a_redis_that_cannot_be_written_is_found(
    stack_folder: Path, fault: Callable[[redis.Redis], None], words: str
) -> None:
    with servers.Redis(stack_folder / f"platform-{uuid.uuid4().hex[:8]}") as server:
        with redis.Redis.from_url(server.url) as client:
            fault(client)
        findings = check(server.url)
    assert any(finding.level is Level.WRONG and words in finding.seen for finding in findings), findings


def test_a_slow_redis_is_said(redis_url: str) -> None:
    assert any("a caller waits 0 s" in finding.seen for finding in check(redis_url, seconds=0.0))


def test_in_the_layout_of_2026_02_it_is_said_that_no_slot_is_taken(redis_url: str) -> None:
    assert check(redis_url, layout=Layout.FEBRUARY_2026)[-1].seen.startswith("none are taken")
