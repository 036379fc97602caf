"""The page Audit: who has done what, by which tool, and what came of it."""

from __future__ import annotations

from starlette.responses import Response

from console import queries
from console.pages import Page, Visit
from shared.operator import audit

PATH = "/audit"
_LIMIT = 100


def show(visit: Visit) -> Response:
    """List actions, the newest first."""
    organization = queries.number(visit, "organization")
    given = {name: visit.parameter(name) for name in ("subject", "action", "who")}
    rows = audit.page(
        visit.console.db,
        before=queries.number(visit, "before"),
        limit=_LIMIT,
        organization=organization,
        **{name: value or None for name, value in given.items()},
    )
    values = {**given, "organization": organization}
    return visit.render(
        "audit.html",
        rows=rows,
        given=given,
        organization="" if organization is None else organization,
        is_filtered=any(values.values()) or bool(visit.parameter("before")),
        older=queries.url(PATH, {**values, "before": rows[-1].id}) if len(rows) == _LIMIT else "",
    )


PAGE = Page(path=PATH, title="Audit", navigation="Audit", show=show)
