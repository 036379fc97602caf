"""A finding: what was looked at, what was seen, what to do. Never holds a secret."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    #: As it should be.
    OK = "ok"
    #: Works, or cannot be told from here; look at it.
    WARNING = "warning"
    #: Calls are lost, or will be.
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    level: Level
    what: str
    seen: str
    #: Empty when all is well.
    todo: str = ""


def ok(what: str, seen: str) -> Finding:
    """As it should be."""
    return Finding(level=Level.OK, what=what, seen=seen)


def warning(what: str, seen: str, todo: str) -> Finding:
    """Works, or cannot be told from here."""
    return Finding(level=Level.WARNING, what=what, seen=seen, todo=todo)


def wrong(what: str, seen: str, todo: str) -> Finding:
    """Calls are lost, or will be."""
    return Finding(level=Level.WRONG, what=what, seen=seen, todo=todo)


def numbers(version: str) -> tuple[int, int] | None:
    """The first two numbers of a version; None when there are none: a development build tells only its branch."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def without_password(text: str, url: str) -> str:
    """A library's words about a URL of ours: one line, bounded, the URL and its password taken out."""
    said = (text.strip().splitlines() or [""])[0].replace(url, "…")
    credentials = url.partition("://")[2].rpartition("@")[0]
    password = credentials.partition(":")[2]
    for secret in (credentials, password, urllib.parse.unquote(password)):
        if secret:
            said = said.replace(secret, "…")
    return said[:300]


def is_readable(url: str) -> bool:
    """Whether a URL can be taken apart: libraries quote parts of one that cannot, a password among them."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Looked at for its error.
        _ = parts.port
    except ValueError:
        return False
    return True
