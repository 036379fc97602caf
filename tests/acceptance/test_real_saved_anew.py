"""A configuration is removed and added again during calls, on a real Asterisk: one call, one run and one agent each."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant, closing_tenant

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: What a platform's form may do, in one transaction or in two.
SAVE_ANEW = """
WITH old AS (DELETE FROM organization_configurations WHERE organization_id = %s AND key = %s RETURNING *)
INSERT INTO organization_configurations (organization_id, key, value, created_at)
SELECT organization_id, key, value, now() FROM old
"""
KEY = "TELEPHONY_CONFIGURATION"
#: Longer than a test: what is found without a resync was found by its event.
NEVER = "60"


@pytest.fixture
def running(pipeline: Pipeline, tenant: Tenant, asterisk: RealAsterisk, agent: Agent) -> Pipeline:
    """All processes, with the tenant's event socket open."""
    assert agent.port
    tenant.configure(asterisk.url)
    pipeline.start(RESYNC_SECONDS=NEVER, CONFIGURATIONS_SECONDS="1")
    pipeline.wait_connected()
    return pipeline


@pytest.fixture
def other(database_url: str) -> Iterator[Tenant]:
    """Another organization, without a configuration yet."""
    with closing_tenant(database_url, "other") as made:
        yield made


def reach(pipeline: Pipeline, state: str, *legs: str, seconds: float = 15) -> None:
    """Wait until the calls of these legs are in a state."""
    wait_until(
        lambda: all(pipeline.state(leg) == state for leg in legs),
        seconds=seconds,
        what=lambda: "\n".join(f"-- {leg}\n{pipeline.story(leg)}" for leg in legs),
    )


def left(asterisk: RealAsterisk) -> bool:
    return bool(asterisk.channels() or asterisk.bridges())


def test_callers_who_wait_and_come_while_a_row_is_saved_anew_have_one_call_and_one_agent_each(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, agent: Agent, database_url: str
) -> None:
    agent.behaviour.accept_delay_seconds = 3.5
    legs = [asterisk.dial()]
    reach(running, "prepared", *legs)
    agent.behaviour.accept_delay_seconds = 0.0
    (before,) = running.query("SELECT source_id FROM ari.connections")
    with psycopg.connect(database_url, autocommit=True) as platform:
        platform.execute(SAVE_ANEW, [tenant.organization_id, KEY])
    # Before and after the scheduler has read the new row.
    for _ in range(5):
        legs.append(asterisk.dial())
        time.sleep(0.4)
    reach(running, "connected", *legs)
    (after,) = running.query("SELECT source_id, state, version FROM ari.connections")
    assert (after["source_id"] != before["source_id"], after["state"], after["version"]) == (True, "active", 1)
    assert running.query("SELECT count(*) AS calls, count(DISTINCT workflow_run_id) AS runs FROM ari.calls") == [
        {"calls": 6, "runs": 6}
    ]
    assert running.value("SELECT count(*) FROM workflow_runs") == 6
    assert sum(session.open for session in agent.sessions.values()) == len(agent.sessions) == 6
    agent.close_all()
    reach(running, "ended", *legs, seconds=1)
    wait_until(lambda: not left(asterisk), seconds=2, what=lambda: f"left: {asterisk.channels()}")
    assert running.query("SELECT outcome, count(*) AS calls FROM ari.calls GROUP BY 1") == [
        {"outcome": "completed", "calls": 6}
    ]
    notes = running.query("SELECT name, detail FROM ari.timeline WHERE kind IN ('refusal', 'note', 'dead-letter')")
    assert [note for note in notes if note["name"] in {"ForeignLeg", "AppPreempted"}] == []


def test_a_call_goes_on_under_a_configuration_that_was_away_for_a_while(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, agent: Agent
) -> None:
    agent.behaviour.accept_delay_seconds = 3.0
    waits = asterisk.dial()
    reach(running, "prepared", waits)
    tenant.remove_configuration()
    wait_until(lambda: running.value("SELECT state FROM ari.connections") == "removed", seconds=5, what="it is seen")
    tenant.configure(asterisk.url)
    wait_until(lambda: running.value("SELECT state FROM ari.connections") == "active", seconds=5, what="it is seen")
    agent.behaviour.accept_delay_seconds = 0.0
    comes = asterisk.dial()
    reach(running, "connected", waits, comes)
    assert running.value("SELECT count(*) FROM ari.calls") == running.value("SELECT count(*) FROM workflow_runs") == 2
    asterisk.hang_up_caller(waits)
    agent.close_all()
    reach(running, "ended", waits, comes, seconds=1)
    assert running.query("SELECT version FROM ari.connection_versions") == [{"version": 1}]


def test_a_caller_has_one_call_though_the_app_is_given_to_another_organization(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, other: Tenant, agent: Agent
) -> None:
    agent.behaviour.accept_delay_seconds = 5.0
    waits = asterisk.dial()
    reach(running, "prepared", waits)
    tenant.remove_configuration()
    other.configure(asterisk.url)
    connected = "SELECT count(*) FROM ari.connection_versions WHERE connection_id = 2 AND socket_state = 'connected'"
    wait_until(lambda: running.value(connected) == 1, seconds=10, what="the other organization has the socket")
    agent.behaviour.accept_delay_seconds = 0.0
    comes = asterisk.dial()
    reach(running, "connected", comes)
    calls = running.query("SELECT organization_id, channel_id FROM ari.calls ORDER BY received_at")
    assert calls == [
        {"organization_id": tenant.organization_id, "channel_id": waits},
        {"organization_id": other.organization_id, "channel_id": comes},
    ]
    assert running.value("SELECT count(*) FROM workflow_runs") == 2
    asterisk.hang_up_caller(comes)
    asterisk.hang_up_caller(waits)
    reach(running, "ended", comes)
