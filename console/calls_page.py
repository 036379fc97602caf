"""The page Calls: live and past calls, by whatever an operator knows of them. Each filter is a parameter of the URL."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from starlette.responses import RedirectResponse, Response

from console import numbers, queries
from console.pages import Page, Visit
from shared import errors
from shared.call.states import Fault, Outcome
from shared.operator import call_queries
from shared.operator.call_queries import Cursor, Filter, ListedCall

PATH = "/calls"
#: Calls on one page.
_LIMIT = 50
#: The parameters of the URL that are filters, in the order of the form.
FILTERS = ("which", "number", "channel", "run", "organization", "connection", "outcome", "fault", "since", "until")


class Which(StrEnum):
    """Calls that are up, or those that are over."""

    LIVE = "live"
    ENDED = "ended"


def show(visit: Visit) -> Response:
    """List calls; or, with `call`, go to the one that is meant."""
    name = visit.parameter("call")
    if name:
        return _found(visit, name)
    given = {name: visit.parameter(name) for name in FILTERS}
    keyed = _keyed(visit)
    if given["number"] and not keyed.is_keyed(given["number"]):
        # An address that was written by its reader: from here on it tells no number.
        return visit.see(queries.url(PATH, {**given, "number": keyed.keyed(given["number"])}))
    number = keyed.number(given["number"]) if given["number"] else ""
    wanted = _filter(visit, number)
    after = visit.parameter("after")
    page = call_queries.list_calls(visit.console.db, wanted, after=Cursor.parse(after) if after else None, limit=_LIMIT)
    older = queries.url(PATH, {**given, "after": page.next}) if page.next else ""
    return visit.render(
        "calls.html",
        calls=[_shown(call) for call in page.calls],
        given=given,
        number=numbers.masked(number),
        is_filtered=any(given.values()),
        outcomes=list(Outcome),
        faults=list(Fault),
        older=older,
        newest=queries.url(PATH, given) if after else "",
        is_whole=visit.organization_id is None,
    )


def search(visit: Visit) -> Response:
    """Go to the list that the form asks for. It is sent, and not in an address: it may have a number."""
    given = {name: visit.form.get(name, "").strip() for name in ("call", *FILTERS)}
    given["number"] = _keyed(visit).keyed(given["number"] or visit.form.get("kept", ""))
    return visit.see(queries.url(PATH, given))


def _keyed(visit: Visit) -> numbers.Keyed:
    return numbers.Keyed(visit.console.config.secret_keys[0])


def _filter(visit: Visit, number: str) -> Filter:
    now = datetime.now(UTC)
    which = queries.word(visit, "which", Which)
    organization = queries.number(visit, "organization")
    return Filter(
        is_live=None if which is None else which is Which.LIVE,
        number=number or None,
        channel=visit.parameter("channel") or None,
        workflow_run_id=queries.number(visit, "run"),
        organization_id=visit.organization_id if visit.organization_id is not None else organization,
        connection_id=queries.number(visit, "connection"),
        outcome=queries.word(visit, "outcome", Outcome),
        fault=queries.word(visit, "fault", Fault),
        since=queries.moment(visit, "since", now),
        until=queries.moment(visit, "until", now),
    )


def _found(visit: Visit, name: str) -> Response:
    """Go to the call that a name means. A user of one organization is told the same of another's call as of none."""
    try:
        call_id = call_queries.find(visit.console.db, name, visit.organization_id)
    except errors.PermanentError as exc:
        raise errors.InvalidRequest(str(exc).split(": arictl", 1)[0]) from None
    return RedirectResponse(f"{PATH}/{call_id}", status_code=303)


def _shown(call: ListedCall) -> dict[str, object]:
    return {
        "call": call,
        "url": f"{PATH}/{call.call_id}",
        "short": str(call.call_id)[:8],
        "caller": numbers.masked(call.caller_number),
        "called": numbers.masked(call.called_number),
        "reason": numbers.masked_in(call.reason or ""),
    }


PAGE = Page(
    path=PATH, title="Calls", navigation="Calls", show=show, act=search, for_organizations=True, viewers_act=True
)
