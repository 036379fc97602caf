"""Real processes beside a second Redis, the platform's: what the files about its slots and its transfers share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import servers
from tests.acceptance.environment import Deployment
from tests.support import platform_api
from tests.support.platform_api import PlatformApi


@pytest.fixture(scope="module", name="platform")
def _platform(stack_folder: Path) -> Iterator[servers.Redis]:
    with servers.Redis(stack_folder / f"platform-{uuid.uuid4().hex[:8]}") as made:
        yield made


@pytest.fixture(name="api")
def _api(platform: servers.Redis) -> Iterator[PlatformApi]:
    """The platform's API, with an empty Redis that answers, whatever the test before has left."""
    platform.start()
    platform.thaw()
    with platform_api.connected(platform.url) as client:
        client.flushall()
        yield PlatformApi(client=client)


#: The platform's Redis, and its API: a file that names them has these fixtures.
FIXTURES = (_platform, _api)


def start_missing(deployment: Deployment, *names: str) -> None:
    """Start the processes again that the test before has killed."""
    for name in names:
        if not deployment.pipeline.is_running(name):
            deployment.pipeline.start(name)
