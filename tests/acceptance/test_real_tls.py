"""Calls on a real Asterisk behind TLS and a path prefix, its certificate signed by a private authority."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from devstack import asterisk_config, endpoint
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant
from tests import certificates

pytestmark = [pytest.mark.asterisk, pytest.mark.services]


@pytest.fixture
def prefixed(make_asterisk: Callable[[asterisk_config.Configuration], RealAsterisk], media_port: int) -> RealAsterisk:
    """A real Asterisk with a path prefix before ARI."""
    client = asterisk_config.Client(uri=f"ws://127.0.0.1:{media_port}{endpoint.PATH}")
    return make_asterisk(
        asterisk_config.Configuration(
            contexts={"inbound": "voiceai"},
            users={"voiceai": PASSWORD},
            clients={"media": client},
            prefix="behind/nginx",
        )
    )


def serve_one_call(pipeline: Pipeline, asterisk: RealAsterisk) -> None:
    """Check that a call connects, and that nothing is left after its end."""
    leg = asterisk.dial()
    wait_until(lambda: pipeline.state(leg) == "connected", seconds=10, what=lambda: pipeline.story(leg))
    asterisk.hang_up_caller(leg)
    wait_until(lambda: pipeline.state(leg) == "ended", seconds=10, what=lambda: pipeline.story(leg))
    wait_until(lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5, what="nothing is left")
    assert pipeline.call(leg)["outcome"] == "completed"


def test_a_private_authority_is_trusted_by_its_bundle_and_a_change_of_it_keeps_calls(
    pipeline: Pipeline, tenant: Tenant, prefixed: RealAsterisk, agent: Agent
) -> None:
    assert agent.port
    authorities = [certificates.issue(name, authority=True) for name in ("old authority", "new authority")]
    old, new = (certificates.issue("pbx", by, hosts=certificates.LOOPBACK) for by in authorities)
    with certificates.in_front_of(prefixed.url, old) as proxy:
        assert proxy.url().endswith("/behind/nginx")
        # Without the bundle the connection fails, with the reason.
        tenant.configure(proxy.url())
        pipeline.start()
        errors = "SELECT last_error FROM ari.connection_versions WHERE retired_at IS NULL"
        wait_until(
            lambda: "not signed by an authority of this system" in str(pipeline.query(errors)),
            seconds=15,
            what=lambda: f"{pipeline.query(errors)} {pipeline.log_tail()}",
        )
        assert proxy.accepted == 0
        tenant.configure(proxy.url(), ari_ca_bundle=authorities[0].pem)
        pipeline.wait_connected()
        serve_one_call(pipeline, prefixed)

        # During a call, the PBX gets a certificate of another authority, and the bundle is changed.
        talking = prefixed.dial()
        wait_until(lambda: pipeline.state(talking) == "connected", seconds=10, what=lambda: pipeline.story(talking))
        proxy.show(new)
        tenant.configure(proxy.url(), ari_ca_bundle=authorities[1].pem)
        newest = "SELECT socket_state FROM ari.connection_versions JOIN ari.connections USING (connection_id, version)"
        wait_until(
            lambda: (
                pipeline.value("SELECT version FROM ari.connections") == 3 and pipeline.value(newest) == "connected"
            ),
            seconds=15,
            what=lambda: str(pipeline.query("SELECT * FROM ari.connection_versions")),
        )
        assert pipeline.state(talking) == "connected"
        prefixed.hang_up_caller(talking)
        wait_until(lambda: pipeline.state(talking) == "ended", seconds=15, what=lambda: pipeline.story(talking))
        assert pipeline.call(talking)["outcome"] == "completed"
        serve_one_call(pipeline, prefixed)
