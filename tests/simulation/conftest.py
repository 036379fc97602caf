"""Environments in which nothing fails and nothing is late unless the test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import structlog

from simulator import events
from tests.simulation import runs
from tests.simulation.choices import Choices
from tests.simulation.environment import Environment
from tests.simulation.world import World


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    runs.quiet()
    yield
    structlog.reset_defaults()
    events.clock, events.ahead_seconds = time.time, 0.0


@pytest.fixture
def make_environment() -> Iterator[Callable[..., Environment]]:
    """Make an environment with the arguments of `Environment`."""
    worlds = []

    def make(**given: object) -> Environment:
        world = World(Choices(0, ()), keeps_story=True)
        worlds.append(world)
        return Environment(world, **given)  # type: ignore[arg-type]

    yield make
    for world in worlds:
        world.end()


@pytest.fixture
def environment(make_environment: Callable[..., Environment]) -> Environment:
    """Return an environment with one tenant, its event socket connected."""
    made = make_environment()
    made.open()
    made.world.run(0.3)
    return made
