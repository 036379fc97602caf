"""A session: mutants in a random order and what became of each, in a file of cosmic-ray's. It can be resumed."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

from tests.mutants.mutants import ROOT
from tests.mutation import candidates, equivalents, killers
from tests.mutation.candidates import Mutated


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mutant of the session."""

    job: str
    module: str
    function: str
    operator: str
    #: 1-based, in the module as it is.
    line_number: int
    change: Mutated
    #: The name of the killer and the test, `survived`, or empty if it was not tried yet.
    result: str = ""
    #: Why it changes nothing; empty if that is not known.
    equivalent: str = ""


class Session:
    """A session file, made when there is none for this seed and this state of the product."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._sources = {name: (ROOT / name).read_text() for name in candidates.modules()}
        digest = hashlib.sha256("".join(self._sources.values()).encode()).hexdigest()
        self.path = folder / f"seed-{seed}-{digest[:8]}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._equivalents = {one.key: one.reason for one in equivalents.every()}
        if not self.path.exists():
            self._make()
        self._db = WorkDB(str(self.path), WorkDB.Mode.open)

    def mutants(self) -> Iterator[Mutant]:
        """Yield the mutants in the random order of the seed, with their results if they have been tried."""
        results = dict(self._db.results)
        items = [item for item in self._db.work_items if not _is_left_out(results.get(item.job_id))]
        items.sort(key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].operator_name,
                                     item.mutations[0].occurrence))  # fmt: skip
        random.Random(self._seed).shuffle(items)
        for item in items:
            spec, module = item.mutations[0], str(item.mutations[0].module_path)
            change = candidates.mutated(self._sources[module], spec.operator_name, spec.occurrence)
            if change is None:
                continue
            result, function = results.get(item.job_id), spec.definition_name or ""
            yield Mutant(
                job=item.job_id,
                module=module,
                function=function,
                operator=spec.operator_name,
                line_number=spec.start_pos[0],
                change=change,
                result=(result.output or "") if result is not None else "",
                equivalent=self._equivalents.get((module, function, change.line, change.becomes), ""),
            )

    def store(self, mutant: Mutant, result: str) -> Mutant:
        """Store which killer has killed a mutant, or that none has."""
        outcome = TestOutcome.SURVIVED if result == killers.SURVIVED else TestOutcome.KILLED
        diff = f"-{mutant.change.line}\n+{mutant.change.becomes}"
        self._db.set_result(
            mutant.job,
            WorkResult(worker_outcome=WorkerOutcome.NORMAL, test_outcome=outcome, output=result, diff=diff),
        )
        return replace(mutant, result=result)

    def _make(self) -> None:
        """Find all mutants, and leave out those that tell nothing. An interrupted session file is not used."""
        unfinished = self.path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with use_db(str(unfinished)) as db:
            init([Path(name) for name in self._sources], db, {})
            jobs: dict[str, list[str]] = defaultdict(list)
            for item in db.work_items:
                (spec,) = item.mutations
                source = self._sources[str(spec.module_path)]
                jobs[candidates.reason_left_out(source, spec.operator_name, spec.start_pos, spec.end_pos)].append(
                    item.job_id
                )
            for reason in filter(None, jobs):
                result = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output=reason)
                db.set_multiple_results(jobs[reason], result)
        unfinished.rename(self.path)


def _is_left_out(result: WorkResult | None) -> bool:
    return result is not None and result.worker_outcome is WorkerOutcome.SKIPPED
