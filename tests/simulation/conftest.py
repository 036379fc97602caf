"""Sites whose every step the test decides: nothing fails and nothing is late unless it says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import structlog

from simulator import events
from tests.simulation import runs
from tests.simulation.chances import Chances
from tests.simulation.sites import Site
from tests.simulation.world import World


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    runs.quiet()
    yield
    structlog.reset_defaults()
    events.clock = time.time


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    """Makes a site; takes what `Site` takes."""
    worlds = []

    def make(**given: object) -> Site:
        world = World(Chances(0, ()), telling=True)
        worlds.append(world)
        return Site(world, **given)  # type: ignore[arg-type]

    yield make
    for world in worlds:
        world.end()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with one tenant, its socket open."""
    made = make_site()
    made.open()
    made.world.run(0.3)
    return made
