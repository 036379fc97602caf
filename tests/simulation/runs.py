"""Many histories, on every core: which failed, and how often each fault hit a call in each state."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from shared.call.states import State
from tests.simulation import faults, histories, shrinking
from tests.simulation.faults import NO_CALL, Fault, Tally

_CHUNK = 100
#: After this many failing histories a run stops.
ENOUGH = 20
#: The fast ways of a set-up, what may end the wait for a media leg, and an end without proof.
_WAYS = (
    "a call written with its admission",
    "an awaited leg: media_leg_ready",
    "an awaited leg: leg_ended",
    "an awaited leg: wait over",
    "a call that ended unverified",
    "a claim of a dead worker broken",
    # What a fail-over has made of a call; of one that has ended, nothing.
    *(f"commits lost: {state}" for state in faults.STATES if state != State.ENDED),
)


@dataclass(slots=True)
class Result:
    """The result of a run."""

    histories: int = 0
    seconds: float = 0.0
    tally: Tally = field(default_factory=Counter)
    #: How often each fast way was taken.
    ways: Counter[str] = field(default_factory=Counter)
    #: Kind of violation → the first seeds that show it, and how many did.
    failures: dict[str, list[int]] = field(default_factory=dict)


def quiet() -> None:
    """Switch the product's logs off: they would cost more than the histories."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def run(first: int, count: int, *, processes: int | None = None, enough: int = ENOUGH) -> Result:
    """Play `count` histories from seed `first` on."""
    result, started = Result(), time.monotonic()
    chunks = [range(at, min(at + _CHUNK, first + count)) for at in range(first, first + count, _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes or os.cpu_count(), initializer=_prepare) as pool:
        for tally, ways, failures, played in pool.imap_unordered(_play, chunks):
            result.tally += tally
            result.ways += ways
            result.histories += played
            for kind, seed in failures:
                result.failures.setdefault(kind, []).append(seed)
            if sum(map(len, result.failures.values())) >= enough:
                pool.terminate()
                break
    result.seconds = time.monotonic() - started
    return result


def _prepare() -> None:
    quiet()
    # Garbage is collected between histories; imported modules are not scanned again each time.
    gc.disable()
    gc.freeze()


def _play(seeds: Iterable[int]) -> tuple[Tally, Counter[str], list[tuple[str, int]], int]:
    tally: Tally = Counter()
    ways: Counter[str] = Counter()
    failures = []
    played = 0
    for seed in seeds:
        outcome = histories.play(seed)
        tally += outcome.tally
        ways += outcome.ways
        played += 1
        if (kind := shrinking.kind_of(outcome)) is not None:
            failures.append((kind, seed))
        if seed % 25 == 0:
            gc.collect()
    gc.collect()
    return tally, ways, failures, played


def missing(tally: Tally, ways: Counter[str], at_least: int) -> list[str]:
    """Return the possible pairs that were hit less often, and the fast ways that were taken less often."""
    return [f"{way}: {ways[way]}" for way in _WAYS if ways[way] < at_least] + [
        f"{target.state}, {target.fault}: {tally[target.state, target.fault]}"
        for target in faults.pairs()
        if tally[target.state, target.fault] < at_least
    ]


def table(tally: Tally) -> str:
    """Return how often each fault hit a call in each state, as a table."""
    states = faults.STATES
    width = max(map(len, Fault))
    heads = [state if state != NO_CALL else "no call" for state in states]
    lines = ["  ".join([" " * width, *(f"{head:>11}" for head in heads)])]
    lines += ["  ".join([f"{fault:<{width}}", *(f"{tally[state, fault]:>11}" for state in states)]) for fault in Fault]
    return "\n".join(lines)


def story_lines(outcome: histories.Outcome) -> Iterator[str]:
    """Yield the story of a history, line by line."""
    for seconds, who, what in outcome.story:
        yield f"{seconds:10.4f}  {who:<16}  {what}"
