"""What the logs of the product's processes must never show, whatever a test did to them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus

#: Said when a process failed by an error of its own.
FAILURES = ("a job failed", "Fatal Python error")


def assert_clean(folder: Path, *, secrets: Iterable[str], user: str, password: str) -> None:
    """Looks through every log of a folder, line by line.

    Args:
        folder: with the logs of processes that have ended.
        secrets: what else must not be there beside the password.
        user: whom the password belongs to; both together are in a Basic header.
    """
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    forbidden = {spelling for secret in {password, credentials, *secrets} for spelling in _spellings(secret)}
    for log in sorted(folder.rglob("*.log")):
        text = log.read_text(errors="replace")
        for failure in FAILURES:
            assert failure not in text, f"{folder.name}/{log.name}: {text[-3000:]}"
        for number, line in enumerate(text.splitlines(), 1):
            place = f"{folder.name}/{log.name}:{number}"
            assert not any(spelling in line for spelling in forbidden), f"{place} shows a credential"
            assert "token=" not in line.replace("token=[redacted]", ""), f"{place} shows a media token"


def _spellings(secret: str) -> set[str]:
    """A secret as it is, and in a URL."""
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
