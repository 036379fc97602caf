"""The files that the doctor prints for an Asterisk: the README's, and such as a real one takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from devstack import asterisk_config
from devstack.asterisk import RealAsterisk
from shared.asterisk import config_files

ROOT = Path(__file__).parents[2]


def test_there_is_one_dialplan() -> None:
    theirs = asterisk_config.files(asterisk_config.Configuration(), port=1, password="x", modules="/")
    assert config_files.dialplan("voiceai") in theirs["extensions.conf"]
    assert config_files.dialplan("voiceai") in (ROOT / "README.md").read_text()


@pytest.mark.asterisk
def test_a_real_asterisk_takes_the_files(asterisk: RealAsterisk) -> None:
    files = config_files.files(endpoint=asterisk.url, app="acme", user="acme", websocket_client="agent")
    asterisk.configuration.dialplan = config_files.dialplan("acme", context="printed")
    asterisk.reload()
    assert "Stasis(acme)" in asterisk.cli("dialplan show printed")
    assert f"bindport={asterisk.port}" in files["http.conf"]
