"""What many pages show at once is found out once for all of them, and only while one of them is open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shared import errors

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The newest sample."""

    #: Grows with every sample, over restarts of the process, too: the time in ms.
    number: int = 0
    #: Part of the page → its HTML.
    parts: Mapping[str, str] = field(default_factory=dict)
    #: Part → the number of the sample in which it last changed.
    changed: Mapping[str, int] = field(default_factory=dict)
    #: The monotonic clock when it was taken.
    at: float = 0.0
    #: Why there is no newer one; empty if none is due.
    problem: str = ""

    @property
    def age_ms(self) -> int:
        """How old it is."""
        return round((time.monotonic() - self.at) * 1000)

    def followed_by(self, parts: Mapping[str, str]) -> Published:
        """Return the next one."""
        number = max(self.number + 1, int(time.time() * 1000))
        changed = {name: self.changed[name] if self.parts.get(name) == html else number for name, html in parts.items()}
        return Published(number=number, parts=parts, changed=changed, at=time.monotonic())


class Sampled:
    """A sample that is taken when it is asked for and the last one is old. Thread-safe.

    Args:
        take: Returns the parts of the page as HTML. It may raise a PipelineError: what was is shown on, as of then.
        seconds: A sample is taken this often at most.
    """

    def __init__(self, take: Callable[[], Mapping[str, str]], *, seconds: float) -> None:
        self._take = take
        # A little less, so that one who asks at this interval has a new one each time.
        self._seconds = seconds * 0.9
        self._lock = threading.Lock()
        self._tried_at = float("-inf")
        self.newest = Published()

    def refreshed(self) -> Published:
        """Return the newest sample, after taking one if it is time. Of many that ask at once the first takes it."""
        with self._lock:
            if time.monotonic() - self._tried_at >= self._seconds:
                self._tried_at = time.monotonic()
                self.newest = self._next()
            return self.newest

    def _next(self) -> Published:
        try:
            return self.newest.followed_by(self._take())
        except errors.PipelineError as exc:
            problem = str(exc)
        except Exception:  # noqa: BLE001 - the next one may succeed
            _log.exception("sample failed")
            problem = "the sample failed: the error is in the log of the process web"
        was = self.newest
        return Published(number=was.number, parts=was.parts, changed=was.changed, at=was.at, problem=problem)
