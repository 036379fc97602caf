"""The generated tables of the documents are current, on whichever page their markers stand.

`UPDATE_DOCS=1 make check-docs` generates them again.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from arictl import answers
from chaos import chart, growth_report, record, report
from shared import messages
from shared.call.limits import Limits
from shared.call.steps import STEPS, Step
from shared.outbound_calls import OutboundCalls
from shared.process import metrics, settings
from tests.checks import arictl_reference, checkout
from workers import wiring
from workers.claims import StepWork
from workers.step_ports import Handler

REFRESH = "UPDATE_DOCS=1 make check-docs"
#: Who reads which settings: a class's own fields, under this heading.
READERS: dict[str, type[settings.Environment]] = {
    "Every process": settings.Base,
    "Every process and arictl doctor: where tenants' endpoints may lead": settings.Guarded,
    "With a database: worker and scheduler; of these arictl reads DATABASE_URL": settings.WithDatabase,
    "Listener and scheduler": settings.WithHeartbeats,
    "Listener": settings.Listener,
    "Worker": settings.Worker,
    "Scheduler": settings.Scheduler,
    "The console (the process web)": settings.Web,
}


def settings_tables() -> str:
    parts = []
    for heading, kind in READERS.items():
        own = {name: field for name, field in kind.model_fields.items() if name in inspect.get_annotations(kind)}
        rows = [(f"`{name.upper()}`", *_default_and_bounds(field), _said(field)) for name, field in own.items()]
        parts.append(f"## {heading}\n\n" + _table(("Variable", "Default", "Bounds", "Meaning"), rows))
    return "\n".join(parts)


def _default_and_bounds(field: Any) -> tuple[str, str]:
    default = "must be set" if field.is_required() else field.default
    if default is None or default == "":
        default = "not set"
    elif default != "must be set":
        default = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    bounds = [
        f"{sign} {value:g}"
        for bound in field.metadata
        for sign, attribute in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le"))
        if (value := getattr(bound, attribute, None)) is not None
    ]
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        bounds.append(", ".join(f"`{choice}`" for choice in choices))
    return str(default), ", ".join(bounds)


def _said(field: Any) -> str:
    assert field.description, "a setting without a description"
    return str(field.description)


def deadlines_table() -> str:
    limits = Limits()
    wait, checks, last = limits.queue_seconds, limits.media_checks, limits.max_step_retries
    begun, ringing = limits.attempt_wait().total_seconds(), limits.ring_wait(None).total_seconds()
    again = f"the step is dispatched again, at most {last} times; then the call ends"
    pauses = ", ".join(f"{limits.reach_pause(number).total_seconds():g}" for number in range(1, limits.attempts))
    rows = [
        ("`received`, `admitted`, `joining`, `originating`", wait, again),
        (
            "`ringing`",
            ringing,
            f"the call ends as not answered (the request's ring time, {limits.ring_seconds:g} s unless it says"
            f" otherwise, and {limits.ring_slack_seconds:g} s more, because Asterisk ends the ringing by itself)",
        ),
        ("`prepared`, no attempt started", wait, again),
        (
            "`prepared`, attempt started",
            begun,
            f"the next attempt starts, {limits.unknown_attempts} in all; then the call ends",
        ),
        (
            "`prepared`, voice agent not reached",
            wait,
            f"counted from the end of the pause ({pauses} s): {again}",
        ),
        (
            "`prepared`, legs created, not ready",
            limits.media_check_seconds,
            f"the worker asks Asterisk for the leg, at most {checks} times; then the call ends",
        ),
        ("`connected`", limits.call_seconds, "the call ends (`CALL_SECONDS`)"),
        (
            "`ending`",
            wait,
            "the teardown is dispatched again until it succeeds, with back-off from 1 s to"
            f" {limits.teardown_pause_seconds:g} s",
        ),
    ]
    shown = [(state, f"{seconds:g}", then) for state, seconds, then in rows]
    return _table(("State", "Seconds", "When overdue"), shown)


def claims_table() -> str:
    """Every step, its claim, and the parts that the claim is the sum of."""
    limits = Limits()
    rows = []
    for step, row in STEPS.items():
        parts = [
            f"{limits.quota_seconds:g} s for quota and the platform's tables" if row.asks_quota else "",
            _count(row.requests, "request"),
            _count(1 + row.statements, "statement"),
        ]
        rows.append((f"`{step}`", f"{limits.claim(step).total_seconds():g}", ", ".join(filter(None, parts))))
    return _table(("Step", "Claim, seconds", "Time for"), rows) + (
        f"\nA request takes at most {limits.connect_seconds:g} s to connect and {limits.read_seconds:g} s to answer, a"
        f" statement\n{limits.database_seconds:g} s. Requests that are made in parallel count once.\n"
    )


def _count(number: int, thing: str) -> str:
    return "" if number == 0 else f"{number} {thing}{'s' if number > 1 else ''}"


def queues_table() -> str:
    """Every queue, the first to be served first, the actors that read it, and the code of each."""
    adapters = cast(Any, MagicMock())
    handlers, steps = wiring.handlers(adapters, serves=(), tag=str), wiring._steps(adapters, str)
    rows = []
    for queue in messages.QUEUES:
        for actor in (actor for actor, its in messages.ACTORS.items() if its == queue):
            rows.append((f"`{queue}`", f"`{actor}`", _code_of(handlers[actor], steps)))
    return _table(("Queue", "Actor", "Carried out by"), rows)


def _code_of(handler: Handler, steps: Mapping[Step, StepWork]) -> str:
    if isinstance(handler, functools.partial):
        module, what = type(steps[handler.keywords["step"]]).__module__, "the step"
    elif isinstance(handler, types.MethodType):
        module, what = handler.__func__.__module__, f"`{handler.__name__}`"
    else:
        # The adapter of outbound calls: a stand-in here.
        module, what = OutboundCalls.request.__module__, f"`{OutboundCalls.request.__name__}`"
    return f"{what} of `{module.replace('.', '/')}.py`"


def metrics_table() -> str:
    """Every metric, its labels with their values, and the processes that export it."""
    rows = []
    for metric in metrics.ALL:
        labels = [f"`{name}`: {_values(name, values)}" for name, values in metric.labels.items()]
        kind = str(metric.kind)
        rows.append((f"`{metric.name}`", kind, "; ".join(labels), ", ".join(sorted(metric.of)), metric.text))
    return _table(("Metric", "Kind", "Labels", "Exported by", "Meaning"), rows)


def _values(name: str, values: frozenset[str] | None) -> str:
    if values is None:
        return "its number"
    # These differ from one installation to the other.
    return "text" if name in {"version", "python"} else ", ".join(f"`{value}`" for value in sorted(values))


#: Fixtures that are both Asterisks in turn.
BOTH_ASTERISKS = {"switch", "make_switch"}


def contract_tables() -> str:
    """Every fact of the contract suite, and which Asterisk it is tested on."""
    parts = []
    for path in sorted((checkout.ROOT / "tests/contract").glob("test_*.py")):
        if rows := list(_facts(path)):
            heading = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
            parts.append(f"{heading}\n\n" + _table((f"`{path.name}`", "Simulated", "Real"), rows))
    return "\n".join(parts)


def _facts(path: Path) -> Iterator[tuple[str, str, str]]:
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        if not BOTH_ASTERISKS & {argument.arg for argument in node.args.args}:
            continue
        names = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
        fact = node.name.removeprefix("test_").replace("_", " ")
        yield fact[0].upper() + fact[1:], "no" if names & {"ONLY_REAL", "ONLY_REAL_OWN"} else "yes", "yes"


CHAOS = "docs/chaos.json"
SOAK = "docs/soak.json"


def chaos_table(make: Callable[[Sequence[record.Entry]], str], chart_name: str = "", title: str = "") -> str:
    """A table of the chaos runs that are kept, and below it their chart."""
    drawn = report.picture(checkout.ROOT / "docs" / chart_name, title) if chart_name else ""
    return make(record.read(checkout.ROOT / CHAOS)) + drawn


def soak_tables() -> str:
    made = growth_report.read(checkout.ROOT / SOAK)
    return growth_report.tables(made) + report.picture(checkout.ROOT / "docs/soak.png", "What a soak grew by")


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("settings", settings_tables),
        ("deadlines", deadlines_table),
        ("claims", claims_table),
        ("queues", queues_table),
        ("metrics", metrics_table),
        ("contract", contract_tables),
        ("chaos-kinds", report.kinds_table),
        (
            "chaos-faults",
            lambda: chaos_table(report.faults_table, chart.FAULTS_CHART, "Runs with one kind of fault each"),
        ),
        ("chaos-reasons", lambda: chaos_table(report.reasons_table)),
        ("chaos-mixed", lambda: chaos_table(report.mixed_table, chart.MIXED_CHART, "The mixed run over time")),
        ("soak", soak_tables),
        ("arictl-commands", arictl_reference.command_tables),
        ("arictl-json", arictl_reference.json_tables),
    ],
)
def test_generated_tables_are_current(name: str, make: Callable[[], str]) -> None:
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    marked = [page for page in checkout.PAGES if begin in checkout.text(page)]
    assert len(marked) == 1, f"one page has to have `{begin.strip()}` and `{end}`, found: {marked}"
    (page,) = marked
    before, _, rest = checkout.text(page).partition(begin)
    found, closed, after = rest.partition(end)
    assert closed, f"{page} does not end its block {name}"
    made = f"\n{make()}\n"
    if os.environ.get("UPDATE_DOCS") and found != made:
        (checkout.ROOT / page).write_text(before + begin + made + end + after)
        checkout.text.cache_clear()
        found = made
    assert found == made, f"{page}: the table {name} is out of date; run: {REFRESH}"


def test_every_setting_is_on_the_page() -> None:
    kinds = [kind for _, kind in inspect.getmembers(settings, inspect.isclass) if issubclass(kind, settings.Base)]
    assert {name for kind in kinds for name in kind.model_fields} <= {
        name for kind in READERS.values() for name in kind.model_fields
    }


def test_every_command_answers_with_json_that_is_on_the_page() -> None:
    """Whatever it answers: a program reads no table."""
    options = {
        words: [name for each in command.params for name in each.opts] for words, command in arictl_reference.commands()
    }
    assert {words for words, names in options.items() if "--json" not in names} == set()
    assert set(options) == set(answers.ANSWERS)
