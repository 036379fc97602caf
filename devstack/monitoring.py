"""The files of monitoring/: a dashboard for Grafana and alert rules for Prometheus, generated from the list of metrics.

Each query is written once, here. `UPDATE_DOCS=1 make check-docs` writes the files again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.process import metrics
from shared.process.metric_kinds import Histogram, Metric

FOLDER = Path(__file__).parents[1] / "monitoring"
#: Where an alert's section stands: of the repository, as its address depends on who has cloned it.
RUNBOOK = "docs/troubleshooting.md"
#: Each panel's rates are over so long: four scrapes of 15 s at least.
WINDOW = "5m"
_COLUMNS, _HEIGHT = 3, 8
#: Grafana's grid is so wide.
_GRID = 24


def _rate(metric: Metric, by: str = "", where: str = "") -> str:
    return _sum(f"rate({metric.name}{where}[{WINDOW}])", by)


def _count_rate(metric: Histogram, by: str, where: str = "") -> str:
    return _sum(f"rate({metric.name}_count{where}[{WINDOW}])", by)


def _sum(inner: str, by: str = "") -> str:
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def _quantile(share: float, metric: Histogram, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric.name}_bucket{where}[{WINDOW}])))"


_INBOUND = '{direction="inbound"}'
SETUP_P95 = _quantile(0.95, metrics.CALL_SETUP, where=_INBOUND)
LOST_BY_US = _sum(f'increase({metrics.CALLS_ENDED.name}{{fault="us"}}[{WINDOW}])')
OLDEST_MESSAGE = f"max by (queue) ({metrics.QUEUE_OLDEST.name})"
DOWN = _sum(metrics.CONNECTIONS_DOWN.name)
CONNECTIONS = _sum(metrics.CONNECTIONS.name)
LEADERS = _sum(metrics.LEADER.name)
DEAD_LETTERS = _sum(f"increase({metrics.DEAD_LETTERS.name}[{WINDOW}])")
EVENTS_DROPPED = _sum(f"increase({metrics.EVENTS_DROPPED.name}[{WINDOW}])")
OLDEST_WORK = f"max by (job, instance) ({metrics.OLDEST_WORK.name})"
OVERDUE = _sum(metrics.CALLS_OVERDUE.name)
#: Of the leader alone: where none leads there is no series, and that alert fires instead.
WORKERS = f"max({metrics.WORKERS.name})"
LISTENERS = f"max({metrics.LISTENERS.name})"
#: Of Prometheus itself: 1 for each process that it could ask.
UP = 'up{job=~"ari-pipeline.*"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture: its queries, each with its legend."""

    title: str
    #: Legend → query.
    queries: dict[str, str]
    #: As Grafana names it: `s`, `short`, `cps` (a second), `bytes`, `percentunit`.
    unit: str = "short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule: it fires when the query has had a result for so long."""

    name: str
    query: str
    lasts: str
    #: `page` wakes an operator; `ticket` can wait for the day.
    severity: str
    summary: str
    #: The anchor of its section in `RUNBOOK`.
    section: str


#: Callers first.
ROWS: dict[str, tuple[Panel, ...]] = {
    "Callers": (
        Panel(
            title="Set-up of inbound calls",
            unit="s",
            queries={
                "p50": _quantile(0.5, metrics.CALL_SETUP, where=_INBOUND),
                "p95": SETUP_P95,
                "p99": _quantile(0.99, metrics.CALL_SETUP, where=_INBOUND),
            },
        ),
        Panel(title="Live calls", queries={"{{state}}": _sum(metrics.CALLS_LIVE.name, "state")}),
        Panel(
            title="Calls that did not end well, by fault",
            unit="cps",
            queries={"{{fault}}": _rate(metrics.CALLS_ENDED, "fault", '{fault!="none"}')},
        ),
        Panel(title="Ended calls", unit="cps", queries={"{{outcome}}": _rate(metrics.CALLS_ENDED, "outcome")}),
        Panel(
            title="Overdue, being ended",
            queries={"overdue": OVERDUE, "being ended": _sum(metrics.CALLS_ENDING.name)},
        ),
        Panel(title="Refused by a limit", unit="cps", queries={"{{limit}}": _rate(metrics.QUOTA_REFUSALS, "limit")}),
    ),
    "Queues and steps": (
        Panel(title="Oldest message", unit="s", queries={"{{queue}}": OLDEST_MESSAGE}),
        Panel(title="Messages", queries={"{{queue}} {{state}}": _sum(metrics.QUEUE_MESSAGES.name, "queue, state")}),
        Panel(
            title="Wait in a queue, p95", unit="s", queries={"{{queue}}": _quantile(0.95, metrics.QUEUE_WAIT, "queue")}
        ),
        Panel(title="Step, p95", unit="s", queries={"{{step}}": _quantile(0.95, metrics.STEP, "step")}),
        Panel(
            title="Dead letters",
            queries={"new in 5 min": DEAD_LETTERS, "kept": _sum(metrics.DEAD_LETTERS_KEPT.name)},
        ),
        Panel(
            title="Steps that failed",
            unit="cps",
            queries={"{{step}}": _count_rate(metrics.STEP, "step", '{result="failed"}')},
        ),
    ),
    "Connections and Asterisks": (
        Panel(
            title="Event sockets",
            queries={
                "wanted": CONNECTIONS,
                "down": DOWN,
                "{{suspension}}": _sum(metrics.CONNECTIONS_SUSPENDED.name, "suspension"),
            },
        ),
        Panel(
            title="Requests to Asterisks, p95",
            unit="s",
            queries={"{{route}}": _quantile(0.95, metrics.ARI_REQUEST, "route")},
        ),
        Panel(
            title="Answers of Asterisks",
            unit="cps",
            queries={"{{status}}": _count_rate(metrics.ARI_REQUEST, "status")},
        ),
        Panel(
            title="Events",
            unit="cps",
            queries={"read": _rate(metrics.EVENTS), "dropped": _rate(metrics.EVENTS_DROPPED)},
        ),
        Panel(title="Circuit breakers open", queries={"{{instance}}": _sum(metrics.BREAKERS_OPEN.name, "instance")}),
        Panel(title="Age of the oldest resync", unit="s", queries={"age": f"max({metrics.RESYNC_AGE.name})"}),
    ),
    "Processes, Postgres, Redis": (
        Panel(
            title="Processes",
            queries={
                "listeners": _sum(metrics.LISTENERS.name),
                "workers": _sum(metrics.WORKERS.name),
                "leaders": LEADERS,
            },
        ),
        Panel(title="Oldest work", unit="s", queries={"{{instance}}": OLDEST_WORK}),
        Panel(
            title="Processor time",
            unit="percentunit",
            queries={"{{instance}}": _rate(metrics.PROCESS_CPU, "instance")},
        ),
        Panel(title="Memory", unit="bytes", queries={"{{instance}}": metrics.PROCESS_MEMORY.name}),
        Panel(
            title="Postgres: connections in use, threads that wait",
            queries={
                "{{instance}} in use": f'{metrics.DATABASE_CONNECTIONS.name}{{state="in-use"}}',
                "{{instance}} wait": metrics.DATABASE_WAITING.name,
            },
        ),
        Panel(
            title="Redis: messages that wait for it in a listener",
            queries={"{{instance}}": metrics.LISTENER_BUFFER.name},
        ),
    ),
}

ALERTS = (
    Alert(
        name="CallsLostByUs", query=f"{LOST_BY_US} > 0", lasts="0m", severity="page",
        summary="Calls were lost by a fault of the pipeline itself: arictl calls --fault us",
        section="is-anybody-losing-calls-now-since-when-whose-fault",
    ),
    Alert(
        name="SetupSlow", query=f"{SETUP_P95} > 2", lasts="5m", severity="page",
        summary="One caller of twenty waits for more than 2 s for the agent.", section="set-up-is-slow",
    ),
    Alert(
        name="NoLeader", query=f"({LEADERS} or vector(0)) < 1", lasts="30s", severity="page",
        summary="No scheduler leads: dead listeners are not replaced, overdue calls are not swept.",
        section="a-caller-hears-ringing-without-end",
    ),
    # Of a container that is gone Prometheus forgets the address, and with it `up`: these are counted by the leader.
    Alert(
        name="NoWorker", query=f"{WORKERS} < 1", lasts="30s", severity="page",
        summary="No worker lives: callers ring and are lost.", section="no-worker-or-no-listener-lives",
    ),
    Alert(
        name="NoListener", query=f"{LISTENERS} < 1", lasts="30s", severity="page",
        summary="No listener lives: nothing arrives from any Asterisk.", section="no-worker-or-no-listener-lives",
    ),
    Alert(
        name="QueueGrows", query=f"{OLDEST_MESSAGE} > 10", lasts="1m", severity="page",
        summary="Messages of queue {{ $labels.queue }} wait for more than 10 s.", section="is-the-backlog-growing",
    ),
    Alert(
        name="ConnectionsDown", query=f"{DOWN} > 0.1 * {CONNECTIONS}", lasts="2m", severity="page",
        summary="{{ $value }} event sockets are not open, more than a tenth: their callers are lost.",
        section="nothing-arrives",
    ),
    Alert(
        name="CallsOverdue", query=f"{OVERDUE} > 10", lasts="1m", severity="page",
        summary="{{ $value }} calls are past their deadline.", section="a-caller-hears-ringing-without-end",
    ),
    Alert(
        name="OldestWork", query=f"{OLDEST_WORK} > 60", lasts="1m", severity="page",
        summary="{{ $labels.instance }} has been at one thing for more than a minute.",
        section="a-caller-hears-ringing-without-end",
    ),
    Alert(
        name="ProcessAway", query=f"{UP} == 0", lasts="1m", severity="ticket",
        summary="{{ $labels.instance }} gives no metrics: it is away, or cannot be reached.",
        section="what-happens-if-this-host-dies",
    ),
    Alert(
        name="DeadLetters", query=f"{DEAD_LETTERS} > 0", lasts="0m", severity="ticket",
        summary="Messages have failed for good.", section="dead-letters",
    ),
    Alert(
        name="EventsDropped", query=f"{EVENTS_DROPPED} > 0", lasts="0m", severity="ticket",
        summary="Listeners have not passed on events; a resync makes up for them, seconds later.",
        section="log-events",
    ),
)  # fmt: skip


def files() -> dict[str, str]:
    """Return the name of each generated file → its text."""
    return {"dashboard.json": json.dumps(dashboard(), indent=1) + "\n", "rules.yaml": rules()}


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query that stands in a file, with where it stands."""
    for panels in ROWS.values():
        for panel in panels:
            yield from ((f"{panel.title}: {legend}", query) for legend, query in panel.queries.items())
    yield from ((alert.name, alert.query) for alert in ALERTS)


def rules() -> str:
    """Return the alert rules as Prometheus reads them. A text in double quotes is JSON's, and YAML's."""
    lines = [
        "# Generated by devstack/monitoring.py: UPDATE_DOCS=1 make check-docs",
        "groups:",
        "  - name: ari-pipeline",
        "    rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.query)}",
            f"        for: {alert.lasts}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          runbook: {json.dumps(f'{RUNBOOK}#{alert.section}')}",
        ]
    return "\n".join(lines) + "\n"


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "title": "ari-pipeline",
        "uid": "ari-pipeline",
        "description": "Callers first. Generated by devstack/monitoring.py.",
        "tags": ["ari-pipeline"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": _GRID, "h": 1},
            "panels": [],
        }
        top += 1
        for place, panel in enumerate(panels):
            number += 1
            yield _panel(panel, number, place, top)
        top += _HEIGHT * (1 + (len(panels) - 1) // _COLUMNS)


def _panel(panel: Panel, number: int, place: int, top: int) -> dict[str, Any]:
    row, column = divmod(place, _COLUMNS)
    width = _GRID // _COLUMNS
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"x": column * width, "y": top + row * _HEIGHT, "w": width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": _targets(panel, source),
    }


def _targets(panel: Panel, source: dict[str, str]) -> Sequence[dict[str, Any]]:
    return [
        {"refId": chr(ord("A") + number), "datasource": source, "expr": query, "legendFormat": legend}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
