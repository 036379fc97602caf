"""The configuration files that the operator is told to write are enough for an Asterisk that serves a call."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from devstack import asterisk_config, processes
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import ROOT, Pipeline, wait_until
from devstack.tenants import Tenant
from shared.asterisk import config_files

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

FILES = ("http.conf", "ari.conf", "websocket_client.conf", "extensions.conf")
PASSWORD = "change me"
Files = dict[str, str]


class FilesOfTheirs(RealAsterisk):
    """An Asterisk with these four files and their ARI user alone."""

    def __init__(self, root: Root, folder: Path, files: Files, *, port: int) -> None:
        super().__init__(root, folder, asterisk_config.Configuration(), preferred_port=port)
        self._files = files
        self._session.auth = ("voiceai", PASSWORD)

    def _write(self) -> None:
        super()._write()
        for name, text in self._files.items():
            (self._folder / "etc" / name).write_text(text)


def printed(pipeline: Pipeline, tenant: Tenant) -> Files:
    """Return what `arictl doctor --dialplan` prints, its two placeholders filled in."""
    done = subprocess.run(
        [sys.executable, "-m", "arictl.main", "doctor", "--dialplan", str(tenant.organization_id)],
        check=True, capture_output=True, text=True, timeout=60, env={"DATABASE_URL": pipeline.database_url}, cwd=ROOT,
    )  # fmt: skip
    parts = re.split(r"^; ──── (\S+) ────\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def of_the_readme(pipeline: Pipeline, tenant: Tenant) -> Files:
    """Return its four blocks, in order."""
    blocks = re.findall(r"^```ini\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return dict(zip(FILES, blocks, strict=True))


def restricted(pipeline: Pipeline, tenant: Tenant) -> Files:
    """Return what `arictl doctor --dialplan` prints, with the access lists that it has commented out."""
    files = printed(pipeline, tenant)
    for name in ("http.conf", "ari.conf"):
        files[name] = re.sub(r"^;(?=\[|\w+=)", "", files[name], flags=re.MULTILINE)
        assert config_files.PIPELINE in files[name]
    return files


class FromAddress(HTTPAdapter):
    """Makes requests from this address of the machine."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, source_address=(self._address, 0))


def status_from(address: str, url: str) -> int:
    with requests.Session() as session:
        session.mount("http://", FromAddress(address))
        return session.get(f"{url}/ari/asterisk/ping", auth=("voiceai", PASSWORD), timeout=5).status_code


@pytest.mark.parametrize("source", [printed, of_the_readme, restricted])
def test_an_asterisk_with_the_files_we_name_serves_a_call(
    pipeline: Pipeline,
    tenant: Tenant,
    agent: Agent,
    asterisk_root: Root,
    stack_folder: Path,
    *,
    source: Callable[[Pipeline, Tenant], Files],
) -> None:
    port = processes.free_port()
    tenant.configure(f"http://127.0.0.1:{port}", app_password=PASSWORD)
    files = source(pipeline, tenant)
    assert tuple(files) == FILES
    filled = {
        name: text.replace(config_files.PASSWORD, PASSWORD)
        .replace(config_files.MEDIA_URL, agent.url)
        .replace(config_files.PIPELINE, "127.0.0.1")
        .replace("wss://agent.example/api/v1/telephony/ws/ari", agent.url)
        .replace("bindport=8088", f"bindport={port}")
        for name, text in files.items()
    }
    with FilesOfTheirs(asterisk_root, stack_folder / f"files-{source.__name__}", filled, port=port) as asterisk:
        pipeline.start()
        pipeline.wait_connected()
        asterisk.cli("channel originate Local/+4955501@inbound application Wait 60")
        wait_until(
            lambda: [call["state"] for call in pipeline.calls()] == ["connected"],
            seconds=15,
            what=lambda: f"{[pipeline.story(call['channel_id']) for call in pipeline.calls()]}\n{asterisk.log()}",
        )
        (call,) = pipeline.calls()
        assert call["called_number"] == "+4955501"
        wait_until(
            lambda: any(call["channel_id"] in bridge["channels"] for bridge in asterisk.bridges()),
            seconds=5,
            what="the caller is bridged",
        )
        asterisk.hang_up(call["channel_id"])
        wait_until(lambda: pipeline.state(call["channel_id"]) == "ended", seconds=10, what="it ends")
        wait_until(lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5, what="nothing is left")
        assert "ERROR" not in asterisk.log()
        assert status_from("127.0.0.1", asterisk.url) == 200
        assert status_from("127.0.0.2", asterisk.url) == (403 if source is restricted else 200)
