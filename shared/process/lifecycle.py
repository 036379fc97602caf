"""Start and stop of the processes with threads: settings, logs, signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from shared import errors
from shared.process import arenas, health, logs, settings

_S = TypeVar("_S", bound=settings.Base)
_T = TypeVar("_T")

_log = structlog.stdlib.get_logger(__name__)


def main(name: str, kind: type[_S], run: Callable[[_S, threading.Event], None]) -> int:
    """Run a process until SIGTERM or SIGINT; return its exit status, 2 if its settings are wrong.

    Args:
        name: The process's name in its log.
        kind: The class of its settings.
        run: Works until the event is set.
    """
    try:
        config = settings.load(kind)
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"{name}: {exc}\n")
        return 2
    logs.configure(config, name)
    arenas.limit()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(config, stop)
    return 0


def wait_for(read: Callable[[], _T], stop: threading.Event, each_second: Callable[[], object]) -> _T | None:
    """Return what a server tells, once it tells it; None if the process is to stop before."""
    while True:
        each_second()
        try:
            return read()
        except errors.TransientError as exc:
            _log.warning("start delayed, will retry", reason=str(exc))
        if stop.wait(health.TOUCH_SECONDS):
            return None


def wait(stop: threading.Event, each_second: Callable[[], object] = lambda: None) -> None:
    """Wait in the main thread until the event is set.

    It polls, because a signal that another thread receives (after SIGSTOP and SIGCONT) does not wake this one.
    """
    while not stop.wait(health.TOUCH_SECONDS):
        each_second()
