"""A tenant's Asterisk repeats what is recorded, and another tenant's calls are served meanwhile. Real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.environment import Deploy, Deployment

pytestmark = pytest.mark.services

ROWS = 10


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("repetition", TIMELINE_ROWS=str(ROWS)) as made:
        yield made


def test_what_an_asterisk_repeats_writes_so_many_rows_and_delays_no_other_tenant(deployment: Deployment) -> None:
    with deployment.environment() as theirs, deployment.environment() as ours, deployment.queue() as client:
        with theirs.control.hold("POST", "/channels/externalMedia", "before") as point:
            leg = theirs.dial()
            point.wait_arrived()
            for _ in range(3 * ROWS):
                leg = theirs.control.pick_up(leg)
            ours.end(*ours.connect(4))
        theirs.control.hang_up(leg)
        theirs.wait_empty()
        deployment.wait_idle(client)
        written = [entry for entry in theirs.connection_entries() if entry.startswith("ChannelReplaced:")]
        assert 1 <= len(written) <= ROWS
