"""What the threads of this process do: since when and, of a wait for a server, for how long at most.

The process reports the oldest (`health`); a metric or a readiness probe would ask here, too. A wait that did not come
back in three times its bound is a thread that is lost for good, and only then is the process not alive. A server that
stands still makes waits end late, and never that late.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from types import TracebackType

#: In times its bound: when a wait counts as lost.
_LOST = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Oldest:
    """What has been under way for longest."""

    what: str
    seconds: float


class task:
    """A context in which the thread does something: `with ongoing.task("Postgres", bound_seconds=3): …`.

    Args:
        what: A noun.
        bound_seconds: Of a wait for a server; infinite for anything else.
    """

    __slots__ = ("began", "bound_seconds", "what")

    def __init__(self, what: str, *, bound_seconds: float = math.inf) -> None:
        self.what = what
        self.bound_seconds = bound_seconds

    def __enter__(self) -> None:
        self.began = time.monotonic()
        _TASKS[id(self)] = self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del _TASKS[id(self)]


_TASKS: dict[int, task] = {}


def oldest() -> Oldest | None:
    """Return what has been under way for longest; None when nothing is."""
    # A copy, made at once: other threads go on.
    found = min(list(_TASKS.values()), key=lambda each: each.began, default=None)
    return None if found is None else Oldest(what=found.what, seconds=time.monotonic() - found.began)


def lost() -> Oldest | None:
    """Return a wait that did not come back in three times its bound; None when there is none."""
    now = time.monotonic()
    for each in list(_TASKS.values()):
        if now - each.began > _LOST * each.bound_seconds:
            return Oldest(what=each.what, seconds=now - each.began)
    return None
