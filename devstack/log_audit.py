"""Audit of the logs of the product's processes: no credential and no crash may be in them, whatever a test did."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus

#: Logged when a process failed by its own error: an event of the product, a message of Python.
FAILURES = ("job failed", "Fatal Python error")


def assert_clean(folder: Path, *, secrets: Iterable[str], user: str, password: str) -> None:
    """Check every log of a folder, line by line.

    Args:
        folder: has the logs of processes that have ended.
        secrets: further secrets besides the password.
        user: the user of the password; both together are in a Basic header.
    """
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    forbidden = {spelling for secret in {password, credentials, *secrets} for spelling in _spellings(secret)}
    for log in sorted(folder.rglob("*.log")):
        text = log.read_text(errors="replace")
        for failure in FAILURES:
            assert failure not in text, f"{folder.name}/{log.name}: {text[-3000:]}"
        for number, line in enumerate(text.splitlines(), 1):
            line_name = f"{folder.name}/{log.name}:{number}"
            assert not any(spelling in line for spelling in forbidden), f"{line_name} shows a credential"
            assert "token=" not in line.replace("token=[redacted]", ""), f"{line_name} shows a media token"


def _spellings(secret: str) -> set[str]:
    """Return a secret as it is and as it is written in URLs."""
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
