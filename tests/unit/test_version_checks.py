"""The doctor's judgement of a version of Asterisk, branch by branch."""

from __future__ import annotations

import pytest

from shared.operator.checks.findings import Level
from shared.operator.checks.version_checks import ADVISORIES, judge_version

SECURITY, UPGRADE, REPEATED, PONG, NOISE = range(5)
BEFORE_THE_FIX = [UPGRADE, REPEATED]


def faults(version: str) -> list[int]:
    seen = [finding.seen for finding in judge_version(version) if finding.what == "known fault"]
    return [n for n, advisory in enumerate(ADVISORIES) if any(text.startswith(advisory.fault) for text in seen)]


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("22.10.1+dfsg+~cs6.17", Level.OK), ("22.8.0", Level.OK), ("22.7.9", Level.WRONG), ("20.18.0", Level.OK),
        ("20.17.0", Level.WRONG), ("21.12.0", Level.WRONG), ("23.1.0", Level.WRONG), ("23.2.0", Level.OK),
        ("24.0.0", Level.OK), ("24.0.0-pre1", Level.OK), ("18.26.0", Level.WRONG), ("22.11.0-rc1", Level.OK),
        ("certified-20.7-cert3", Level.WRONG), ("certified-22.8-cert1", Level.WARNING),
        ("GIT-22-abcdef", Level.WARNING), ("", Level.WARNING), ("mine", Level.WARNING),
    ],
)  # fmt: skip
def test_versions_without_external_media_over_websocket_are_refused(version: str, level: Level) -> None:
    assert next(judge_version(version)).level is level


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("22.8.0", [SECURITY, *BEFORE_THE_FIX, NOISE]), ("20.18.1", [SECURITY, *BEFORE_THE_FIX, NOISE]),
        ("23.2.2", [SECURITY, *BEFORE_THE_FIX, NOISE]), ("22.9.0", [SECURITY, *BEFORE_THE_FIX]),
        ("20.19.0", [SECURITY, *BEFORE_THE_FIX]), ("23.3.0", [SECURITY, *BEFORE_THE_FIX]),
        ("22.10.0", [SECURITY, *BEFORE_THE_FIX]), ("22.10.0-rc2", [SECURITY, *BEFORE_THE_FIX]),
        ("20.20.0", [SECURITY, *BEFORE_THE_FIX]), ("23.4.0", [SECURITY, *BEFORE_THE_FIX]),
        ("22.10.1", BEFORE_THE_FIX), ("20.20.1", BEFORE_THE_FIX), ("23.4.1", BEFORE_THE_FIX),
        ("22.10.1+dfsg+~cs6.17.60671434-1", BEFORE_THE_FIX), ("22.10.2", BEFORE_THE_FIX),
        ("22.11.0-rc1", [PONG]), ("22.11.0~rc1+dfsg+~cs6.17", [PONG]), ("23.5.0-rc1", [PONG]),
        ("22.11.0-rc2", []), ("20.21.0-rc1", []), ("22.11.0", []), ("23.5.0", []), ("20.21.0", []), ("22.12.1", []),
        ("24.0.0-pre1", []), ("24.0.0", []), ("certified-22.8-cert1", []), ("GIT-22-abcdef", []), ("22.7.9", []),
    ],
)  # fmt: skip
def test_a_version_has_the_known_faults_of_its_branch(version: str, expected: list[int]) -> None:
    assert faults(version) == expected


def test_a_fault_that_the_pipeline_avoids_is_a_note_and_the_others_say_what_to_do() -> None:
    for finding in [*judge_version("22.8.0"), *judge_version("22.11.0-rc1")]:
        assert (finding.level is Level.OK) == (finding.todo == "")
    levels = [finding.level for finding in judge_version("22.10.1")]
    assert levels == [Level.OK, Level.WARNING, Level.OK]
