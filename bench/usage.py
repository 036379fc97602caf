"""Processor time of the processes that a benchmark starts, by name, descendants included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


class Usage:
    """Sums the processor time of processes.

    A name stands for the processes that were started inside its `with` block and for their children. A child that has
    ended counts as soon as its parent has waited for it.
    """

    def __init__(self) -> None:
        self._roots: dict[str, set[psutil.Process]] = {}

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Name the processes that the block starts and leaves running."""
        before = set(psutil.Process().children())
        yield
        self._roots[name] = set(psutil.Process().children()) - before

    def forget(self, *names: str) -> None:
        """Remove names whose processes have ended."""
        for name in names:
            del self._roots[name]

    def seconds(self) -> dict[str, float]:
        """Return name → processor seconds so far, user and system; this process is `callers`."""
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
