"""The gauges that every process has: what its operating system, its release and its threads tell."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from shared import ongoing
from shared.process import metric_kinds, metrics, release

_PAGE_BYTES = resource.getpagesize()


class PoolUsage(Protocol):
    """A pool's connections to Postgres, and the threads that wait for one: `database.PoolUsage`."""

    @property
    def idle(self) -> int: ...

    @property
    def in_use(self) -> int: ...

    @property
    def waiting(self) -> int: ...


def read_database(usage: Callable[[], PoolUsage], *, most: int) -> None:
    """Say where the gauges of the pool of connections read.

    Args:
        usage: Waits for nothing.
        most: The most connections that the pool may have.
    """

    def connections() -> dict[tuple[str, ...], float]:
        now = usage()
        return {("idle",): now.idle, ("in-use",): now.in_use}

    metrics.DATABASE_CONNECTIONS.read(connections)
    metrics.DATABASE_CONNECTIONS_MOST.read(lambda: most)
    metrics.DATABASE_WAITING.read(lambda: usage().waiting)


def read() -> None:
    """Say where these gauges read."""
    began = time.time()
    metrics.BUILD_INFO.read(lambda: {(release.VERSION, platform.python_version()): 1})
    metrics.OLDEST_WORK.read(_oldest)
    metrics.METRICS_FAILED.read(metric_kinds.failures)
    metrics.PROCESS_CPU.read(time.process_time)
    metrics.PROCESS_MEMORY.read(_memory)
    metrics.PROCESS_FILES.read(lambda: len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - counted, not used as paths
    metrics.PROCESS_FILES_MOST.read(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    metrics.PROCESS_START.read(lambda: began)


def _oldest() -> float:
    oldest = ongoing.oldest()
    return oldest.seconds if oldest is not None else 0.0


def _memory() -> float:
    # The second number is that of the pages in memory.
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
