"""The page of one call: its verdict, ladder, waterfall and rows. Numbers are masked until an operator asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.responses import Response

from console import acting, calls_page, drawing, numbers
from console.pages import Page, Visit
from shared import errors, redaction
from shared.operator import audit, call_actions, ladder, stories, verdict, waterfall
from shared.operator.audit import Action
from shared.operator.stories import CallStory

PATH = "/calls/{call_id:uuid}"


def show(visit: Visit) -> Response:
    """Show the call, numbers masked."""
    return _render(visit, _story(visit), is_unmasked=False)


def unmask(visit: Visit) -> Response:
    """Show the call with its numbers, once; who has seen them is in the audit."""
    story = _story(visit)
    with visit.console.db.connection() as connection:
        audit.record(connection, acting.actor(visit), _action("call unmask", story))
    return _render(visit, story, is_unmasked=True)


def export(visit: Visit) -> Response:
    """Return all that is known of the call as JSON, numbers masked."""
    story = _story(visit)
    found = verdict.of(story)
    value = {
        "verdict": {"rule": found.rule, "sentence": found.sentence, "tone": found.tone, "audio": found.audio},
        "history": asdict(story.history),
        "connection_notes": [asdict(note) for note in story.notes],
    }
    shown = _masked(json.loads(json.dumps(value, default=str)), _masking(story, is_unmasked=False))
    name = f'attachment; filename="call-{story.call.call_id}.json"'
    body = json.dumps(shown, indent=2, ensure_ascii=False)
    return Response(body, media_type="application/json", headers={"content-disposition": name})


def _masked(value: object, text: Callable[[str], str], key: str = "") -> object:
    """Return a JSON value with each of its texts masked; its keys stay."""
    if isinstance(value, dict):
        return {name: _masked(each, text, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_masked(each, text, key) for each in value]
    if not isinstance(value, str) or key in _IDS:
        return value
    return numbers.masked(value) if redaction.NUMBER_KEY.fullmatch(key) else text(value)


#: Keys of what names and dates a call.
_IDS = frozenset({"call_id", "at", "received_at", "connected_at", "ending_at", "ended_at", "read_at", "begun_at",
                  "outcome_at", "entered_stamp", "media_id", "bridge_id", "who"})  # fmt: skip


def hang_up(visit: Visit) -> Response:
    """End the call: its legs are hung up, and its run is ended."""
    call_id = _story(visit).call.call_id
    with acting.queue(visit) as commands:
        recorded = call_actions.hang_up(
            visit.console.db, lambda to: acting.writer(visit, to, commands), acting.actor(visit), call_id
        )
    said = "The call is being ended." if recorded.applied else f"The call is already {recorded.call.state}."
    return visit.see(visit.request.url.path.removesuffix("/hang-up"), said)


def _story(visit: Visit) -> CallStory:
    """Return the call's story. One of another organization does not exist for its users."""
    call_id: UUID = visit.request.path_params["call_id"]
    try:
        story = stories.get(visit.console.db, call_id)
    except errors.PermanentError:
        raise HTTPException(404, f"There is no call {call_id}.") from None
    if visit.organization_id not in (None, story.call.organization_id):
        raise HTTPException(404, f"There is no call {call_id}.")
    return story


def _action(name: str, story: CallStory) -> Action:
    return Action(name=name, subject=f"call {story.call.call_id}", organization_id=story.call.organization_id)


def _render(visit: Visit, story: CallStory, *, is_unmasked: bool) -> Response:
    call, found = story.call, verdict.of(story)
    text = _masking(story, is_unmasked=is_unmasked)
    number = str if is_unmasked else numbers.masked
    rungs = ladder.rungs(story)[:_MOST]
    drawn = drawing.drawn_ladder(rungs, begun_at=story.begun_at, evidence=found.evidence, text=text)
    falls = [
        drawing.drawn_waterfall(part[:_MOST], begun_at=story.begun_at, text=text) for part in waterfall.parts(story)
    ]
    evidence = {id(row) for row in found.evidence}
    return visit.render(
        "call.html",
        call=call,
        history=story.history,
        setup_seconds=story.setup_seconds,
        short=str(call.call_id)[:8],
        base=f"{calls_page.PATH}/{call.call_id}",
        trace_id=call.call_id.hex,
        trace_url=visit.console.config.console_trace_url.replace("{trace_id}", call.call_id.hex),
        run_url=_run_url(visit.console.config.console_run_url, call.workflow_run_id, story.history.workflow_id),
        verdict=found,
        sentence=text(found.sentence),
        noted=[(row, text(_line(row.detail))) for row in story.notes if id(row) in evidence],
        caller=number(call.caller_number),
        called=number(call.called_number),
        reason=text(call.reason or ""),
        channels=[text(name) for name in (story.history.channel_id, *story.history.replacements)],
        is_unmasked=is_unmasked,
        rungs=drawn,
        drawing=drawing,
        falls=falls,
        rows=[(row, text(_line(row.detail)), text(row.name), id(row) in evidence) for row in story.rows[:_MOST]],
        rows_in_all=len(story.rows),
        dead_letters=[(row, text(row.detail)) for row in story.history.dead_letters[:_MOST_LETTERS]],
    )


def _run_url(template: str, run_id: int | None, workflow_id: int | None) -> str:
    """Return where the platform shows the run; empty if there is none, or it is not known where."""
    if run_id is None or (workflow_id is None and "{workflow_id}" in template):
        return ""
    return template.replace("{run_id}", str(run_id)).replace("{workflow_id}", str(workflow_id))


def _line(text: str) -> str:
    """Return the beginning of a text's first line: more of it than a page shows, and less than there may be."""
    return text.partition("\n")[0][:_LONGEST]


def _masking(story: CallStory, *, is_unmasked: bool) -> Callable[[str], str]:
    """Return how a text of the call is shown: ids of ours shortened, numbers masked."""
    known = [name for name in (story.call.caller_number, story.call.called_number) if len(name) >= _SHORTEST]
    own = story.call.call_id.hex

    def masked(text: str) -> str:
        text = text.replace(own, "…")
        if is_unmasked:
            return text
        for name in known:
            text = text.replace(name, numbers.masked(name))
        return numbers.masked_in(text)

    return masked


#: Lines of a page's ladder, bars of a part of its waterfall, and rows: a PBX may cause thousands.
_MOST = 500
_LONGEST = 1000
_MOST_LETTERS = 20
#: A shorter number may be part of any other text.
_SHORTEST = 5


_SUBJECT = "call {call_id}"
PAGES = (
    Page(path=PATH, title="Call", show=show, for_organizations=True),
    Page(path=f"{PATH}/export.json", title="Call as JSON", show=export, for_organizations=True),
    Page(
        path=f"{PATH}/hang-up", title="Hang up", act=hang_up, for_organizations=True, action="hangup", subject=_SUBJECT
    ),
    Page(
        path=f"{PATH}/unmask",
        title="Call with its numbers",
        act=unmask,
        for_organizations=True,
        action="call unmask",
        subject=_SUBJECT,
    ),
)
