"""The kinds of metrics: counter, gauge, histogram. One home of `prometheus_client`; `metrics` declares what there is.

A metric breaks no call: nothing that goes wrong here leaves this module. It is bounded: a value of a label that was not
declared becomes `other`, so what a tenant or an Asterisk chooses is never exported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import ParamSpec, TypeAlias

import prometheus_client
import structlog
from prometheus_client import core, registry

_log = structlog.stdlib.get_logger(__name__)

_P = ParamSpec("_P")

PREFIX = "ari_pipeline_"
#: Stands for each value of a label that was not declared.
OTHER = "other"
#: A counter starts with its series at 0 if it has no more than these: the first event is an increase then.
_FROM_ZERO = 150
#: Each series has a `_created` beside it otherwise.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's

#: What a gauge reads: a number, or the values of its labels → a number; None while there is nothing to tell.
Reading: TypeAlias = float | Mapping[tuple[str, ...], float] | None


class Kind(StrEnum):
    """The kinds of metrics, by Prometheus's names."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Process(StrEnum):
    """The processes that export metrics."""

    LISTENER = "listener"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    WEB = "web"


class _Switch:
    """Whether metrics are kept at all, and what went wrong with them."""

    is_on = True
    failures = 0


def switch_off() -> None:
    """Keep no metrics in this process."""
    _Switch.is_on = False


def failures() -> float:
    """Return how often a metric could not be kept or read."""
    return _Switch.failures


def _note_failure(name: str) -> None:
    _Switch.failures += 1
    if _Switch.failures == 1:
        _log.exception("metric not kept, a bug; further ones are counted only", metric=name)


def guarded(observe: Callable[_P, None]) -> Callable[_P, None]:
    """Wrap a function that adds to metrics: what goes wrong in it is counted, and breaks no call."""

    @functools.wraps(observe)
    def observe_safely(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            observe(*args, **kwargs)
        except Exception:  # noqa: BLE001 - a metric breaks no call
            _note_failure(observe.__qualname__)

    return observe_safely


class Metric:
    """One metric.

    Args:
        name: Without the prefix; ends with its unit, and of a counter with `_total`.
        text: What it measures, for people.
        of: The processes that export it.
        labels: Label → its values; None for the ids of connections, which are whole numbers.
        most: The largest number of its label sets, if that is below the product of the values.
    """

    kind: Kind
    #: The lines that one label set has in the exposition.
    lines = 1

    def __init__(
        self,
        name: str,
        text: str,
        *,
        of: Collection[Process],
        labels: Mapping[str, Iterable[str] | None] | None = None,
        most: int | None = None,
    ) -> None:
        self.name = PREFIX + name
        self.text = text
        self.of = frozenset(of)
        self.labels = {name: None if values is None else frozenset(values) for name, values in (labels or {}).items()}
        self._most = most

    def most_label_sets(self, connections: int) -> int:
        """Return how many label sets it has at most, with so many connections."""
        number = math.prod(connections if values is None else len(values | {OTHER}) for values in self.labels.values())
        return number if self._most is None else min(number, self._most)

    def bounded(self, values: Sequence[str]) -> tuple[str, ...]:
        """Return the values of the labels, each as declared or `other`. Raises ValueError if their number is wrong."""
        return tuple(_known(value, declared) for value, declared in zip(values, self.labels.values(), strict=True))


def _known(value: str, declared: frozenset[str] | None) -> str:
    is_known = value.isascii() and value.isdecimal() and len(value) < 12 if declared is None else value in declared
    return str(value) if is_known else OTHER


class _Kept(Metric):
    """A metric that this process keeps: of each label set a series, from the first time on."""

    def _label_set(self, values: tuple[str, ...], known: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
        """Return the label set that these values are counted in."""
        found = self.bounded(values)
        if found in known or self._most is None or len(known) < self._most - 1:
            return found
        return (OTHER,) * len(found)


class Counter(_Kept):
    """Counts what happens. It never goes down while the process lives."""

    kind = Kind.COUNTER

    def __init__(
        self,
        name: str,
        text: str,
        *,
        of: Collection[Process],
        labels: Mapping[str, Iterable[str] | None] | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(name, text, of=of, labels=labels, most=most)
        self.family = prometheus_client.Counter(self.name, text, list(self.labels), registry=None)
        self._series: dict[tuple[str, ...], prometheus_client.Counter] = {}
        self._start_at_zero()

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count one more, or `amount`.

        Args:
            labels: The values, in the order of the declaration.
        """
        if not _Switch.is_on:
            return
        try:
            series = self._series.get(labels)
            if series is None:
                series = self._series_of(labels)
            series.inc(amount)
        except Exception:  # noqa: BLE001 - a metric breaks no call
            _note_failure(self.name)

    def _series_of(self, values: tuple[str, ...]) -> prometheus_client.Counter:
        found = self._label_set(values, self._series)
        if found not in self._series:
            self._series[found] = self.family.labels(*found) if found else self.family
        return self._series[found]

    def _start_at_zero(self) -> None:
        if math.prod(math.inf if values is None else len(values) for values in self.labels.values()) > _FROM_ZERO:
            return
        label_sets: Iterable[tuple[str, ...]] = [()]
        for values in self.labels.values():
            label_sets = [(*before, value) for before in label_sets for value in sorted(values or ())]
        for each in label_sets:
            self._series_of(each)


class Histogram(_Kept):
    """Counts seconds, in buckets."""

    kind = Kind.HISTOGRAM

    def __init__(
        self,
        name: str,
        text: str,
        *,
        of: Collection[Process],
        buckets: Sequence[float],
        labels: Mapping[str, Iterable[str] | None] | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(name, text, of=of, labels=labels, most=most)
        self.buckets = tuple(buckets)
        #: The last bucket, the sum and the number are beside the declared buckets.
        self.lines = len(self.buckets) + 3
        self.family = prometheus_client.Histogram(
            self.name, text, list(self.labels), buckets=self.buckets, registry=None
        )
        self._series: dict[tuple[str, ...], prometheus_client.Histogram] = {}

    def observe(self, seconds: float, *labels: str, trace_id: str = "") -> None:
        """Add one.

        Args:
            seconds: A clock that was set makes it negative: that counts as 0.
            labels: The values, in the order of the declaration.
            trace_id: Becomes the exemplar of its bucket, unless it is empty.
        """
        if not _Switch.is_on:
            return
        try:
            series = self._series.get(labels)
            if series is None:
                series = self._series_of(labels)
            series.observe(max(0.0, seconds), {"trace_id": trace_id} if trace_id else None)
        except Exception:  # noqa: BLE001 - a metric breaks no call
            _note_failure(self.name)

    def _series_of(self, values: tuple[str, ...]) -> prometheus_client.Histogram:
        found = self._label_set(values, self._series)
        if found not in self._series:
            self._series[found] = self.family.labels(*found) if found else self.family
        return self._series[found]


class Gauge(Metric):
    """Tells how something is now: it is read when it is asked for, from what the process knows already."""

    kind = Kind.GAUGE
    _read: Callable[[], Reading] | None = None

    def read(self, from_memory: Callable[[], Reading]) -> None:
        """Say where the gauge reads. A later call replaces an earlier one.

        Args:
            from_memory: Asks no server and waits for no lock: it is called while Prometheus waits. As long as it
                returns None, the gauge has no series.
        """
        self._read = from_memory

    def readings(self) -> Mapping[tuple[str, ...], float]:
        """Return the label sets and their numbers, as they are now."""
        if self._read is None:
            return {}
        try:
            found = self._read()
            if found is None:
                return {}
            if not isinstance(found, Mapping):
                return {(): found}
            return {self.bounded(values): number for values, number in found.items()}
        except Exception:  # noqa: BLE001 - one that cannot be read hides no other
            _note_failure(self.name)
            return {}


class ReadCounter(Gauge):
    """A counter that something else keeps, and that is read as a gauge is."""

    kind = Kind.COUNTER


class Exported(registry.Collector):
    """What one process exports of the declared metrics, for `prometheus_client`'s exposition."""

    def __init__(self, declared: Iterable[Metric], process: Process) -> None:
        self._metrics = [metric for metric in declared if process in metric.of]

    def collect(self) -> Iterator[core.Metric]:
        """Yield each metric, also one that has no series yet."""
        for metric in self._metrics:
            if isinstance(metric, Gauge):
                yield _family(metric)
            elif isinstance(metric, Counter | Histogram):
                yield from metric.family.collect()


def _family(gauge: Gauge) -> core.Metric:
    made = core.CounterMetricFamily if gauge.kind is Kind.COUNTER else core.GaugeMetricFamily
    family = made(gauge.name, gauge.text, labels=list(gauge.labels))
    for values, number in gauge.readings().items():
        family.add_metric(values, number)
    return family
