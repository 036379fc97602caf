"""The files that an Asterisk needs, as `arictl doctor --dialplan` prints them."""

from __future__ import annotations

import re

import pytest

from shared.asterisk import config_files

#: Options that an older Asterisk does not know: the file → the options.
NEWER = {
    "http.conf": {"type", "deny", "permit"},
    "ari.conf": {"deny", "permit"},
    "websocket_client.conf": {"enable_pingpongs"},
}


def files(endpoint: str) -> dict[str, str]:
    return config_files.files(endpoint=endpoint, app="voiceai", user="voiceai", websocket_client="media")


def test_what_only_newer_versions_know_is_there_and_commented_out() -> None:
    for name, options in NEWER.items():
        found = set(re.findall(r"^;(\w+)=", files("http://pbx.example:8088")[name], re.MULTILINE))
        assert found == options


@pytest.mark.parametrize(
    ("endpoint", "section"),
    [("http://pbx.example:8088", "/ari"), ("https://pbx.example/asterisk", "/asterisk/ari")],
)
def test_the_access_list_of_a_path_names_the_prefix_too(endpoint: str, section: str) -> None:
    """Without the prefix the list applies to nothing (measured, 22.10)."""
    assert f"\n;[{section}]\n;type=restriction\n" in files(endpoint)["http.conf"]
