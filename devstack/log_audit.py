"""Audit of the logs of the product's processes: no credential, number or crash may be in them, whatever a test did."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus

#: Logged when a process failed by its own error: an event of the product, a message of Python.
FAILURES = ("job failed", "process failed", "thread failed", "Fatal Python error")
#: A shorter number may be any count, port or time.
_DIGITS = 7


def assert_clean(
    folder: Path, *, secrets: Iterable[str], user: str, password: str, numbers: Iterable[str] = ()
) -> None:
    """Check every log of a folder, line by line.

    Args:
        folder: has the logs of processes that have ended.
        secrets: further secrets besides the password.
        user: the user of the password; both together are in a Basic header.
        numbers: telephone numbers of the calls; those that are long enough to be told from an amount are looked for.
    """
    digits = {number.lstrip("+") for number in numbers}
    telltale = sorted(number for number in digits if number.isdigit() and len(number) >= _DIGITS)
    shown = re.compile(rf"(?<!\d)(?:{'|'.join(telltale)})(?!\d)") if telltale else None
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    forbidden = {spelling for secret in {password, credentials, *secrets} for spelling in _spellings(secret)}
    for log in sorted(folder.rglob("*.log")):
        text = log.read_text(errors="replace")
        for failure in FAILURES:
            assert failure not in text, f"{folder.name}/{log.name}: {text[-3000:]}"
        for number, line in enumerate(text.splitlines(), 1):
            line_name = f"{folder.name}/{log.name}:{number}"
            assert not any(spelling in line for spelling in forbidden), f"{line_name} shows a credential"
            assert shown is None or not shown.search(line), f"{line_name} shows a number: {line[:500]}"
            assert "token=" not in line.replace("token=[redacted]", ""), f"{line_name} shows a media token"


def _spellings(secret: str) -> set[str]:
    """Return a secret as it is and as it is written in URLs."""
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
