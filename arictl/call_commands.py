"""`arictl trace`, `call`, `hangup`: show the timeline of a call, place one, end one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer

from arictl import operators, options, output, tools
from shared import outbound_calls, redaction
from shared.call import call_requests
from shared.call.call_requests import CallRequest
from shared.call.states import State
from shared.operator import call_actions, call_queries, stories, verdict
from shared.operator.call_queries import CallHistory, ListedCall, TimelineRow
from shared.operator.stories import CallStory
from shared.platform import dograh
from shared.platform.ports import NO_PLATFORM_SLOTS, PlatformSlots
from shared.process import settings
from shared.storage import connections, id_prefixes, quotas

_BAR = 36
_COLOURS = {"transition": "bold cyan", "request": "green", "refusal": "bold red", "dead-letter": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCall:
    """A call, and what is to be said of it."""

    #: In a sentence.
    verdict: str
    history: CallHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedCall:
    """A call that was requested."""

    call_id: UUID


def trace(
    name: Annotated[
        str, typer.Argument(metavar="CALL", help="A call id or its first 4 or more digits, a run id or a channel id.")
    ],
    as_json: output.AsJson = False,
) -> None:
    """Show the timeline of a call as a waterfall."""
    with tools.opened() as (_, db):
        story = stories.get(db, call_queries.find(db, name))
    traced = TracedCall(verdict=verdict.of(story).sentence, history=story.history)
    output.answer(traced, lambda: _show_story(story), as_json=as_json)


def _show_story(story: CallStory) -> None:
    history, call, rows = story.history, story.call, story.rows
    tools.out.print(_heading(history))
    tools.out.print(f"{tools.plain(verdict.of(story).sentence)}\n")
    if not rows:
        return
    start = rows[0].at
    moments = [((row.at - start).total_seconds() * 1000, row.took_ms or 0.0) for row in rows]
    # The bars span the set-up, or the whole call if it was never connected.
    span = max((at + took for at, took in moments if at + took <= _span_of(call, start)), default=0.0) or 1.0
    # Our channel and bridge ids contain the call id, which the heading shows: abbreviated here.
    own = call.call_id.hex
    table = tools.table("at", "", "event", "ms", "detail", "process")
    for row, (at, took) in zip(rows, moments, strict=True):
        colour = _COLOURS.get(row.kind, "dim")
        table.add_row(
            f"{at:,.1f} ms",
            f"[{colour}]{_bar(at, took, span)}[/]",
            f"[{colour}]{tools.plain(_what(row).replace(own, '…'))}[/]",
            f"{took:.1f}" if row.took_ms is not None else "",
            tools.plain(row.detail.splitlines()[0] if row.detail else ""),
            row.who,
        )
    tools.out.print(table)


def call(  # noqa: PLR0917 - typer reads these as options
    number: Annotated[str, typer.Argument(help="The number or extension to dial.")],
    organization: Annotated[int, options.organization("The organization whose Asterisk dials.")],
    workflow: Annotated[int | None, options.number(help="The workflow that serves the call, with a new run.")] = None,
    run: Annotated[
        int | None, options.number(help="An existing run that waits for a call, instead of a new one.")
    ] = None,
    caller_id: Annotated[
        str | None, typer.Option(help="The caller id; by default the connection's first number.")
    ] = None,
    ring_seconds: Annotated[
        float | None,
        options.number(
            least=call_requests.SHORTEST_RING_SECONDS,
            largest=call_requests.LONGEST_RING_SECONDS,
            help="How long to let it ring; 60 by default.",
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(help="Makes the request idempotent: the same id places no second call. Random by default."),
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Place a call: dials the number, and connects the voice agent when it is answered."""
    request = CallRequest(
        organization_id=organization,
        number=number,
        request_id=request_id or uuid.uuid4().hex,
        workflow_id=workflow,
        workflow_run_id=run,
        caller_id=caller_id,
        ring_seconds=ring_seconds,
    )
    subject = f"organization {organization}"
    detail = {
        "number": redaction.mask_number(number),
        "workflow": workflow,
        "run": run,
        "request_id": request.request_id,
    }
    with (
        tools.acting() as (config, db),
        operators.recorded(db, "call", subject, organization=organization, detail=detail) as recording,
    ):
        writer = tools.writer(config, db, recording)
        prefix = id_prefixes.IdPrefixes(db, override=config.id_prefix).current()
        watch = dograh.Watch(db, config.platform_layout, quiet=True)
        runs = dograh.Runs(db, storage_backend=config.storage_backend, watch=watch)
        slots = quotas.Slots(
            quotas.Quotas(db, now=writer.store.now), dograh.Accounts(db), default=config.concurrent_calls
        )
        with _platform_slots(config) as platform_slots:
            placed = outbound_calls.OutboundCalls(
                writer,
                dograh.Routes(db, watch=watch, limits=_call_limits(config)),
                runs,
                connections.Connections(db),
                slots=slots.of,
                prefix=prefix,
                platform_slots=platform_slots,
            ).request(request)
    text = f"Call {placed.call_id}: arictl trace {str(placed.call_id)[:8]}"
    output.answer(PlacedCall(call_id=placed.call_id), lambda: tools.out.print(text), as_json=as_json)


@contextlib.contextmanager
def _platform_slots(config: settings.Operator) -> Iterator[PlatformSlots]:
    """Open the platform's count of calls, if its Redis is named."""
    url = config.platform_redis_url
    if url is None:
        yield NO_PLATFORM_SLOTS
        return
    with contextlib.closing(dograh.PlatformRedis(url.get_secret_value(), seconds=config.platform_redis_seconds)) as it:
        yield dograh.Slots(it)


def _call_limits(config: settings.Operator) -> dograh.CallLimits:
    return dograh.CallLimits(setting=config.platform_call_limit, default=config.default_org_concurrency_limit)


def hang_up(
    name: Annotated[
        str, typer.Argument(metavar="CALL", help="A call id or its first 4 or more digits, a run id or a channel id.")
    ],
    as_json: output.AsJson = False,
) -> None:
    """End a call: hangs up its legs and ends its run."""
    with tools.acting() as (config, db):
        with operators.refusals(db, "hangup", f"call {redaction.mask_numbers(name)}"):
            call_id = call_queries.find(db, name)
        recorded = call_actions.hang_up(db, lambda to: tools.writer(config, db, to), operators.actor(), call_id)
    text = f"Call {call_id} is already {recorded.call.state}."
    if recorded.applied:
        text = f"Call {call_id} is being ended: arictl trace {str(call_id)[:8]}"
    output.done(text, as_json=as_json, changed=recorded.applied)


def _heading(history: CallHistory) -> str:
    call = history.call
    run = f", run {call.workflow_run_id}" if call.workflow_run_id else ""
    came_to = f": {call.outcome}, {call.reason}" if call.outcome else ""
    told = [f"fault: {call.fault}"] if call.fault else []
    told += [f"hang-up cause {history.hangup_cause}"] if history.hangup_cause is not None else []
    told += [f"tech cause {history.tech_cause}"] if history.tech_cause is not None else []
    channels = ", replaced by ".join([history.channel_id, *history.replacements])
    lines = [
        f"Call {call.call_id} of organization {call.organization_id}{run}",
        f"{call.direction} {call.caller_number} → {call.called_number}, channel {channels}"
        f" on connection {call.connection_id}:{history.connection_version}",
        f"{call.state}{came_to}",
        *([", ".join(told)] if told else []),
        "",
    ]
    return "\n".join(map(tools.plain, lines))


def _span_of(call: ListedCall, start: datetime) -> float:
    until = call.connected_at or call.ended_at
    return float("inf") if until is None else (until - start).total_seconds() * 1000 + 50.0


def _bar(at: float, took: float, span: float) -> str:
    begin = min(int(at / span * _BAR), _BAR - 1)
    length = max(1, min(round(took / span * _BAR), _BAR - begin))
    return " " * begin + ("█" * length if took else "▏")


def _what(row: TimelineRow) -> str:
    if row.state_to:
        moved = f"{row.state_from} → {row.state_to}" if row.state_from else f"→ {row.state_to}"
        return f"{moved} ({row.name})" if row.state_to != State.RECEIVED else moved
    return row.name
