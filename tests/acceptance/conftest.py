"""The product's real processes, an agent, and an Asterisk: simulated or real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.agent import Agent
from devstack.endpoint import Behaviour
from devstack.pipeline import Pipeline
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk


@pytest.fixture(scope="session")
def all_logs(stack_folder: Path) -> Path:
    """Where every process of the run writes its log."""
    folder = stack_folder / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def pipeline(database_url: str, redis_url: str, all_logs: Path, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The processes, not started yet."""
    logs = all_logs / "".join(char if char.isalnum() else "-" for char in request.node.name)
    logs.mkdir()
    with Pipeline(database_url=database_url, redis_url=redis_url, logs=logs) as made:
        yield made


@pytest.fixture
def tenant(database_url: str) -> Iterator[Tenant]:
    """A tenant without a configuration yet."""
    with closing_tenant(database_url) as made:
        yield made


@pytest.fixture
def agent(database_url: str, pipeline: Pipeline, media_port: int) -> Iterator[Agent]:
    """The voice agent: sends a tone of 400 Hz, and knows what it hears."""
    behaviour = Behaviour(mode="tone", tone_hz=400)
    with Agent(database_url=database_url, secret=pipeline.media_secret, port=media_port, behaviour=behaviour) as made:
        yield made


@pytest.fixture
def simulated(agent: Agent) -> Iterator[SimulatedAsterisk]:
    """A simulated Asterisk with the app `voiceai`, and without audio."""
    with SimulatedAsterisk(Settings(audio=False), users={"voiceai": PASSWORD}, media_url=agent.url) as made:
        yield made
