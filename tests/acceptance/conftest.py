"""Fixtures of the acceptance tests: the product's processes, a voice agent, a simulated Asterisk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from devstack import platform_tables, servers
from devstack.agent import Agent
from devstack.endpoint import Behaviour
from devstack.pipeline import MEDIA_SECRET, Pipeline
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests import databases
from tests.acceptance.environment import Deploy, Deployment, Environment, running_deployment
from tests.support.forked import ForkedPipeline


@pytest.fixture(scope="session")
def all_logs(stack_folder: Path) -> Path:
    """The folder for the logs of all processes of the run."""
    folder = stack_folder / "logs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def deploy(
    postgres_server: servers.Postgres,
    database_templates: Callable[[platform_tables.Layout], str],
    stack_folder: Path,
    all_logs: Path,
) -> Deploy:
    """A function that starts a deployment with its own database: `deploy(name, **options of running_deployment)`.

    Its option `layout`: the platform's tables in it (`platform_tables.Layout`), stand-alone by default.
    """

    def start(
        name: str, layout: platform_tables.Layout = "stand-alone", **options: Any
    ) -> AbstractContextManager[Deployment]:
        url = databases.create(postgres_server.url, template=database_templates(layout))
        if layout != "stand-alone":
            # The agent neither completes runs, as the platform's would, nor knows another secret.
            options = {"RUN_COMPLETION": "ours", "MEDIA_TOKEN_SECRET": MEDIA_SECRET, **options}
        return running_deployment(folder=stack_folder, logs=all_logs / name, database_url=url, **options)

    return start


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    """A tenant and its Asterisk on the test file's `deployment`; checks the invariants at the end."""
    with deployment.environment() as made:
        yield made


@pytest.fixture
def pipeline(database_url: str, redis_url: str, all_logs: Path, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The processes, not started yet."""
    logs = all_logs / "".join(char if char.isalnum() else "-" for char in request.node.name)
    logs.mkdir()
    with ForkedPipeline(database_url=database_url, redis_url=redis_url, logs=logs) as made:
        yield made


@pytest.fixture
def tenant(database_url: str) -> Iterator[Tenant]:
    """A tenant without a configuration yet."""
    with closing_tenant(database_url) as made:
        yield made


@pytest.fixture
def agent(database_url: str, pipeline: Pipeline, media_port: int) -> Iterator[Agent]:
    """The voice agent: it sends a tone of 400 Hz and records what it hears."""
    behaviour = Behaviour(mode="tone", tone_hz=400)
    with Agent(database_url=database_url, secret=pipeline.media_secret, port=media_port, behaviour=behaviour) as made:
        yield made


@pytest.fixture
def simulated(agent: Agent) -> Iterator[SimulatedAsterisk]:
    """A simulated Asterisk with the app `voiceai`, and without audio."""
    with SimulatedAsterisk(Settings(audio=False), users={"voiceai": PASSWORD}, media_url=agent.url) as made:
        yield made
