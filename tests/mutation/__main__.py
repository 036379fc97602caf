"""`make mutation`: changes the product in many small ways, and counts how many of the changes the tests notice."""

from __future__ import annotations

import argparse
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutants import mutants as known
from tests.mutation import killers, operators
from tests.mutation.sessions import Mutant, Session

_FOLDER = known.ROOT / "var" / "mutation"
_LEAST_KILLED = 0.9
_PARALLEL = 2


def main() -> int:
    """Return 1 when less than 90 % of the mutants are killed."""
    parser = argparse.ArgumentParser(prog="make mutation")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no more mutants after this time")
    parser.add_argument("--seed", type=int, default=1, help="names the sample; a session of the same seed is resumed")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="size of the sample; default: all there are")
    parser.add_argument("--again", action="store_true", help="try the survivors of the session again, and nothing else")
    parser.add_argument("--list", action="store_true", help="try nothing: print the session's results")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    operators.register()
    session = Session(_FOLDER, given.seed)
    chosen = _first(session.mutants(), given.most)
    if given.again:
        due = [mutant for mutant in chosen if mutant.result == killers.SURVIVED and not mutant.equivalent]
    else:
        due = [mutant for mutant in chosen if not mutant.result and not mutant.equivalent]
    tried = {mutant.job: mutant for mutant in chosen if mutant.result or mutant.equivalent}
    if not given.list:
        until = time.monotonic() + given.minutes * 60
        for mutant in _judged(session, due, until):
            tried[mutant.job] = mutant
            _say(f"{len(tried):>5}/{len(chosen)} {_place(mutant)}: {mutant.result}")
    return _report(list(tried.values()), len(chosen))


def _first(mutants: Iterator[Mutant], most: int) -> list[Mutant]:
    return [mutant for _, mutant in zip(range(most), mutants, strict=False)]


def _judged(session: Session, due: Sequence[Mutant], until: float) -> Iterator[Mutant]:
    """Yield the mutants as they are tried, two at a time, each in a copy of the project."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Mutant, str] | None] = queue.SimpleQueue()
    for mutant in due:
        waiting.put(mutant)

    def work(copy: Path) -> None:
        try:
            while time.monotonic() < until:
                mutant = waiting.get_nowait()
                results.put((mutant, _judge(mutant, copy)))
        except queue.Empty:
            pass
        finally:
            results.put(None)

    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        first, *others = copies = [Path(folder) / str(number) for number in range(_PARALLEL)]
        known.copy_to(first)
        if failed := killers.prepare(first):
            raise SystemExit(f"the unchanged project fails: {failed}")
        for copy in others:
            shutil.copytree(first, copy)
        threads = [threading.Thread(target=work, args=(copy,), daemon=True) for copy in copies]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                while (result := results.get()) is not None:
                    yield session.store(*result)
        finally:
            killers.stop()


def _judge(mutant: Mutant, copy: Path) -> str:
    """Return the killer of a mutant, and the test."""
    path = copy / mutant.module
    unchanged = path.read_text()
    path.write_text(mutant.change.source)
    try:
        for killer in killers.of_module(copy, mutant.module):
            if test := killers.seen_by(killer, copy):
                return f"{killer.name}: {test}"
        return killers.SURVIVED
    finally:
        path.write_text(unchanged)


def _report(tried: Sequence[Mutant], sample: int) -> int:
    """Print a table by module, and the survivors; return 1 when too many survive."""
    for mutant in tried:
        if mutant.result == killers.SURVIVED and not mutant.equivalent:
            _say(f"\nSURVIVED {_place(mutant)}\n  - {mutant.change.line}\n  + {mutant.change.becomes}")
    columns = (*killers.NAMES, killers.SURVIVED, "equivalent")
    _say("\n" + f"{'module':<42}{'mutants':>8}" + "".join(f"{name:>18}" for name in columns))
    for module in [*sorted({mutant.module for mutant in tried}), "all"]:
        counts = Counter(_column(mutant) for mutant in tried if module in (mutant.module, "all"))
        _say(f"{module:<42}{counts.total():>8}" + "".join(f"{counts[name]:>18}" for name in columns))
    counts = Counter(map(_column, tried))
    killed = sum(counts[name] for name in killers.NAMES)
    share = killed / max(1, killed + counts[killers.SURVIVED])
    _say(f"\n{share:.1%} killed: {killed} of {killed + counts[killers.SURVIVED]} ({sample} in the sample)")
    return 0 if share >= _LEAST_KILLED else 1


def _column(mutant: Mutant) -> str:
    return "equivalent" if mutant.equivalent else mutant.result.partition(":")[0]


def _place(mutant: Mutant) -> str:
    return f"{mutant.module}:{mutant.line_number} {mutant.function} {mutant.operator.partition('/')[2]}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
