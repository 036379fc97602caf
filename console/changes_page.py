"""The page Changes: what operators did, which configurations changed, which processes have started or gone."""

from __future__ import annotations

import contextlib
from datetime import timedelta

from starlette.responses import Response

from console import queries
from console.pages import Page, Visit
from shared import errors
from shared.operator import changes
from shared.operator.processes import Process, Processes

PATH = "/changes"
_USUAL = timedelta(days=1)
#: A page has a bound: `arictl changes` tells all.
_MOST_ROWS = 300


def show(visit: Visit) -> Response:
    """List what has changed, the newest first. Without Redis the processes are left out, and the page says so."""
    within = queries.within(visit, "since", _USUAL)
    processes, missing = _processes(visit)
    found = changes.read(visit.console.db, processes, within)
    return visit.render(
        "changes.html",
        changes=found[:_MOST_ROWS],
        has_more=len(found) > _MOST_ROWS,
        missing=missing,
        since=visit.parameter("since"),
    )


def _processes(visit: Visit) -> tuple[list[Process], str]:
    """Return the processes of the registry, and why they are not known."""
    with contextlib.closing(Processes(visit.console.config.redis_url.get_secret_value())) as registry:
        try:
            return registry.all(), ""
        except errors.QueueUnavailable as exc:
            return [], str(exc)


PAGE = Page(path=PATH, title="Changes", navigation="Changes", show=show)
