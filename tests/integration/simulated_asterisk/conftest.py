"""One simulated Asterisk and one agent per test file; each test gets the Asterisk empty and without faults."""

from collections.abc import Iterator

import pytest

from simulator import settings
from simulator.testing import SimulatedAsterisk
from tests.integration.simulated_asterisk.clients import (
    CALLER_HZ,
    PASSWORD,
    USER,
    Agent,
    Ari,
)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    running = Agent()
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared_asterisk(agent: Agent) -> Iterator[SimulatedAsterisk]:
    configured = settings.Settings(
        users={USER: PASSWORD, "other": "secret"},
        media_urls={"media": agent.url, "unreachable": "ws://127.0.0.1:9/"},
        media_connection_timeout_seconds=0.1,
        media_connection_attempts=2,
        caller_tone_hz=CALLER_HZ,
        inbound_app="app",
    )
    with SimulatedAsterisk(configured) as running:
        yield running


@pytest.fixture
def asterisk(shared_asterisk: SimulatedAsterisk) -> Iterator[SimulatedAsterisk]:
    """The simulated Asterisk, empty and without faults."""
    yield shared_asterisk
    shared_asterisk.control.clear()
    shared_asterisk.control.restart()


@pytest.fixture
def ari(asterisk: SimulatedAsterisk) -> Ari:
    return Ari(asterisk.url)
