"""Calls of a real Asterisk whose `systemname`, and so the id of every channel, is no plain word."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from devstack import asterisk_config, endpoint
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant
from tests.support.odd_ids import ODD_IDS

pytestmark = [pytest.mark.asterisk, pytest.mark.services]


def test_calls_with_any_id_are_served_resynced_and_removed(
    pipeline: Pipeline,
    tenant: Tenant,
    agent: Agent,
    media_port: int,
    make_asterisk: Callable[[asterisk_config.Configuration], RealAsterisk],
) -> None:
    client = asterisk_config.Client(uri=f"ws://127.0.0.1:{media_port}{endpoint.PATH}")
    asterisk = make_asterisk(
        asterisk_config.Configuration(
            users={"voiceai": PASSWORD}, clients={"media": client}, system_name='Berlin, Haus "2"'
        )
    )
    tenant.configure(asterisk.url)
    pipeline.start(RESYNC_SECONDS="1")
    pipeline.wait_connected()
    legs = [asterisk.dial(channel_id=odd) for odd in ODD_IDS]
    # Its own id, which Asterisk chooses.
    query = {"endpoint": "Local/5551234@inbound", "context": "far", "extension": "wait", "priority": "1"}
    own = asterisk.request("POST", "/channels", **query, formats="ulaw").json()["id"]
    assert own.startswith('Berlin, Haus "2"-')

    def channels() -> list[str]:
        return [call["channel_id"] for call in pipeline.query("SELECT channel_id FROM ari.calls")]

    def story() -> str:
        return "\n".join(f"-- {leg}\n{pipeline.story(leg)}" for leg in channels())

    def counted(states: dict[str, int]) -> bool:
        rows = pipeline.query("SELECT coalesce(outcome, state) AS what, count(*) AS calls FROM ari.calls GROUP BY 1")
        return {row["what"]: row["calls"] for row in rows} == states

    wait_until(lambda: counted({"connected": len(legs) + 1}), seconds=15, what=story)
    looked = pipeline.value("SELECT max(id) FROM ari.timeline")
    # A resync that compared other ids than these would end the calls, or adopt their callers again.
    time.sleep(5)
    assert counted({"connected": len(legs) + 1}), story()
    assert pipeline.query("SELECT * FROM ari.timeline WHERE id > %s AND name = 'Resync'", looked) == []
    for leg in legs[:3]:
        asterisk.hang_up_caller(leg)
    wait_until(lambda: counted({"connected": len(legs) - 2, "completed": 3}), seconds=5, what=story)
    agent.close_all()
    wait_until(lambda: counted({"completed": len(legs) + 1}), seconds=5, what=story)
    wait_until(lambda: not (asterisk.channels() or asterisk.bridges()), seconds=5, what="nothing is left")
