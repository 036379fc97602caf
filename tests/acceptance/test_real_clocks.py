"""The clock of a real Asterisk is set during a call, by libfaketime; its monotonic clock stays right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from chaos import tools
from devstack import asterisk_config, asterisk_root, debian, endpoint
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant

pytestmark = pytest.mark.asterisk

#: In an instance's folder, as its Asterisk sees it.
LIBRARY, OFFSET = "lib/libfaketime.so", "lib/offset"


class Root:
    """Runs Asterisk with a clock of its own.

    Args:
        inner: Where it is installed: a Debian tree.
    """

    def __init__(self, inner: asterisk_root.Chroot, library: Path) -> None:
        self._inner = inner
        self._library = library
        self.modules = inner.modules

    def command(self, instance: Path, name: str) -> list[str]:
        shutil.copy(self._library, instance / LIBRARY)
        *enter, program, foreground, option, configuration = self._inner.command(instance, name)
        seen = asterisk_root.INSTANCE
        environment = [
            f"LD_PRELOAD={seen}/{LIBRARY}", f"FAKETIME_TIMESTAMP_FILE={seen}/{OFFSET}", "FAKETIME_CACHE_DURATION=0",
            "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1",
        ]  # fmt: skip
        return [*enter, "/usr/bin/env", *environment, program, foreground, option, configuration]

    def command_line(self, instance: Path, name: str, command: str) -> list[str]:
        return self._inner.command_line(instance, name, command)


def set_clock(folder: Path, ahead_seconds: int) -> None:
    partial = folder / f"{OFFSET}.partial"
    partial.write_text(f"{ahead_seconds:+d}\n")
    partial.replace(folder / OFFSET)


@pytest.fixture
def folder(stack_folder: Path) -> Path:
    made = stack_folder / "asterisk-with-a-clock"
    (made / "lib").mkdir(parents=True, exist_ok=True)
    set_clock(made, 0)
    return made


@pytest.fixture
def asterisk(folder: Path, media_port: int) -> Iterator[RealAsterisk]:
    """A real Asterisk whose clock `set_clock` sets."""
    try:
        root, found = asterisk_root.find(), tools.find()
    except debian.Unavailable as exc:
        pytest.skip(str(exc))
    if not isinstance(root, asterisk_root.Chroot):
        pytest.skip("the library is for a Debian tree")
    client = asterisk_config.Client(uri=f"ws://127.0.0.1:{media_port}{endpoint.PATH}")
    configuration = asterisk_config.Configuration(
        contexts={"inbound": "voiceai"}, users={"voiceai": PASSWORD}, clients={"media": client}
    )
    with RealAsterisk(cast(asterisk_root.Root, Root(root, found.libfaketime)), folder, configuration) as made:
        yield made


@pytest.mark.parametrize("ahead_seconds", [-3600, 3600])
def test_a_hang_up_ends_the_call_within_a_second_with_its_cause(
    pipeline: Pipeline, tenant: Tenant, asterisk: RealAsterisk, agent: Agent, folder: Path, *, ahead_seconds: int
) -> None:
    assert agent.port
    tenant.configure(asterisk.url)
    pipeline.start()
    pipeline.wait_connected()
    leg = asterisk.dial()
    wait_until(lambda: pipeline.state(leg) == "connected", seconds=20, what=lambda: pipeline.story(leg))
    before = asterisk.request("GET", "/asterisk/ping").json()["timestamp"]
    set_clock(folder, ahead_seconds)

    def is_set() -> bool:
        return bool(asterisk.request("GET", "/asterisk/ping").json()["timestamp"][:13] != before[:13])

    wait_until(is_set, seconds=5, what="its clock is set")
    asterisk.hang_up_caller(leg)
    wait_until(lambda: pipeline.state(leg) == "ended", seconds=1, what=lambda: pipeline.story(leg))
    call = pipeline.call(leg)
    # 16; and 0 once, which is what Asterisk said.
    assert (call["outcome"], call["hangup_cause"] is not None) == ("completed", True), pipeline.story(leg)
    wait_until(lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5, what="nothing is left")
