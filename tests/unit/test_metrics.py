"""The list of metrics: names, bounds, and that nothing of them leaves the API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import prometheus_client
import pytest
from prometheus_client import exposition

from shared import assignments, errors, messages
from shared.asterisk import ari, ari_requests
from shared.asterisk.rest import Request
from shared.process import metric_kinds, metrics
from shared.process.metric_kinds import OTHER, Counter, Exported, Gauge, Histogram, Kind, Metric, Process

#: The units of Prometheus's conventions that are in use.
UNITS = ("_seconds", "_bytes", "_total", "_info")


def exposed(*declared: Metric, process: Process = Process.WORKER) -> str:
    registry = prometheus_client.CollectorRegistry()
    registry.register(Exported(declared, process))
    return prometheus_client.generate_latest(registry).decode()


def lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("process", Process)
def test_a_process_has_at_most_2000_series_at_1000_connections(process: Process) -> None:
    most = sum(metric.lines * metric.most_label_sets(1000) for metric in metrics.ALL if process in metric.of)
    assert 0 < most <= 2000


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_names_and_units_are_those_of_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"ari_pipeline_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.text.endswith(".")
    assert metric.of
    for label in metric.labels:
        assert label not in {"le", "job", "instance"}
        assert re.fullmatch(r"[a-z]+", label)
    if isinstance(metric, Histogram):
        assert metric.name.endswith("_seconds")
        assert (metric.buckets[0], metric.buckets[-1]) == (0.001, 30)


def test_no_two_metrics_have_one_name() -> None:
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)


def test_labels_name_what_the_product_names() -> None:
    assert set(metrics.QUEUES) == set(messages.QUEUES)
    assert set(metrics.SOCKET_STATES) == set(assignments.SocketState)


class Asked:
    """Stands for a client of an Asterisk; remembers what it is asked."""

    def __init__(self) -> None:
        self.routes: set[tuple[str, str]] = set()

    def request_all(self, _budget: object, requests: Sequence[Request[Any]]) -> list[Any]:
        self.routes |= {(request.method, request.route) for request in requests}
        return [errors.AsteriskUnreachable("away") for _ in requests]


def test_every_request_of_a_worker_has_a_declared_route() -> None:
    asked, channel, bridge = Asked(), "evil/../channels?x={id}", "b"
    asterisk = ari.Ari(cast(Any, asked), cast(Any, None), doubts=lambda _: False)
    object.__setattr__(asked, "configuration", SimpleNamespace(app="app", endpoint="http://x"))
    for request in (
        ari_requests.channel(channel),
        ari_requests.create_media(channel, app="app", client="c", parameters={}, args=""),
        ari_requests.answer(channel),
        ari_requests.set_variable(channel, "name", "value"),
        ari_requests.continue_in_dialplan(channel),
        ari_requests.hang_up(channel),
        ari_requests.create_bridge(bridge),
        ari_requests.bridge(bridge),
        ari_requests.add_legs(bridge, [channel]),
        ari_requests.remove_bridge(bridge),
        ari.application_request("evil"),
    ):
        asked.routes.add((request.method, request.route))
    for ask in (
        asterisk.bridges,
        lambda: asterisk.apps_of(channel),
        lambda: asterisk.set_event_filter([]),
        lambda: asterisk.originate(channel, endpoint="e", args="", caller_id=None, ring_seconds=1),
    ):
        with pytest.raises(errors.AsteriskUnreachable):
            ask()
    assert {route for _, route in asked.routes} == set(metrics.ROUTES)
    assert {verb for verb, _ in asked.routes} == set(metrics.VERBS)
    # Four classes of answers to each, and room for what is not declared.
    assert metrics.ARI_REQUEST.most_label_sets(0) > 4 * len(asked.routes)


def test_a_value_that_was_not_declared_becomes_other() -> None:
    counter = Counter("seen_total", "Seen.", of=[Process.WORKER], labels={"queue": ("media",)})
    counter.add("media")
    for hostile in ('"} evil 1', "+4930123456", "", "x" * 10_000):
        counter.add(hostile)
    text = exposed(counter)
    assert 'seen_total{queue="media"} 1.0' in text
    assert f'seen_total{{queue="{OTHER}"}} 4.0' in text
    assert len(list(lines(text))) == 2


def test_a_connection_is_named_by_its_number_alone() -> None:
    gauge = Gauge("up", "Up.", of=[Process.WORKER], labels={"connection": None})
    gauge.read(lambda: {("7",): 1, ("trunk-of-acme",): 1, ("1" * 12,): 1, ("²",): 1})
    assert list(lines(exposed(gauge))) == [
        'ari_pipeline_up{connection="7"} 1.0',
        f'ari_pipeline_up{{connection="{OTHER}"}} 1.0',
    ]


def test_the_largest_number_of_label_sets_holds() -> None:
    values = [f"/{number}" for number in range(9)]
    counter = Counter("asked_total", "Asked.", of=[Process.WORKER], labels={"verb": values, "route": values}, most=5)
    for one in values:
        for other in values:
            counter.add(one, other)
    found = list(lines(exposed(counter)))
    assert len(found) == 5
    assert f'ari_pipeline_asked_total{{route="{OTHER}",verb="{OTHER}"}} 77.0' in found


def test_a_metric_breaks_no_call() -> None:
    counter = Counter("seen_total", "Seen.", of=[Process.WORKER], labels={"queue": ("media",)})
    histogram = Histogram("took_seconds", "Took.", of=[Process.WORKER], buckets=(1,))
    gauge = Gauge("depth", "Depth.", of=[Process.WORKER])
    gauge.read(lambda: 1 // 0)
    before = metric_kinds.failures()
    counter.add()
    counter.add("media", amount=-1)
    counter.add(None)  # type: ignore[arg-type]  # whatever it is
    histogram.observe("soon")  # type: ignore[arg-type]  # whatever it is
    assert list(lines(exposed(gauge))) == []
    assert metric_kinds.failures() == before + 4


def test_a_negative_duration_counts_as_none() -> None:
    histogram = Histogram("took_seconds", "Took.", of=[Process.WORKER], buckets=(1,))
    histogram.observe(-5)
    assert "ari_pipeline_took_seconds_sum 0.0" in exposed(histogram)


def test_a_trace_is_the_exemplar_of_its_bucket() -> None:
    histogram = Histogram("took_seconds", "Took.", of=[Process.WORKER], buckets=(1, 2))
    histogram.observe(0.5)
    histogram.observe(1.5, trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    encode, _ = exposition.choose_encoder("application/openmetrics-text; version=1.0.0")
    text = encode(Exported([histogram], Process.WORKER)).decode()
    found = [line for line in text.splitlines() if "trace_id" in line]
    assert len(found) == 1
    assert re.match(r'ari_pipeline_took_seconds_bucket\{le="2.0"\} 2.0 # \{trace_id="4bf9\w+"\} 1.5', found[0])


def test_a_counter_of_few_label_sets_starts_at_zero() -> None:
    """Prometheus sees no increase in a series that is not there before the first event."""
    counter = Counter("seen_total", "Seen.", of=[Process.WORKER], labels={"queue": ("media", "bridge")})
    assert {line.rpartition(" ")[2] for line in lines(exposed(counter))} == {"0.0"}


def test_a_process_exports_its_own_metrics_alone() -> None:
    counter = Counter("seen_total", "Seen.", of=[Process.LISTENER])
    assert exposed(counter, process=Process.WORKER) == ""
    assert "# TYPE ari_pipeline_seen_total counter" in exposed(counter, process=Process.LISTENER)


def test_a_gauge_that_has_nothing_to_tell_has_no_series() -> None:
    gauge = Gauge("depth", "Depth.", of=[Process.WORKER])
    assert list(lines(exposed(gauge))) == []
    gauge.read(lambda: None)
    assert list(lines(exposed(gauge))) == []
    gauge.read(lambda: 3)
    assert list(lines(exposed(gauge))) == ["ari_pipeline_depth 3.0"]


def test_switched_off_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_kinds._Switch, "is_on", False)
    counter = Counter("seen_total", "Seen.", of=[Process.WORKER])
    counter.add()
    assert list(lines(exposed(counter))) == ["ari_pipeline_seen_total 0.0"]
