"""Which log lines are written: by the level of this process, and by another one for the lines of one connection.

An operator changes both for a time, while the process runs. Unused, a level for a connection costs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A level that an operator wishes for, for this process or for one connection in it."""

    level: str
    #: 0 for every line of the process.
    connection_id: int = 0
    #: How long it still lasts.
    seconds: float


class LogLevels(logging.Filter):
    """The levels of a process: of its settings, and those wished for. A filter of its log handler.

    Args:
        level: Of the settings.
        monotonic: A parameter for tests.
    """

    def __init__(self, level: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._own = level
        self._monotonic = monotonic
        self._wishes: list[tuple[float, Wish]] = []
        #: Of lines without a level of their own, and of those of a connection.
        self._level = _number(level)
        self._of_connections: dict[int, int] = {}
        self._apply()

    @property
    def level(self) -> str:
        """The level of lines that are of no connection with a level of its own."""
        return logging.getLevelName(self._level).lower()

    @property
    def of_connections(self) -> dict[int, str]:
        """Connection id → the level of its lines, where they have their own."""
        return {each: logging.getLevelName(level).lower() for each, level in self._of_connections.items()}

    def set(self, wishes: Iterable[Wish]) -> bool:
        """Take the wishes instead of those before; return True if a level has changed by it.

        What cannot be read as a level is left out.
        """
        before = (self._level, self._of_connections)
        now = self._monotonic()
        self._wishes = [(now + wish.seconds, wish) for wish in wishes if wish.level in LEVELS]
        self._apply()
        return before != (self._level, self._of_connections)

    def expire(self) -> None:
        """End the wishes whose time is over; nothing else has to be asked for it."""
        self._apply()

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._of_connections:
            # The loggers have looked at the level.
            return True
        return record.levelno >= self._of_connections.get(_connection_of(record), self._level)

    def _apply(self) -> None:
        now = self._monotonic()
        self._wishes = [(until, wish) for until, wish in self._wishes if until > now]
        level, of_connections = _number(self._own), {}
        for _, wish in self._wishes:
            if wish.connection_id:
                of_connections[wish.connection_id] = _number(wish.level)
            else:
                level = _number(wish.level)
        self._level, self._of_connections = level, of_connections
        # What no line may have is not made at all.
        lowest = min([level, *of_connections.values()])
        root = logging.getLogger()
        if root.level != lowest:
            root.setLevel(lowest)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _connection_of(record: logging.LogRecord) -> int:
    """Return the connection that a line concerns, by itself or by what is bound where it is logged; 0 for none."""
    entry = record.msg if isinstance(record.msg, dict) else {}
    connection = entry.get("connection") or structlog.contextvars.get_contextvars().get("connection")
    try:
        # `7` or `7:2`.
        return int(str(connection).partition(":")[0])
    except ValueError:
        return 0
