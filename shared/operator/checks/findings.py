"""A finding: what was checked, what was seen, what to do. It never contains a secret."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The severity of a finding."""

    #: In order.
    OK = "ok"
    #: It works, or cannot be checked from here: check it by hand.
    WARNING = "warning"
    #: Calls are being lost, or will be.
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    level: Level
    what: str
    seen: str
    #: Empty if nothing needs to be done.
    todo: str = ""


def ok(what: str, seen: str) -> Finding:
    """Return a finding that is in order."""
    return Finding(level=Level.OK, what=what, seen=seen)


def warning(what: str, seen: str, todo: str) -> Finding:
    """Return a finding that works, or cannot be checked from here."""
    return Finding(level=Level.WARNING, what=what, seen=seen, todo=todo)


def wrong(what: str, seen: str, todo: str) -> Finding:
    """Return a finding by which calls are lost, or will be."""
    return Finding(level=Level.WRONG, what=what, seen=seen, todo=todo)


def numbers(version: str) -> tuple[int, int] | None:
    """Return the first two numbers of a version; None if it has none: a development build has only its branch."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def without_password(text: str, url: str) -> str:
    """Return a library's message about a URL of ours as one bounded line, without the URL and its password."""
    line = (text.strip().splitlines() or [""])[0].replace(url, "…")
    credentials = url.partition("://")[2].rpartition("@")[0]
    password = credentials.partition(":")[2]
    for secret in (credentials, password, urllib.parse.unquote(password)):
        if secret:
            line = line.replace(secret, "…")
    return line[:300]


def is_readable(url: str) -> bool:
    """Whether a URL can be parsed: libraries quote parts of one that cannot, and its password among them."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Read for its error.
        _ = parts.port
    except ValueError:
        return False
    return True
