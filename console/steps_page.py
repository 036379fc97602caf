"""The page Steps: what the newest calls have waited for, and how long."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from console import calls_page, numbers, queries
from console.pages import Page, Visit
from shared.operator import step_times

PATH = "/steps"
_USUAL = timedelta(minutes=10)
#: A reason of an Asterisk may be part of a step's name: there can be many.
_MOST_ROWS = 50


def show(visit: Visit) -> Response:
    """List the steps, the slowest first. The calls' timelines are read for it, at each request."""
    found = step_times.read(visit.console.db, queries.within(visit, "since", _USUAL))
    return visit.render(
        "steps.html",
        steps=[
            (each, numbers.masked_in(each.what), f"{calls_page.PATH}/{each.example}") for each in found[:_MOST_ROWS]
        ],
        has_more=len(found) > _MOST_ROWS,
        most_calls=step_times.MOST_CALLS,
        since=visit.parameter("since"),
    )


PAGE = Page(path=PATH, title="Steps", show=show)
