"""Fixtures of the contract suite: each test runs on the simulated Asterisk and on a real one.

One Asterisk of each kind serves the whole run; every test has its own numbers, apps and ids, and leaves it empty.
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
#: Marks a fact that the simulator does not reproduce.
ONLY_REAL = pytest.mark.parametrize("shared_switch", KINDS[1:], indirect=True)
#: The same for a test that starts its own.
ONLY_REAL_OWN = pytest.mark.parametrize("make_switch", KINDS[1:], indirect=True)


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
    """A function that starts an Asterisk for one test that harms it or needs another configuration."""
    with contextlib.ExitStack() as running:

        def make(**options: Any) -> Switch:
            if request.param == "simulated":
                return running.enter_context(switches.simulated(agent.url, **options))
            root = request.getfixturevalue("asterisk_root")
            return running.enter_context(switches.real(agent.url, root, stack_folder, **options))

        yield make


@pytest.fixture
def number() -> str:
    """An unused number."""
    return Switch.number()


@pytest.fixture
def app(number: str) -> str:
    """The app of calls to the number."""
    return f"app-{number}"
