"""`python -m chaos`: chaos runs on this machine. See docs/chaos.md."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
from pathlib import Path

from chaos import chart, growth, growth_chart, growth_report, network, record, report, runs, tools
from chaos.faults import FAULTS
from devstack import asterisk_root, debian, folders

#: Of a mixed run, at least.
CALLS = 300


def main() -> int:
    """Play the runs that the command line names. Returns the exit status."""
    options = _arguments()
    try:
        # In the machine's own network: from within a run's no archive can be reached.
        tools.find()
        asterisk_root.find()
        network.enter()
    except (debian.Unavailable, network.NotPermitted) as exc:
        sys.stderr.write(f"no chaos run: {exc}\n")
        return 0 if options.where_possible and getattr(exc, "archive_unreachable", False) else 1
    results = options.results or folders.make(folders.home() / "chaos", mode=0o755)
    if options.soak is not None:
        return _soak(options, folders.make(results / "soak", mode=0o755))
    passed = [_play(plan, results / plan.name, options.save) for plan in _plans(options)]
    return 0 if all(passed) else 1


def _play(plan: runs.Plan, folder: Path, saved: Path | None) -> bool:
    """Play a run, report it, and return whether it has passed."""
    shutil.rmtree(folder, ignore_errors=True)
    folders.make(folder, mode=0o755)
    _say(f"{plan.name}: seeds {', '.join(map(str, plan.seeds))}; kept in {folder}")
    verdict = runs.play(plan, folder)
    runs.save(verdict, folder / "verdict.json")
    if saved:
        record.save(record.entry(verdict, name=plan.title, commit=record.describe_commit()), saved)
        chart.draw(record.read(saved), saved.parent)
    _say(report.text(verdict))
    failures = list(runs.shortcomings(verdict))
    for line in failures:
        _say(line)
    if failures:
        _say(f"to repeat it: python -m chaos {_again(plan)}")
    return not failures


def _soak(options: argparse.Namespace, folder: Path) -> int:
    seed = options.seed[0] if options.seed else secrets.randbelow(1_000_000)
    _say(f"soak of {options.soak:g} minutes: seed {seed}; kept in {folder}")
    verdict, samples = runs.soak(minutes=options.soak, rate=options.rate, seed=seed, results=folder)
    runs.save(verdict, folder / "verdict.json")
    growth_chart.draw(samples, verdict["faults"], folder / "soak.png")
    _say(report.text(verdict))
    grown = growth.judge(samples)
    failures = [*runs.shortcomings(verdict), *grown]
    if options.save:
        made = growth_report.soak(samples, verdict, grown=grown, commit=record.describe_commit())
        growth_report.save(made, options.save)
        growth_chart.draw(samples, verdict["faults"], options.save.with_suffix(".png"))
    for line in failures:
        _say(line)
    return 1 if failures else 0


def _plans(options: argparse.Namespace) -> list[runs.Plan]:
    seeds = [*options.seed, *([secrets.randbelow(1_000_000)] if options.draw or not options.seed else [])]
    if options.mixed:
        return [runs.Plan(name="mixed", seeds=seeds, rate=options.rate, calls=options.calls)]
    chosen = [fault for fault in FAULTS.values() if fault.name in options.fault or not options.fault]
    return [
        runs.Plan(name=fault.name.replace(" ", "-"), seeds=seeds, fault=fault, rate=options.rate) for fault in chosen
    ]


def _again(plan: runs.Plan) -> str:
    what = f'--fault "{plan.fault.name}"' if plan.fault else "--mixed"
    return " ".join([what, f"--rate {plan.rate:g}", *(f"--seed {seed}" for seed in plan.seeds)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--mixed", action="store_true", help="all faults at once, drawn by the seed")
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS, metavar="NAME", help="this kind only")
    parser.add_argument(
        "--seed", action="append", default=[], type=int, help="may be repeated: one mixed run after the other"
    )
    parser.add_argument("--draw", action="store_true", help="one more seed, drawn; without --seed one is drawn anyway")
    parser.add_argument("--rate", type=float, default=4.0, help="calls per second")
    parser.add_argument("--calls", type=int, default=CALLS, help="of a mixed run, at least")
    parser.add_argument("--results", type=Path, help="the folder for logs and verdicts")
    parser.add_argument("--save", type=Path, metavar="JSON", help="a file of figures; the charts are drawn beside it")
    parser.add_argument("--where-possible", action="store_true", help="no failure if Debian's archive is out of reach")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="kills and calls for long: what grows?")
    parser.add_argument("--list", action="store_true", help="print the faults")
    options = parser.parse_args()
    if options.list:
        _say("\n".join(FAULTS))
        sys.exit(0)
    return options


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
