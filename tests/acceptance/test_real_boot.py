"""A real Asterisk that boots while a listener looks for it: connected within 10 s of its being up."""

from __future__ import annotations

import pytest

from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

ERROR = "SELECT max(last_error) FROM ari.connection_versions"


def test_an_asterisk_that_boots_is_connected_within_ten_seconds(
    pipeline: Pipeline, tenant: Tenant, asterisk: RealAsterisk
) -> None:
    # It is up and has not loaded all of ARI yet: 404, as for a wrong address. When it boots that lasts for 150 ms.
    asterisk.cli("module unload res_ari_events.so")
    tenant.configure(asterisk.url)
    pipeline.start()
    wait_until(lambda: "(404)" in (pipeline.value(ERROR) or ""), seconds=20, what=pipeline.log_tail)
    asterisk.cli("module load res_ari_events.so")
    pipeline.wait_connected(seconds=10)
    # It is away, and then boots: refused, 404, 503, in whatever order.
    asterisk.kill()
    wait_until(lambda: not pipeline.connected(), seconds=10, what="the socket is lost")
    asterisk.start()
    pipeline.wait_connected(seconds=10)
