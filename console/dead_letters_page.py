"""The pages of dead letters: groups by error, one letter, and a frozen set that is retried or discarded together."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.responses import Response

from console import acting, queries
from console.pages import Page, Visit
from shared import errors
from shared.broker.letter_store import Retried
from shared.operator import dead_letter_actions, dead_letter_sets
from shared.operator.dead_letter_actions import Filter

PATH = "/dead-letters"
_ONE = "/dead-letters/{letter_id}"
_SETS = "/dead-letter-sets"
_SET = "/dead-letter-sets/{set_id:id}"
_LIMIT = 50
_FILTERS = ("error", "queue", "group")
#: Groups on one page: each letter may have an error of its own.
_GROUPS = 50
#: Sets that the list shows.
_RECENT = 5


def show_all(visit: Visit) -> Response:
    """List the groups, and the newest letters."""
    given = {name: visit.parameter(name) for name in _FILTERS}
    before = visit.parameter("before") or None
    wanted = _filter(given)
    with acting.redis_client(visit) as client:
        overview = dead_letter_actions.overview(client, wanted)
        letters = dead_letter_actions.page(client, wanted, limit=_LIMIT + 1, before=before)
    is_more = len(letters) > _LIMIT
    letters = letters[:_LIMIT]
    groups = [
        (group, queries.url(PATH, {**given, "error": group.kind, "queue": group.queue})) for group in overview.groups
    ]
    return visit.render(
        "dead-letters.html",
        overview=overview,
        groups=groups[:_GROUPS],
        groups_in_all=len(groups),
        sets=[(frozen, f"{_SETS}/{frozen.set_id}") for frozen in dead_letter_sets.recent(visit.console.db, _RECENT)],
        letters=letters,
        given=given,
        matching=sum(group.count for group, _ in groups),
        is_filtered=any(given.values()),
        # A set has none that came after what the page has shown.
        until=letters[0].id if letters and before is None else "",
        older=queries.url(PATH, {**given, "before": letters[-1].id}) if is_more else "",
    )


def show(visit: Visit) -> Response:
    """Show one letter."""
    with acting.redis_client(visit) as client:
        try:
            opened = dead_letter_actions.get(client, visit.request.path_params["letter_id"])
        except errors.InvalidRequest as exc:
            raise HTTPException(404, str(exc)) from None
    message = json.dumps(opened.message, indent=2, ensure_ascii=False) if opened.message is not None else opened.body
    return visit.render(
        "dead-letter.html",
        letter=opened.letter,
        base=f"{PATH}/{opened.letter.id}",
        message=message.split("\n")[:400],
        traceback=opened.traceback.split("\n")[:400],
    )


def retry(visit: Visit) -> Response:
    """Enqueue one letter's message again."""
    name = visit.request.path_params["letter_id"]
    with acting.redis_client(visit) as client:
        done = dead_letter_actions.retry(visit.console.db, client, acting.actor(visit), name)
    return visit.see(PATH, "It is gone already." if done is Retried.GONE else "Its message is enqueued again.")


def discard(visit: Visit) -> Response:
    """Delete one letter."""
    name = visit.request.path_params["letter_id"]
    with acting.redis_client(visit) as client:
        done = dead_letter_actions.discard(visit.console.db, client, acting.actor(visit), name)
    return visit.see(PATH, "It is discarded." if done else "It is gone already.")


def freeze(visit: Visit) -> Response:
    """Fix the letters that match now, and show the set. Nothing is done with them yet."""
    given = {name: visit.form.get(name, "") for name in _FILTERS}
    wanted = _filter(given, until=visit.form.get("until") or None)
    reason = visit.form.get("reason", "").strip()
    with acting.redis_client(visit) as client:
        frozen = dead_letter_sets.freeze(visit.console.db, client, acting.actor(visit), wanted, reason)
    return visit.see(f"{_SETS}/{frozen.set_id}")


def show_set(visit: Visit) -> Response:
    """Show a frozen set, and how far it has come."""
    try:
        frozen = dead_letter_sets.get(visit.console.db, _set_id(visit))
    except errors.InvalidRequest as exc:
        raise HTTPException(404, str(exc)) from None
    groups = sorted(frozen.groups.items(), key=lambda group: -group[1])
    return visit.render(
        "dead-letter-set.html",
        frozen=frozen,
        groups=groups[:_GROUPS],
        more=groups[_GROUPS:],
        base=f"{_SETS}/{frozen.set_id}",
    )


def order(visit: Visit) -> Response:
    """Let the set be retried or discarded, once."""
    what = visit.form.get("order", "")
    if what not in ("retry", "discard"):
        raise errors.InvalidRequest("a set is retried or discarded")
    frozen = dead_letter_sets.order(
        visit.console.db, acting.actor(visit), _set_id(visit), "retry" if what == "retry" else "discard"
    )
    return visit.see(f"{_SETS}/{frozen.set_id}", "It is ordered. The leading scheduler works on it.")


def _set_id(visit: Visit) -> int:
    set_id: int = visit.request.path_params["set_id"]
    if set_id >= 2**31:
        raise HTTPException(404, f"There is no set {set_id}.")
    return set_id


def _filter(given: dict[str, str], until: str | None = None) -> Filter:
    return Filter(**{name: value or None for name, value in given.items()}, until=until)


PAGES = (
    Page(path=PATH, title="Dead letters", navigation="Dead letters", show=show_all),
    Page(path=f"{PATH}/freeze", title="Freeze", act=freeze),
    Page(path=_ONE, title="Dead letter", show=show),
    Page(path=f"{_ONE}/retry", title="Retry", act=retry, action="dlq retry", subject="dead letter {letter_id}"),
    Page(path=f"{_ONE}/discard", title="Discard", act=discard, action="dlq discard", subject="dead letter {letter_id}"),
    Page(path=_SET, title="Set of dead letters", show=show_set),
    Page(path=f"{_SET}/order", title="Order", act=order, action="dlq order", subject="dead letter set {set_id}"),
)
