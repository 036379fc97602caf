"""What the standard library's loggers are told while a test looks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        """Their texts."""
        return [record.getMessage() for record in self.records]


@contextlib.contextmanager
def kept(logger: str = "") -> Iterator[Kept]:
    """Keep what a logger is told from WARNING on, and those below it that have no level of their own.

    It gets that level for the time: arictl, run in this process, silences some.
    """
    told, handler = logging.getLogger(logger), Kept()
    before = told.level
    told.setLevel(logging.WARNING)
    told.addHandler(handler)
    try:
        yield handler
    finally:
        told.removeHandler(handler)
        told.setLevel(before)
