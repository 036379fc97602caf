"""Sites whose every step the test decides: nothing fails and nothing is late unless it says so."""

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
    events.clock = time.time


@pytest.fixture
def make_environment() -> Iterator[Callable[..., Environment]]:
    """Makes a environment; takes what `Environment` takes."""
    worlds = []

    def make(**given: object) -> Environment:
        world = World(Choices(0, ()), telling=True)
        worlds.append(world)
        return Environment(world, **given)  # type: ignore[arg-type]

    yield make
    for world in worlds:
        world.end()


@pytest.fixture
def environment(make_environment: Callable[..., Environment]) -> Environment:
    """A environment with one tenant, its socket open."""
    made = make_environment()
    made.open()
    made.world.run(0.3)
    return made
