"""The processes, an agent and a real Asterisk that serve all tests of a file: starting them takes seconds.

Each test finds them as at the start: without a channel, a call or a run, the agent and the configuration as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_config import Client, Configuration
from devstack.asterisk_root import Root
from devstack.endpoint import Behaviour
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from tests.acceptance.environment import Deploy, Deployment

APP = "voiceai"
#: Of the agent when a test begins.
BEHAVIOUR = Behaviour(mode="tone", tone_hz=400)


@dataclass(frozen=True, kw_only=True)
class RealStack:
    """What serves the tests of a file."""

    deployment: Deployment
    asterisk: RealAsterisk
    tenant: Tenant
    #: Of the tenant's configuration: what differs from the usual.
    configured: Mapping[str, Any]

    @property
    def pipeline(self) -> Pipeline:
        return self.deployment.pipeline

    @property
    def agent(self) -> Agent:
        return self.deployment.agent

    @contextlib.contextmanager
    def test(self) -> Iterator[Pipeline]:
        """Wait until the tenant's event socket is open; at the end leave everything as it was."""
        configuration = self.asterisk.configuration
        users, clients = dict(configuration.users), dict(configuration.clients)
        self.tenant.configure(self.asterisk.url, **self.configured)
        self.pipeline.wait_connected()
        yield self.pipeline
        if (configuration.users, configuration.clients) != (users, clients):
            configuration.users, configuration.clients = users, clients
            self.asterisk.reload()
        self._hang_up()
        self._forget()
        self.agent.stop()
        vars(self.agent.behaviour).update(vars(BEHAVIOUR))
        self.agent.sessions.clear()
        self.agent.refusals.clear()
        self.agent.start()

    def _hang_up(self) -> None:
        """End every call, and remove what a test has made itself."""
        for channel in self.asterisk.channels():
            self.asterisk.hang_up(channel["id"])
        wait_until(lambda: not self.asterisk.channels(), seconds=10, what=lambda: str(self.asterisk.channels()))
        for bridge in self.asterisk.bridges():
            self.asterisk.request("DELETE", f"/bridges/{bridge['id']}")
        is_over = "SELECT count(*) = 0 FROM ari.calls WHERE state <> 'ended'"
        wait_until(lambda: self.pipeline.value(is_over), seconds=60, what=lambda: str(self.pipeline.calls()))

    def _forget(self) -> None:
        """Remove the calls and runs, once no message is under way that would write a call again."""
        with self.deployment.queue() as client:
            self.deployment.wait_idle(client)
        for table in ("ari.timeline", "ari.calls", "workflow_runs"):
            self.pipeline.execute(f"DELETE FROM {table}")


@contextlib.contextmanager
def running(
    deploy: Deploy,
    root: Root,
    folder: Path,
    name: str,
    *,
    dialplan: str = "",
    configured: Mapping[str, Any] | None = None,
    times: Mapping[str, str] | None = None,
    manager_port: int | None = None,
    modules: tuple[str, ...] = (),
    more_files: Mapping[str, str] | None = None,
) -> Iterator[RealStack]:
    """Start everything, by default with the times of production."""
    with contextlib.ExitStack() as stack:
        deployment = stack.enter_context(deploy(name, audio=True, times=times or {}))
        configuration = Configuration(
            contexts={"inbound": APP},
            users={APP: PASSWORD},
            clients={"media": Client(uri=deployment.agent.url)},
            dialplan=dialplan,
            manager_port=manager_port,
            modules=modules,
            more_files=more_files or {},
        )
        asterisk = stack.enter_context(RealAsterisk(root, folder / f"asterisk-{name}", configuration))
        tenant = stack.enter_context(closing_tenant(deployment.database_url))
        yield RealStack(deployment=deployment, asterisk=asterisk, tenant=tenant, configured=configured or {})


@pytest.fixture(name="running")
def _running(stack: RealStack) -> Iterator[Pipeline]:
    """All processes, with the tenant's event socket open."""
    with stack.test() as pipeline:
        yield pipeline


@pytest.fixture(name="asterisk")
def _asterisk(stack: RealStack) -> RealAsterisk:
    return stack.asterisk


@pytest.fixture(name="agent")
def _agent(stack: RealStack) -> Agent:
    return stack.agent


@pytest.fixture(name="tenant")
def _tenant(stack: RealStack) -> Tenant:
    return stack.tenant


#: What the tests of a file take of its `stack`: a file that names them has these fixtures.
FIXTURES = (_running, _asterisk, _agent, _tenant)
