"""The newest layout on a real Asterisk: one ARI user, two Stasis apps. Contract points 2, 3, 5, 8, 11 and 12."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from devstack import asterisk_config, endpoint
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import MEDIA_SECRET, Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant

pytestmark = [
    pytest.mark.asterisk,
    pytest.mark.services,
    pytest.mark.parametrize("layout", ["newest"], indirect=True),
]


def test_two_configurations_of_one_ari_user_serve_by_number_and_app(
    pipeline: Pipeline,
    tenant: Tenant,
    agent: Agent,
    media_port: int,
    make_asterisk: Callable[[asterisk_config.Configuration], RealAsterisk],
) -> None:
    client = asterisk_config.Client(uri=f"ws://127.0.0.1:{media_port}{endpoint.PATH}")
    asterisk = make_asterisk(
        asterisk_config.Configuration(
            contexts={"inbound": "first", "sales": "second"}, users={"tenant": PASSWORD}, clients={"media": client}
        )
    )
    configured = {
        app: tenant.configure(asterisk.url, app="tenant", stasis_app_name=app, name=app, numbers=[number])
        for app, number in (("first", "5551234"), ("second", "5551235"))
    }
    pipeline.start(RUN_COMPLETION="ours", MEDIA_TOKEN_SECRET=MEDIA_SECRET, CONFIGURATIONS_SECONDS="0.2")
    wait_until(lambda: len(pipeline.query("SELECT 1 FROM ari.connections")) == 2, seconds=15, what="both are read")
    pipeline.wait_connected()

    def run_of(leg: str) -> dict[str, object]:
        (row,) = pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", pipeline.call(leg)["workflow_run_id"])
        return row

    def is_connected(leg: str) -> bool:
        return pipeline.state(leg) == "connected"

    served = {
        "first": asterisk.dial(called="5551234", context="inbound"),
        "second": asterisk.dial(called="5551235", context="sales"),
    }
    for app, leg in served.items():
        wait_until(partial(is_connected, leg), seconds=10, what=pipeline.log_tail)
        initial = run_of(leg)["initial_context"]
        assert isinstance(initial, dict)
        assert (initial["telephony_configuration_id"], initial["called_number"]) == (
            configured[app], {"first": "5551234", "second": "5551235"}[app],
        )  # fmt: skip
    elsewhere = asterisk.dial(called="5551235", context="inbound")
    wait_until(lambda: pipeline.state(elsewhere) == "ended", seconds=10, what=pipeline.log_tail)
    assert "belongs to another configuration" in pipeline.call(elsewhere)["reason"]
    agent.behaviour.refuse = 403
    refused = asterisk.dial(called="5551234", context="inbound")
    wait_until(lambda: pipeline.state(refused) == "ended", seconds=20, what=pipeline.log_tail)
    reason = pipeline.call(refused)["reason"]
    assert reason.endswith("cause 3 No route to destination: the voice agent was not there, or refused the socket")
    for leg in served.values():
        asterisk.hang_up_caller(leg)
    wait_until(lambda: not (asterisk.channels() or asterisk.bridges()), seconds=10, what="nothing is left")
    assert run_of(served["first"])["is_completed"]
