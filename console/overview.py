"""The overview: what the pipeline does now, kept current for all who look by one sample a second."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jinja2
from markupsafe import Markup
from starlette.responses import Response

from console.pages import Page, Visit
from console.sampling import Sampled
from shared import errors, queues
from shared.call.states import Fault, Outcome
from shared.operator import breakers, overview_sample
from shared.operator.breakers import OpenBreaker
from shared.operator.call_series import STEP_SECONDS, CallSeries, Point
from shared.operator.overview_sample import Sample
from shared.operator.processes import LoggedError, Process, Processes
from shared.process import settings
from shared.storage import database

TOPIC = "overview"
PARTS = ("figures", "series", "outcomes", "faults", "connections", "queues", "processes", "errors")
#: Errors that are shown, the newest first: so many in all, and of each process.
_ERRORS = 100
_ERRORS_OF_EACH = 5
_NOT_SERVED = (Outcome.REFUSED, Outcome.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the templates show of a sample."""

    sample: Sample
    #: For the charts: JSON, lists of equal lengths.
    series: str
    breakers: list[OpenBreaker]
    #: None while Redis is away.
    processes: list[Process] | None
    errors: list[LoggedError] | None

    @property
    def live(self) -> int | None:
        """Calls that have not ended."""
        return None if self.sample.calls is None else sum(self.sample.calls.live.values())

    @property
    def not_served(self) -> int | None:
        """Calls of the last minutes that were refused or failed."""
        calls = self.sample.calls
        return None if calls is None else sum(calls.outcomes.get(each, 0) for each in _NOT_SERVED)

    @property
    def outcomes(self) -> list[tuple[str, int, int]]:
        """Outcome, calls and their share in per cent; the good one first, then by name: no line changes its place."""
        found = {} if self.sample.calls is None else self.sample.calls.outcomes
        whole = sum(found.values())
        order = sorted(found, key=lambda name: (name != Outcome.COMPLETED, name))
        return [(name, found[name], round(100 * found[name] / whole)) for name in order]

    @property
    def faults(self) -> list[tuple[str, int]]:
        """Whose fault it was and calls that did not end well; ours first, then by name."""
        found = {} if self.sample.calls is None else self.sample.calls.faults
        return sorted(found.items(), key=lambda item: (item[0] != Fault.US, item[0]))

    @property
    def states(self) -> list[tuple[str, int]]:
        """State of the event socket and number of connections; those that are up first, then by name."""
        found = {} if self.sample.calls is None else self.sample.calls.connections
        return sorted(found.items(), key=lambda item: (item[0] != "connected", item[0]))

    @property
    def connections(self) -> int | None:
        """How many there are."""
        return None if self.sample.calls is None else sum(self.sample.calls.connections.values())

    @property
    def suspended(self) -> str:
        """What operators have taken out of service; empty for nothing."""
        found = {} if self.sample.calls is None else self.sample.calls.connections
        return ", ".join(f"{found[name]} {name}" for name in ("parked", "drained") if found.get(name))

    @property
    def leader(self) -> str:
        """The leading scheduler's name in its lease; empty if none leads."""
        return (self.sample.calls.leader or "" if self.sample.calls is not None else "").rpartition("/")[0]

    @property
    def waiting(self) -> int:
        """Messages that wait in all queues."""
        return sum(queue.waiting for queue in self._queues)

    @property
    def oldest_seconds(self) -> float | None:
        """How long the message has waited that has waited longest; None without one."""
        return max((queue.oldest_seconds for queue in self._queues if queue.oldest_seconds is not None), default=None)

    @property
    def _queues(self) -> tuple[overview_sample.Queue, ...]:
        return () if self.sample.traffic is None else self.sample.traffic.queues


class Overview:
    """Takes the samples of all overviews."""

    def __init__(self, config: settings.Web, db: database.Database) -> None:
        url = config.redis_url.get_secret_value()
        self._db = db
        self._redis = queues.client(url)
        self._processes = Processes(url)
        self._series = CallSeries()

    def take(self) -> View:
        """Ask Postgres and Redis once. Either may be away: then its parts say so."""
        sample = overview_sample.take(self._db, self._redis)
        points: tuple[Point, ...] = ()
        open_breakers: list[OpenBreaker] = []
        if sample.calls is not None:
            points, open_breakers = self._series.read(self._db), breakers.open_breakers(self._db)
        running, failed = None, None
        if sample.traffic is not None:
            # Those that are there first: a page shows so many.
            running = sorted(self._processes.all(), key=lambda each: not each.is_there)
            failed = self._processes.errors(limit=_ERRORS, each=_ERRORS_OF_EACH)
        return View(sample=sample, series=_series(points), breakers=open_breakers, processes=running, errors=failed)


def _series(points: tuple[Point, ...]) -> str:
    """Return the points as the charts read them; the last step, which is not over, has no rate yet."""
    milliseconds = [
        [None if value is None else round(value * 1000) for value in values]
        for values in ([p.p50 for p in points], [p.p95 for p in points], [p.p99 for p in points])
    ]
    over = points[:-1]
    rates = [
        [*(round(number / STEP_SECONDS, 2) for number in numbers), *([None] if points else [])]
        for numbers in ([p.received for p in over], [p.not_served for p in over])
    ]
    return json.dumps([[p.at for p in points], *milliseconds, *rates], separators=(",", ":"))


def sampled(config: settings.Web, db: database.Database, templates: jinja2.Environment) -> Sampled:
    """Return the one sampler of all overviews."""
    overview = Overview(config, db)
    module = templates.get_template("overview-parts.html").module
    macros: dict[str, Callable[[View], Markup]] = {name: getattr(module, name) for name in PARTS}
    return Sampled(functools.partial(_parts, overview, macros), seconds=config.console_sample_seconds)


def _parts(overview: Overview, macros: Mapping[str, Callable[[View], Markup]]) -> Mapping[str, str]:
    view = overview.take()
    if view.sample.calls is None and view.sample.traffic is None:
        raise errors.DatabaseUnavailable("; ".join(view.sample.missing))
    return {name: macro(view) for name, macro in macros.items()}


def show(visit: Visit) -> Response:
    """Show the newest sample; the page's stream brings the next ones."""
    newest = visit.console.topics[TOPIC].refreshed()
    if not newest.parts:
        raise errors.DatabaseUnavailable(newest.problem)
    return visit.render(
        "overview.html",
        age_ms=newest.age_ms,
        parts=newest.parts,
        stream=f"/live?topic={TOPIC}&since={newest.number}",
    )


PAGE = Page(path="/", title="Overview", navigation="Overview", show=show)
