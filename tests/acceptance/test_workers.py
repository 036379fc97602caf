"""Workers are independent processes: one that dies takes no other with it."""

from __future__ import annotations

import functools

import pytest

from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant
from simulator.testing import SimulatedAsterisk

pytestmark = pytest.mark.services


def test_killed_workers_take_no_other_with_them_and_calls_go_on(
    pipeline: Pipeline, tenant: Tenant, simulated: SimulatedAsterisk
) -> None:
    tenant.configure(simulated.url)
    pipeline.start()
    pipeline.start("worker.2", "worker.3")
    pipeline.wait_connected()

    def are(legs: list[str], *states: str) -> bool:
        return all(pipeline.state(leg) in states for leg in legs)

    def describe() -> str:
        return "\n\n".join(map(pipeline.story, legs))

    legs = []
    for killed in ("worker", "worker.2"):
        # Some of these are in flight on the worker that is killed.
        legs += [simulated.control.dial("voiceai") for _ in range(3)]
        pipeline.kill(killed)
    later = [simulated.control.dial("voiceai") for _ in range(3)]
    legs += later
    wait_until(functools.partial(are, later, "connected"), seconds=20, what=describe)
    wait_until(functools.partial(are, legs, "connected", "ended"), seconds=40, what=describe)
    pipeline.start("worker")
    assert pipeline.stop("worker.3") == 0, "it was there all the time, and ends in order"
    for channel in simulated.control.channels():
        if channel["id"] in legs:
            simulated.control.hang_up(channel["id"])
    wait_until(functools.partial(are, legs, "ended"), seconds=30, what=describe)
    assert simulated.control.channels() == []
    assert simulated.control.bridges() == []
    assert simulated.control.crashes == 0
    assert len(pipeline.query("SELECT id FROM workflow_runs")) == len(legs)
