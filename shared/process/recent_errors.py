"""The last errors and warnings that this process has logged, on their way to Redis (`registry`)."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

#: Of each kind: as many are kept here, and in Redis.
MOST = 200
#: Bounds in bytes of an entry's parts: what happened, the ids, and the rest.
_EVENT_BYTES = 300
_ID_BYTES = 100
#: Keys that an entry has by themselves, or that say nothing here.
_APART = ("timestamp", "severity_text", "severity_number", "event_name", "call", "connection", "exception")
_UNTOLD = ("process", "instance", "trace_id", "span_id", "_record", "_from_structlog")


class RecentErrors(logging.Handler):
    """Keeps what was logged as a warning or as something graver, each entry as a bounded JSON object.

    Its formatter returns the entry as `as_json` does. It waits for nothing, and never fails.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        #: Set when there is something to write.
        self.wakeup = threading.Event()
        self._errors: deque[str] = deque(maxlen=MOST)
        self._warnings: deque[str] = deque(maxlen=MOST)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - what cannot be formatted, the log itself tells of
            return
        (self._errors if record.levelno >= logging.ERROR else self._warnings).append(text)
        self.wakeup.set()

    def take(self) -> tuple[list[str], list[str]]:
        """Return the errors and the warnings that are not written yet, and forget them."""
        self.wakeup.clear()
        return _drained(self._errors), _drained(self._warnings)

    def put_back(self, errors: list[str], warnings: list[str]) -> None:
        """Keep what could not be written, before what has come since; the oldest goes first where there is no room."""
        for kept, earlier in ((self._errors, errors), (self._warnings, warnings)):
            for entry in reversed(earlier[-(MOST - len(kept)) :] if len(kept) < MOST else ()):
                kept.appendleft(entry)


def _drained(kept: deque[str]) -> list[str]:
    found = []
    while kept:
        found.append(kept.popleft())
    return found


def as_json(entry: Mapping[str, Any], *, most_bytes: int) -> str:
    """Return a log entry as JSON: what happened, when, to which call and connection, and the rest as one bounded text.

    Of a traceback the end is kept: it says what went wrong, and where.
    """
    rest = ", ".join(f"{key}={value}" for key, value in entry.items() if key not in _APART + _UNTOLD)
    exception = str(entry.get("exception") or "")
    kept: dict[str, str] = {
        "timestamp": str(entry.get("timestamp", "")),
        "severity_text": str(entry.get("severity_text", "")),
        "event_name": _beginning(str(entry.get("event_name", "")), _EVENT_BYTES),
        "call": _beginning(str(entry.get("call") or ""), _ID_BYTES),
        "connection": _beginning(str(entry.get("connection") or ""), _ID_BYTES),
        "detail": _beginning(rest, most_bytes // 2 if exception else most_bytes),
        "exception": _end(exception, most_bytes // 2),
    }
    return json.dumps({key: value for key, value in kept.items() if value}, ensure_ascii=False)


def _beginning(text: str, most: int) -> str:
    cut = text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    return cut if len(cut) == len(text) else cut + "…"


def _end(text: str, most: int) -> str:
    cut = text.encode("utf-8", "replace")[-most:].decode("utf-8", "ignore")
    return cut if len(cut) == len(text) else "…" + cut
