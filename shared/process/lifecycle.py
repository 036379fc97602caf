"""Start and stop of the processes with threads: settings, logs, signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog

from shared import errors
from shared.process import health, logs, memory, metrics_server, readiness, registry, settings, traces
from shared.process.metric_kinds import Process

_S = TypeVar("_S", bound=settings.Base)
_T = TypeVar("_T")

_log = structlog.stdlib.get_logger(__name__)


def main(
    name: str,
    kind: type[_S],
    run: Callable[[_S, threading.Event], None],
    checks: Callable[[_S], Mapping[str, readiness.Check]],
) -> int:
    """Run a process until SIGTERM or SIGINT; return its exit status: 1 if it has failed, 2 if its settings are wrong.

    Args:
        name: The process's name in its log and among the processes that export metrics.
        kind: The class of its settings.
        run: Works until the event is set.
        checks: Returns how the servers that it depends on are asked, for `/readyz`.
    """
    try:
        config = settings.load(kind)
        logs.configure(config, name)
        logs.catch_all()
        memory.limit_arenas()
        memory.freeze()
        metrics_server.start(config, Process(name))
        metrics_server.depends_on(checks(config))
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"{name}: {exc}\n")
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with registry.running(config, name), traces.running(config, name):
            run(config, stop)
    except errors.InvalidSettings as exc:
        sys.stderr.write(f"{name}: {exc}\n")
        return 2
    except Exception:  # noqa: BLE001 - logged by the registry; Python's own text would have secrets and numbers
        return 1
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
