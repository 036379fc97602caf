"""`arictl top`: what the pipeline does now, live in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arictl import options, output, tools
from shared.call.states import Fault
from shared.operator import overview_sample as overview
from shared.operator.overview_sample import Calls, Sample, Traffic

#: A statement that takes longer would hold the picture up.
_STATEMENT_SECONDS = 2.0
_LABEL = 13
#: A message that waits for longer than this is shown in colour, in seconds, and a set-up that takes longer.
_LONG_WAIT = 1.0
_LONG_SETUP = 1.0
_BAD, _ODD, _GOOD = "bold red", "bold yellow", "green"
_OUTCOMES = {"completed": _GOOD, "refused": _ODD, "failed": _BAD}


def top(
    once: Annotated[bool, typer.Option("--once", help="Show one sample and end, as without a terminal.")] = False,
    seconds: Annotated[float, options.number(largest=60, metavar="S", help="The time between two samples.")] = 1,
    trend: Annotated[
        bool, typer.Option("--trend", help="Show two samples' difference, too: whether the queues grow. Ends after it.")
    ] = False,
    as_json: output.AsJson = False,
) -> None:
    """Watch rates, set-up times, queues, connections and outcomes, live. Ctrl-C ends it."""
    with contextlib.suppress(KeyboardInterrupt), tools.with_redis(_STATEMENT_SECONDS) as (_, db, broker):
        sample, before = overview.take(db, broker.client), None
        if trend:
            time.sleep(seconds)
            sample, before = overview.take(db, broker.client), sample
        if once or trend or as_json or not tools.out.is_terminal:
            output.answer(sample, lambda: tools.out.print(picture(sample, before)), as_json=as_json)
            if sample.missing:
                raise typer.Exit(3)
            return
        with Live(picture(sample), console=tools.out, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(max(0.0, seconds - sample.took_seconds))
                sample = overview.take(db, broker.client)
                live.update(picture(sample), refresh=True)


def picture(sample: Sample, before: Sample | None = None) -> RenderableType:
    """Return a sample as it is shown: 24 lines of 80 characters at most.

    Args:
        before: An earlier one, from which the change of the queues is told.
    """
    parts: list[RenderableType] = [_heading(sample)]
    parts += [
        Text(tools.printable(reason[:200]), style=_BAD, no_wrap=True, overflow="ellipsis") for reason in sample.missing
    ]
    if sample.calls is not None:
        parts += _calls(sample.calls)
    if sample.traffic is not None:
        parts += _traffic(sample.traffic, before.traffic if before is not None else None)
    return Group(*parts)


def _heading(sample: Sample) -> Text:
    text = Text(f"ari-pipeline {sample.at:%H:%M:%S} UTC", style="bold", no_wrap=True, overflow="ellipsis")
    if sample.calls is not None:
        leader = tools.printable((sample.calls.leader or "").split("/")[0])
        text.append(" · ").append(f"{leader} leads" if leader else "no scheduler leads", style="" if leader else _BAD)
    if sample.traffic is not None:
        for number, what in ((len(sample.traffic.listeners), "listener"), (len(sample.traffic.workers), "worker")):
            text.append(" · ").append(f"{number} {what}{'' if number == 1 else 's'}", style="" if number else _BAD)
    return text


def _calls(calls: Calls) -> Iterable[Text]:
    live = sum(calls.live.values())
    yield _line("calls", [(f"{live} live", "bold"), *_counts(calls.live)])
    yield _line(
        "",
        [
            (f"{calls.received_per_second:g} received/s", ""),
            (f"{calls.overdue} overdue", _BAD if calls.overdue else ""),
        ],
    )
    times = ((calls.setup_p50, "p50"), (calls.setup_p95, "p95"), (calls.setup_p99, "p99"))
    shown = [(f"{name} {_duration(at)}", _ODD if at is not None and at > _LONG_SETUP else "") for at, name in times]
    yield _line("set-up", [*shown, (f"{calls.connected} connected of {calls.looked_at} in 5 min", "dim")])
    outcomes = [(f"{number} {name}", _OUTCOMES.get(name, "")) for name, number in _largest(calls.outcomes)]
    yield _line("outcomes", outcomes or [("none in 5 min", "dim")])
    faults = [(f"{number} {name}", _BAD if name == Fault.US else "") for name, number in _largest(calls.faults)]
    yield _line("faults", faults or [("none", "dim")])
    sockets = [
        (f"{number} {state}", _GOOD if state == "connected" else _ODD) for state, number in _largest(calls.connections)
    ]
    yield _line("connections", sockets or [("none", "dim")])


def _traffic(traffic: Traffic, before: Traffic | None) -> Iterable[RenderableType]:
    yield Text()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("queue", min_width=_LABEL - 2)
    for heading in ("waiting", "delayed", "in work", "oldest"):
        table.add_column(heading, justify="right", min_width=8)
    earlier = {queue.name: queue.waiting + queue.delayed for queue in before.queues} if before is not None else {}
    if earlier:
        table.add_column("change", justify="right", min_width=8)
    for queue in traffic.queues:
        is_late = queue.oldest_seconds is not None and queue.oldest_seconds > _LONG_WAIT
        counts = [str(number) if number else "·" for number in (queue.waiting, queue.delayed, queue.in_flight)]
        oldest = "·" if queue.oldest_seconds is None else _duration(queue.oldest_seconds)
        change = [f"{queue.waiting + queue.delayed - earlier[queue.name]:+}"] if queue.name in earlier else []
        table.add_row(queue.name, *counts, oldest, *change, style=_ODD if is_late else "")
    yield table
    yield Text()
    letters = [(f"{traffic.dead_letters} in Redis", _BAD if traffic.dead_letters else "")]
    if traffic.dead_letters_dropped:
        letters.append((f"{traffic.dead_letters_dropped} dropped", _BAD))
    yield _line("dead letters", letters)
    if traffic.oldest_work_seconds is not None:
        yield _line("oldest work", [(_duration(traffic.oldest_work_seconds), "")])


def _line(label: str, parts: Iterable[tuple[str, str]]) -> Text:
    text = Text(label.ljust(_LABEL), style="dim", no_wrap=True, overflow="ellipsis")
    for number, (part, style) in enumerate(parts):
        text.append("  " if number else "", style="not dim").append(
            tools.printable(part), style=f"not dim {style}".strip()
        )
    return text


def _counts(numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(f"{number} {name}", "") for name, number in _largest(numbers)]


def _largest(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the most frequent first; so many as fit in a line."""
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:6]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
