"""A run: callers at a steady rate, faults, 30 s of quiet, and the verdict."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import stage as stages
from chaos.callers import Callers
from chaos.faults import FAULTS, SOAK_FAULTS, Fault, Striker
from chaos.soak import Sample, Sampler, read
from chaos.stage import Stage
from devstack import folders

#: Before the first fault and after the last one, with calls.
CALM_SECONDS = 5.0
SERVED_AGAIN_SECONDS = 12.0
#: Before the verdict the last caller has hung up.
GONE_SECONDS = 4.0
#: After the last fault nothing is left.
QUIET_SECONDS = 30.0
#: In a mixed run so many faults may last at once.
LANES = 3
#: A run with one kind of fault strikes for so long, and so often at most.
STRIKING_SECONDS = 50.0
MOST_STRIKES = 6
#: Of a mixed run: so often is a fault struck once more that met no call in set-up.
MOST_AGAIN = 3
PAUSE_SECONDS = 8.0
#: Between two faults of a soak.
SOAK_PAUSE_SECONDS = 45.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is struck.

    Attributes:
        name: of its folder.
        seeds: one mixed run after the other on one stage; of a run with one fault, what draws its moments.
        fault: the only one; None: all of them, mixed.
        rate: calls per second.
        calls: at least.
    """

    name: str
    seeds: Sequence[int]
    fault: Fault | None = None
    rate: float = 4.0
    calls: int = 0

    @property
    def title(self) -> str:
        """What it strikes: a kind of fault, or `mixed`."""
        return self.fault.name if self.fault else self.name


def play(plan: Plan, results: Path) -> dict[str, Any]:
    """Play a run on a stage of its own and return the verdict.

    Args:
        results: a folder of this run alone; logs, deeds, observations and the verdict are kept there.
    """
    with folders.temporary() as folder, stages.running(folder, results) as stage:
        about = {"seeds": list(plan.seeds), "rate": plan.rate, "asterisk": stage.asterisk_version()}
        callers = _callers(stage, plan.rate, plan.seeds[0])
        time.sleep(CALM_SECONDS)
        for seed in plan.seeds:
            strike(stage, plan.fault, random.Random(seed))  # noqa: S311 - no secret
        return about | _verdict(stage, callers, calls=plan.calls)


def soak(*, minutes: float, rate: float, seed: int, results: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Let calls and kills go on for long; return the verdict, and samples of what may grow.

    Only the second process of each kind is killed: the first ones live as long as the run, so that they can grow.

    Args:
        results: as in `play`; the samples are kept there, too.
    """
    path = results / "samples.jsonl"
    chance = random.Random(seed)  # noqa: S311 - no secret
    with folders.temporary() as folder, stages.running(folder, results) as stage:
        about = {"seeds": [seed], "rate": rate, "asterisk": stage.asterisk_version()}
        callers = _callers(stage, rate, seed)
        sampler = Sampler(
            lambda: {name: pid for name, pid in stage.supervised.pids().items() if name != stages.AGENT},
            database_url=stage.database_url,
            redis_url=stage.redis.url,
            path=path,
        )
        with sampler:
            striker, ends_at = Striker(stage, chance), time.monotonic() + minutes * 60
            while (left := ends_at - time.monotonic()) > 0:
                time.sleep(min(left, chance.uniform(0.5, 1.5) * SOAK_PAUSE_SECONDS))
                striker.play(SOAK_FAULTS[chance.randrange(len(SOAK_FAULTS))])
            verdict = _verdict(stage, callers)
    return about | verdict, read(path)


def _callers(stage: Stage, rate: float, seed: int) -> Callers:
    callers = Callers(
        stage.switch,
        stage.lines,
        stage.deeds,
        rate=rate,
        chance=random.Random(seed),  # noqa: S311 - no secret
        database_url=stage.database_url,
        redis_url=stage.product_redis_url,
    )
    callers.start()
    return callers


def _verdict(stage: Stage, callers: Callers, *, calls: int = 0) -> dict[str, Any]:
    """After the last fault: let calls be served again, hang up, wait until nothing may be left, judge."""
    callers.requests_calls = False
    quiet_at = time.monotonic() + QUIET_SECONDS
    time.sleep(SERVED_AGAIN_SECONDS)
    while callers.offered < calls:
        time.sleep(0.1)
        quiet_at = time.monotonic() + QUIET_SECONDS - SERVED_AGAIN_SECONDS
    callers.stop()
    callers.hang_up_all(seconds=quiet_at - GONE_SECONDS - time.monotonic())
    time.sleep(max(0.0, quiet_at - time.monotonic()))
    return stage.judge.verdict()


def strike(stage: Stage, fault: Fault | None, chance: random.Random) -> None:
    """Strike one kind of fault again and again, or all kinds, several at once."""
    striker = Striker(stage, chance)
    if fault is None:
        _Mix(striker, chance).play()
        return
    mean = sum(fault.seconds) / 2
    for _ in range(max(2, min(MOST_STRIKES, round(STRIKING_SECONDS / (mean + PAUSE_SECONDS))))):
        striker.play(fault)
        time.sleep(chance.uniform(0.5, 1.5) * PAUSE_SECONDS)


class _Mix:
    """All kinds of fault in a drawn order, in lanes; two that break the same part do not meet."""

    def __init__(self, striker: Striker, chance: random.Random) -> None:
        self._striker = striker
        self._left = list(FAULTS.values())
        chance.shuffle(self._left)
        self._pauses = {fault.name: chance.uniform(0.2, 2.0) for fault in self._left}
        self._broken: set[str] = set()
        #: How often faults that met no call in set-up were put back.
        self._again: Counter[str] = Counter()
        self._lock = threading.Lock()

    def play(self) -> None:
        with ThreadPoolExecutor(LANES, thread_name_prefix="lane") as pool:
            for done in [pool.submit(self._lane) for _ in range(LANES)]:
                done.result()

    def _lane(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                fault = next((one for one in self._left if one.part not in self._broken), None)
                if fault:
                    self._left.remove(fault)
                    self._broken.add(fault.part)
            if fault is None:
                time.sleep(0.1)
                continue
            has_met = True
            try:
                has_met = self._striker.play(fault)
            finally:
                with self._lock:
                    self._broken.discard(fault.part)
                    if not has_met and self._again[fault.name] < MOST_AGAIN:
                        # While all of Asterisk is away there is no set-up to strike: once more, later.
                        self._again[fault.name] += 1
                        self._left.append(fault)
            time.sleep(self._pauses[fault.name])


def shortcomings(verdict: dict[str, Any]) -> Iterator[str]:
    """Return why a run has failed; nothing if it has passed."""
    for violation in verdict["violations"]:
        yield f"{violation['kind']}: {violation['text']}"
        yield from (f"    {line}" for line in violation.get("story", ()))
    for what in ("connected", "listened"):
        if not verdict["totals"][what]:
            yield f"nothing to judge: no call was {what if what == 'connected' else 'listened to'}"
    struck: dict[str, int] = {}
    for fault in verdict["faults"]:
        # Without a target nothing was there to be broken.
        struck[fault["name"]] = struck.get(fault["name"], 0) + (fault["in_setup"] if fault["target"] else 0)
    for name, in_setup in struck.items():
        if not in_setup:
            yield f"not struck: {name} met no call in set-up"


def save(verdict: dict[str, Any], path: Path) -> None:
    """Write a verdict to a file."""
    path.write_text(json.dumps(verdict, indent=1))
