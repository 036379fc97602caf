"""Judges the samples of a long run: nothing may grow that is not meant to.

A process is another one after a kill, and so is a Redis after a restart: growth is measured within each life, from its
sixth minute on, and the lives of one name are taken together. The slope is the median of the slopes between all pairs
of samples of one life (Theil and Sen), which a peak does not move.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from chaos.soak import Sample, Table

#: Of each life. Until then pools, caches and imports fill.
WARM_UP_SECONDS = 300
#: With less than this behind the warm-up, over all lives of a name, its growth is not known.
LEAST_JUDGED_SECONDS = 300
PER_SECONDS = 600
MOST_HOLE_SECONDS = 60
#: The most that may be added in 10 minutes: of memory 1 %, of what is counted less than one.
MOST_MEMORY = 0.01
MOST_COUNTED = 0.9
#: Autovacuum's defaults: once a minute it looks for tables with more dead tuples than 50 and a fifth of the live.
_VACUUM_TUPLES, _VACUUM_PART, _VACUUM_EVERY_SECONDS = 50, 0.2, 60
#: As two minutes may pass between two looks, and a vacuum takes time itself.
_VACUUM_SLACK = 2

#: (Unix seconds, value) of one life.
Life = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What one quantity of one process or server did after its warm-up.

    Attributes:
        per_10_minutes: added, in the quantity's own unit; None if no life was long enough to know it.
        most: that may be added in 10 minutes.
    """

    name: str
    quantity: str
    median: float
    per_10_minutes: float | None
    most: float


def judge(samples: Sequence[Sample]) -> list[str]:
    """Return the violations, each a sentence; none if nothing grows."""
    found = growths(samples)
    return [*_missing(samples), *_violations(found), *_never_judged(found), *_dead_tuples(samples)]


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Return the growth of each quantity that has to be level."""
    found = []
    for name in sorted({name for sample in samples for name in sample["processes"]}):
        for quantity in ("resident_bytes", "files", "threads"):
            found.append(_growth(name, quantity, _lives(_of_process(samples, name, quantity))))
    found.append(_growth("Redis", "memory_bytes", _lives(_of_redis(samples))))
    found.append(_growth("Postgres", "connections", _lives(_connections(samples))))
    return found


def _missing(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield a violation for each hole: a sampler that has failed sees nothing grow."""
    for before, after in pairwise(samples):
        if (seconds := after["at"] - before["at"]) > MOST_HOLE_SECONDS:
            yield f"no sample for {seconds:.0f} s"


def _violations(found: Iterable[Growth]) -> Iterator[str]:
    for one in found:
        if one.per_10_minutes is not None and one.per_10_minutes > one.most:
            yield (
                f"{one.name}: {one.quantity} grows by {one.per_10_minutes:,.1f} in 10 minutes, from a median of"
                f" {one.median:,.0f}; {one.most:,.1f} is allowed"
            )


def _never_judged(found: Iterable[Growth]) -> Iterator[str]:
    """Yield a violation for each kind of process, and each server, of which no life was long enough."""
    judged: dict[tuple[str, str], bool] = defaultdict(bool)
    for one in found:
        judged[one.name.partition(".")[0], one.quantity] |= one.per_10_minutes is not None
    for (kind, quantity), is_judged in judged.items():
        if not is_judged:
            yield f"{kind}: {quantity} is not known to be level: no life of it was long enough after its warm-up"


def _dead_tuples(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield a violation for each table that autovacuum does not keep up with."""
    worst: dict[str, tuple[float, str]] = {}
    answered = [sample for sample in samples if sample["postgres"] is not None]
    for before, sample in _a_while_apart(answered, _VACUUM_EVERY_SECONDS):
        if sample["at"] - samples[0]["at"] < WARM_UP_SECONDS:
            continue
        assert before["postgres"] is not None
        assert sample["postgres"] is not None
        for name, table in sample["postgres"]["tables"].items():
            most = _most_dead(table, before["postgres"]["tables"].get(name))
            if table["dead"] > max(most, worst.get(name, (0.0, ""))[0]):
                worst[name] = (
                    table["dead"],
                    f"{name}: {table['dead']} dead tuples beside {table['live']} live ones; {most:.0f} are allowed",
                )
    yield from (text for _, text in worst.values())


def _most_dead(table: Table, before: Table | None) -> float:
    """Return how many dead tuples a table may have: where a vacuum is due, and what a minute adds to it."""
    changed = max(0, table["changed"] - before["changed"]) if before else table["changed"]
    return _VACUUM_SLACK * (_VACUUM_TUPLES + _VACUUM_PART * table["live"] + changed)


def _a_while_apart(samples: Sequence[Sample], seconds: float) -> Iterator[tuple[Sample, Sample]]:
    """Yield each sample with the newest one that is at least so much older."""
    older = 0
    for sample in samples:
        while sample["at"] - samples[older + 1]["at"] >= seconds if older + 1 < len(samples) else False:
            older += 1
        if sample["at"] - samples[older]["at"] >= seconds:
            yield samples[older], sample


def _growth(name: str, quantity: str, lives: Sequence[Life]) -> Growth:
    warm = [_after_warm_up(life) for life in lives]
    values = [value for life in warm for _, value in life]
    median = statistics.median(values) if values else 0.0
    most = MOST_MEMORY * median if quantity.endswith("_bytes") else MOST_COUNTED
    known = sum(life[-1][0] - life[0][0] for life in warm if life) >= LEAST_JUDGED_SECONDS
    slope = _slope(warm) * PER_SECONDS if known else None
    return Growth(name=name, quantity=quantity, median=median, per_10_minutes=slope, most=most)


def _after_warm_up(life: Life) -> Life:
    return [(at, value) for at, value in life if at - life[0][0] >= WARM_UP_SECONDS]


def _slope(lives: Iterable[Life]) -> float:
    """Return the median slope, per second, between the samples of one life."""
    slopes = [
        (second - first) / (later - earlier)
        for life in lives
        for (earlier, first), (later, second) in combinations(life, 2)
    ]
    return statistics.median(slopes) if slopes else 0.0


def _lives(samples: Iterable[tuple[object, float, float]]) -> list[Life]:
    """Group (identity, time, value) by identity."""
    found: dict[object, Life] = defaultdict(list)
    for identity, at, value in samples:
        found[identity].append((at, value))
    return list(found.values())


def _of_process(samples: Iterable[Sample], name: str, quantity: str) -> Iterator[tuple[object, float, float]]:
    for sample in samples:
        if process := sample["processes"].get(name):
            yield process["pid"], sample["at"], process[quantity]  # type: ignore[literal-required]


def _of_redis(samples: Iterable[Sample]) -> Iterator[tuple[object, float, float]]:
    for sample in samples:
        if found := sample["redis"]:
            yield found["run_id"], sample["at"], found["memory_bytes"]


def _connections(samples: Iterable[Sample]) -> Iterator[tuple[object, float, float]]:
    for sample in samples:
        if found := sample["postgres"]:
            yield None, sample["at"], found["connections"]
