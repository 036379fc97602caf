"""Processor time of the processes a measurement starts, by name, with all that they started themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


class Usage:
    """Adds up what processes have used.

    A name stands for the processes that were started inside its `with` block, and for their children: what the kernel
    counts for a child that has ended is counted too, once its parent has taken note of it.
    """

    def __init__(self) -> None:
        self._roots: dict[str, set[psutil.Process]] = {}

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Gives a name to what the block starts and leaves running."""
        before = set(psutil.Process().children())
        yield
        self._roots[name] = set(psutil.Process().children()) - before

    def forget(self, *names: str) -> None:
        """What these stand for has ended."""
        for name in names:
            del self._roots[name]

    def seconds(self) -> dict[str, float]:
        """Name → processor seconds so far, of user and system together; ourselves as `callers`."""
        own = psutil.Process().cpu_times()
        return {name: sum(map(_of_tree, roots)) for name, roots in self._roots.items()} | {
            "callers": float(own.user + own.system)
        }


def _of_tree(root: psutil.Process) -> float:
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
