"""The files of monitoring/: current, about series that are exported, and each alert fires when it has to."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devstack import monitoring, processes, prometheus
from devstack.monitoring import ALERTS, Alert
from shared.process import metrics
from shared.process.metric_kinds import Histogram, Metric
from tests.checks import checkout

ROOT = checkout.ROOT
#: Series of a histogram.
PARTS = ("_bucket", "_count", "_sum")


def names() -> set[str]:
    """The series that the processes export."""
    found = {metric.name for metric in metrics.ALL}
    return found | {each.name + part for each in metrics.ALL if isinstance(each, Histogram) for part in PARTS}


@pytest.mark.parametrize("name", monitoring.files())
def test_a_file_is_what_its_metrics_make_of_it(name: str) -> None:
    path, made = monitoring.FOLDER / name, monitoring.files()[name]
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(made)
    assert path.read_text() == made, f"{path.name} is old: UPDATE_DOCS=1 make check-docs"


def test_every_series_that_a_file_or_a_page_names_is_exported() -> None:
    pages = [*monitoring.FOLDER.iterdir(), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    for page in pages:
        named = set(re.findall(r"\bari_pipeline_[a-z_]*[a-z]", page.read_text()))
        assert named <= names(), f"{page.name}: {named - names()}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_leads_to_its_section_of_the_runbook(alert: Alert) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / monitoring.RUNBOOK).read_text(), re.MULTILINE)
    assert alert.section in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Series of an alert, a value each 15 s, as promtool writes them: with these it fires, and with those it does not.

    It is looked at after ten minutes; it fires once, with these labels and this value.
    """

    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    value: str = ""


def _of(metric: Metric, **labels: str) -> str:
    inner = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric.name}{{{inner}}}"


def _setup(below_two: str) -> dict[str, str]:
    """Buckets of a histogram: a call every 15 s, so many of them within 1 s."""
    name = f"{metrics.CALL_SETUP.name}_bucket"
    within = {"1": below_two, "5": "0+1x60", "+Inf": "0+1x60"}
    return {f'{name}{{direction="inbound", le="{le}"}}': values for le, values in within.items()}


LASTS, NEVER = "1x60", "0x60"
#: The last is a value of the last five minutes.
ONE, NONE = "0x30 1x30", "0x60"
CASES = {
    "CallsLostByUs": Case(
        fires={_of(metrics.CALLS_ENDED, fault="us", outcome="failed"): ONE},
        quiet={
            _of(metrics.CALLS_ENDED, fault="us", outcome="failed"): NONE,
            _of(metrics.CALLS_ENDED, fault="agent", outcome="failed"): ONE,
        },
    ),
    "SetupSlow": Case(fires=_setup("0x60"), quiet=_setup("0+1x60")),
    "NoLeader": Case(
        fires={_of(metrics.LEADER, instance="a"): NEVER, _of(metrics.LEADER, instance="b"): NEVER},
        quiet={_of(metrics.LEADER, instance="a"): NEVER, _of(metrics.LEADER, instance="b"): LASTS},
    ),
    "NoWorker": Case(
        fires={_of(metrics.WORKERS, instance="a"): NEVER},
        quiet={_of(metrics.WORKERS, instance="a"): LASTS, _of(metrics.LISTENERS, instance="a"): NEVER},
    ),
    "NoListener": Case(
        fires={_of(metrics.LISTENERS, instance="a"): NEVER},
        quiet={_of(metrics.LISTENERS, instance="a"): LASTS, _of(metrics.WORKERS, instance="a"): NEVER},
    ),
    "QueueGrows": Case(
        fires={_of(metrics.QUEUE_OLDEST, queue="media"): "0+1x60"},
        quiet={_of(metrics.QUEUE_OLDEST, queue="media"): "9x60"},
        labels={"queue": "media"},
    ),
    "ConnectionsDown": Case(
        fires={_of(metrics.CONNECTIONS): "20x60", _of(metrics.CONNECTIONS_DOWN): "3x60"},
        # However many an operator has parked: these are no connections that are wanted.
        quiet={
            _of(metrics.CONNECTIONS): "20x60", _of(metrics.CONNECTIONS_DOWN): "2x60",
            _of(metrics.CONNECTIONS_SUSPENDED, suspension="park"): "50x60",
        },
        value="3",
    ),
    "CallsOverdue": Case(
        fires={_of(metrics.CALLS_OVERDUE): "11x60"}, quiet={_of(metrics.CALLS_OVERDUE): "10x60"}, value="11"
    ),
    "OldestWork": Case(
        fires={_of(metrics.OLDEST_WORK, job="ari-pipeline", instance="w"): "0+15x60"},
        quiet={_of(metrics.OLDEST_WORK, job="ari-pipeline", instance="w"): "60x60"},
        labels={"job": "ari-pipeline", "instance": "w"},
    ),
    "ProcessAway": Case(
        fires={'up{job="ari-pipeline", instance="w"}': NEVER, 'up{job="ari-pipeline", instance="l"}': LASTS},
        quiet={'up{job="ari-pipeline", instance="w"}': LASTS, 'up{job="another", instance="x"}': NEVER},
        labels={"job": "ari-pipeline", "instance": "w"},
    ),
    "DeadLetters": Case(
        fires={_of(metrics.DEAD_LETTERS, queue="media"): ONE}, quiet={_of(metrics.DEAD_LETTERS, queue="media"): NONE}
    ),
    "EventsDropped": Case(
        fires={_of(metrics.EVENTS_DROPPED, reason="refused"): ONE},
        quiet={_of(metrics.EVENTS_DROPPED, reason="refused"): NONE},
    ),
}  # fmt: skip


def _told(alert: Alert, case: Case) -> dict[str, Any]:
    summary = alert.summary.replace("{{ $value }}", case.value)
    for name, value in case.labels.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
    return {
        "exp_labels": {"severity": alert.severity, **case.labels},
        "exp_annotations": {"summary": summary, "runbook": f"{monitoring.RUNBOOK}#{alert.section}"},
    }


def _test(alert: Alert, series: dict[str, str], told: list[dict[str, Any]]) -> dict[str, Any]:
    # Without a leader among the series that alert fires beside the others: only the one that is meant is looked at.
    return {
        "name": alert.name,
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "10m", "alertname": alert.name, "exp_alerts": told}],
    }


@pytest.mark.prometheus
def test_prometheus_takes_the_files_and_each_alert_fires_and_does_not_fire(
    prometheus_programs: prometheus.Programs, tmp_path: Path
) -> None:
    promtool, folder = prometheus_programs.promtool, monitoring.FOLDER
    processes.run([promtool, "check", "config", folder / "prometheus.yaml"])
    assert {alert.name for alert in ALERTS} == set(CASES)
    tests = []
    for alert in ALERTS:
        case = CASES[alert.name]
        tests += [_test(alert, case.fires, [_told(alert, case)]), _test(alert, case.quiet, [])]
    # Of a scheduler whose container is gone there is no series at all.
    (no_leader,) = [alert for alert in ALERTS if alert.name == "NoLeader"]
    tests.append(_test(no_leader, {}, [_told(no_leader, CASES["NoLeader"])]))
    made = tmp_path / "tests.yaml"
    # JSON is YAML.
    made.write_text(json.dumps({"rule_files": [str(folder / "rules.yaml")], "tests": tests}))
    processes.run([promtool, "test", "rules", made])
