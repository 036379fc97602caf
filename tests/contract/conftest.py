"""Fixtures of the contract suite: each test meets the simulated Asterisk and a real one, with the same code.

One Asterisk of each kind serves the whole run; every test has numbers, apps and ids of its own and leaves it empty.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import switches
from tests.contract.agent import Agent
from tests.contract.switches import Switch

MakeSwitch = Callable[..., Switch]
KINDS = ["simulated", pytest.param("real", marks=pytest.mark.asterisk)]
#: For what the simulator does not do.
ONLY_REAL = pytest.mark.parametrize("shared_switch", KINDS[1:], indirect=True)


@pytest.fixture(scope="session")
def agent() -> Iterator[Agent]:
    """The media server of all calls."""
    running = Agent()
    yield running
    running.close()


@pytest.fixture(scope="session", params=KINDS)
def shared_switch(request: pytest.FixtureRequest, agent: Agent, stack_folder: Path) -> Iterator[Switch]:
    if request.param == "simulated":
        with switches.simulated(agent.url) as running:
            yield running
    else:
        # Skips, or fails where a real Asterisk is required.
        root = request.getfixturevalue("asterisk_root")
        with switches.real(agent.url, root, stack_folder) as running:
            yield running


@pytest.fixture
def switch(shared_switch: Switch) -> Iterator[Switch]:
    """An Asterisk without calls."""
    yield shared_switch
    shared_switch.clear()


@pytest.fixture(params=KINDS)
def make_switch(request: pytest.FixtureRequest, agent: Agent, stack_folder: Path) -> Iterator[MakeSwitch]:
    """Starts an Asterisk of the test's own, for what harms it or needs another configuration."""
    with contextlib.ExitStack() as running:

        def make(**options: Any) -> Switch:
            if request.param == "simulated":
                return running.enter_context(switches.simulated(agent.url, **options))
            root = request.getfixturevalue("asterisk_root")
            return running.enter_context(switches.real(agent.url, root, stack_folder, **options))

        yield make


@pytest.fixture
def number() -> str:
    """A number nobody has called yet."""
    return Switch.number()


@pytest.fixture
def app(number: str) -> str:
    """The app that calls to the number enter."""
    return f"app-{number}"
