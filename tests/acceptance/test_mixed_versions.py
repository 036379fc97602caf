"""An upgrade: workers, listeners and schedulers of the release before run beside those of this one, on one schema.

From v0.1.0-rc1 on, messages, Redis keys and tables change by expand/contract.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.pipeline import ROOT
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

#: The commit of tag v0.1.0-rc1. A checkout has its commits, but not always its tags.
BEFORE = "d6d787b4251a615c2167b2e8a9a056b4c7dd1ebe"


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the release before; skipped in a checkout without its history."""
    command = ["git", "archive", BEFORE]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"the commit {BEFORE} is not here: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("release-before")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        # Python 3.11.4 and later have it, and warn without.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, release_before: Path) -> Iterator[Deployment]:
    # As the migration leaves a database that the release before has used: the prefix is the one that release has. On a
    # machine at work a killed worker's messages are elsewhere after seconds, in which its calls are not to be given up.
    settings = {"ID_PREFIX": "aip-", "QUEUE_SECONDS": "5"}
    with deploy("mixed-versions", processes=("listener", "scheduler", "worker"), **settings) as made:
        made.pipeline.start_from(release_before, "worker.before", "listener.before", "scheduler.before")
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


def test_calls_are_served_by_both_releases(env: Environment) -> None:
    legs = env.connect(30)
    assert all(map(env.is_joined, legs)), env.describe()
    assert {channel["gaps"] for channel in env.control.channels()} == {0}
    env.end(*legs)


@pytest.mark.parametrize("stopped", ["worker", "worker.before"])
def test_a_worker_of_either_release_goes_on_with_the_calls_of_the_other(
    env: Environment, deployment: Deployment, release_before: Path, stopped: str
) -> None:
    legs = env.connect(4)
    assert deployment.pipeline.stop(stopped) == 0
    legs += env.connect(4)
    assert all(map(env.is_joined, legs)), env.describe()
    env.end(*legs)
    deployment.pipeline.start_from(_root(stopped, release_before), stopped)


def test_callers_who_hang_up_at_once_leave_nothing(env: Environment) -> None:
    legs = [env.dial(hang_up_after=0.004 * number) for number in range(30)]
    for leg in legs:
        env.wait_state(leg, "ended", seconds=30)
    env.wait_empty()


@pytest.mark.parametrize("killed", ["worker", "worker.before"])
def test_a_killed_worker_is_followed_by_the_other_release(
    env: Environment, deployment: Deployment, release_before: Path, killed: str
) -> None:
    legs = [env.dial() for _ in range(12)]
    deployment.pipeline.kill(killed)
    for leg in legs:
        env.wait_state(leg, "connected", seconds=60)
    assert all(env.is_joined(leg, env.pipeline.calls(leg)[-1]["attempt"]) for leg in legs), env.describe()
    deployment.pipeline.start_from(_root(killed, release_before), killed)
    env.end(*legs)


def _root(name: str, release_before: Path) -> Path:
    return release_before if name.endswith("before") else ROOT
