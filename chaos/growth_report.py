"""What a long run grew by, in figures alone: docs/soak.json, and the tables of docs/chaos.md that are made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from chaos import growth, report
from chaos.growth import Growth
from chaos.soak import Sample

_MEBIBYTE = 1024 * 1024


class Level(TypedDict):
    """One quantity: after the warm-up, at the end, and at most. None where it is not known."""

    first: float | None
    last: float | None
    most: float | None
    #: After the warm-up of each life, as chaos/growth.py measures it; and what is allowed. None if it is not judged.
    per_10_minutes: float | None
    allowed: float | None


class Soak(TypedDict):
    """A long run. Memory and sizes are in MiB."""

    date: str
    commit: str
    asterisk: str
    seed: int
    #: Calls per second.
    rate: float
    minutes: float
    calls: int
    #: Kind of fault → number of strikes.
    faults: dict[str, int]
    violations: list[str]
    #: Name of the process → how often it was another one, and its quantities.
    lives: dict[str, int]
    processes: dict[str, dict[str, Level]]
    servers: dict[str, Level]
    #: Name → the most dead tuples, the live ones at the end, and sizes.
    tables: dict[str, dict[str, Level]]


def soak(
    samples: Sequence[Sample],
    verdict: Mapping[str, Any],
    *,
    grown: Sequence[str],
    commit: str,
) -> Soak:
    """Make the figures of a long run.

    Args:
        verdict: of the judge of calls.
        grown: what `growth.judge` found, a sentence each.
    """
    found = {(one.name, one.quantity): one for one in growth.growths(samples)}
    names = sorted({name for sample in samples for name in sample["processes"]})
    faults = [fault["name"] for fault in verdict["faults"]]
    return {
        "date": datetime.fromtimestamp(samples[0]["at"], UTC).date().isoformat(),
        "commit": commit,
        "asterisk": verdict["asterisk"],
        "seed": verdict["seeds"][0],
        "rate": verdict["rate"],
        "minutes": round((samples[-1]["at"] - samples[0]["at"]) / 60, 1),
        "calls": verdict["totals"]["offered"],
        "faults": {name: faults.count(name) for name in sorted(set(faults))},
        "violations": [*(f"{one['kind']}: {one['text']}" for one in verdict["violations"]), *grown],
        "lives": {name: len(_pids(samples, name)) for name in names},
        "processes": {name: _of_process(samples, name, found) for name in names},
        "servers": _of_servers(samples, found),
        "tables": _of_tables(samples),
    }


def save(made: Soak, path: Path) -> None:
    """Write the figures to a file."""
    path.write_text(json.dumps(made, indent=1) + "\n")


def read(path: Path) -> Soak | None:
    """Return the figures of a file; None if there is no file."""
    made: Soak | None = json.loads(path.read_text()) if path.exists() else None
    return made


# ── tables of docs/chaos.md ──────────────────────────────────────────────────────────────────────────────────────────


def tables(made: Soak | None) -> str:
    """Return what was run, then tables of the processes, the servers and Postgres's tables."""
    if made is None:
        return report.NOTHING
    about = (
        f"{made['minutes']:g} minutes on {made['date']}, commit `{made['commit']}`, Asterisk {made['asterisk']}, seed"
        f" {made['seed']}, {made['rate']:g} calls/s, {made['calls']} calls. Faults: "
        + ", ".join(f"{name} ({number})" for name, number in made["faults"].items())
        + f". Violations: {'; '.join(made['violations']) or 'none'}.\n\n"
    )
    return about + "\n".join([_processes_table(made), _servers_table(made), _tables_table(made)])


def _processes_table(made: Soak) -> str:
    heading = ("Process", "Lives", "Resident, MiB", "Growth in 10 min, MiB", "Open files", "Threads")
    rows = [
        (
            f"`{name}`",
            str(made["lives"][name]),
            _from_to(levels["resident_bytes"]),
            _growth(levels["resident_bytes"]),
            _from_to(levels["files"]),
            _from_to(levels["threads"]),
        )
        for name, levels in made["processes"].items()
    ]
    return report.table(heading, rows)


def _servers_table(made: Soak) -> str:
    rows = [(name, _from_to(level), _shown(level["most"]), _growth(level)) for name, level in made["servers"].items()]
    return report.table(("Server", "Minute 5, end", "Most", "Growth in 10 min"), rows)


def _tables_table(made: Soak) -> str:
    rows = [
        (
            f"`{name}`",
            _shown(levels["live"]["last"]),
            _shown(levels["dead"]["most"]),
            _from_to(levels["table_bytes"]),
            _from_to(levels["index_bytes"]),
        )
        for name, levels in made["tables"].items()
        # One row for ever: not among the tables of docs/data.md.
        if name != "ari.alembic_version"
    ]
    return report.table(("Table", "Live at the end", "Dead, most", "Table, MiB", "Indexes, MiB"), rows)


def _from_to(level: Level) -> str:
    return f"{_shown(level['first'])}, {_shown(level['last'])}"


def _growth(level: Level) -> str:
    """Show the growth and what is allowed; of too short lives nothing is known."""
    if level["per_10_minutes"] is None or level["allowed"] is None:
        return "-"
    return f"{level['per_10_minutes']:+.2f} of {level['allowed']:.2f}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Value = Callable[[Sample], float | None]


def _of_process(samples: Sequence[Sample], name: str, found: Mapping[tuple[str, str], Growth]) -> dict[str, Level]:
    def level(quantity: str) -> Level:
        def value(sample: Sample) -> float | None:
            process: Mapping[str, Any] | None = sample["processes"].get(name)
            return process[quantity] if process else None

        return _level(samples, value, quantity, found.get((name, quantity)))

    return {quantity: level(quantity) for quantity in ("resident_bytes", "files", "threads")}


def _of_servers(samples: Sequence[Sample], found: Mapping[tuple[str, str], Growth]) -> dict[str, Level]:
    def of(server: str, quantity: str) -> Level:
        def value(sample: Mapping[str, Any]) -> float | None:
            return sample[server.lower()][quantity] if sample[server.lower()] else None

        return _level(samples, value, quantity, found.get((server, quantity)))

    return {
        "Redis memory, MiB": of("Redis", "memory_bytes"),
        "Redis keys": of("Redis", "keys"),
        "Redis clients": of("Redis", "clients"),
        "Postgres connections": of("Postgres", "connections"),
    }


def _of_tables(samples: Sequence[Sample]) -> dict[str, dict[str, Level]]:
    names = {name for sample in samples if sample["postgres"] for name in sample["postgres"]["tables"]}

    def level(name: str, quantity: str) -> Level:
        def value(sample: Sample) -> float | None:
            found: Mapping[str, Any] | None = sample["postgres"]["tables"].get(name) if sample["postgres"] else None
            return found[quantity] if found else None

        return _level(samples, value, quantity)

    return {
        name: {quantity: level(name, quantity) for quantity in ("live", "dead", "table_bytes", "index_bytes")}
        for name in sorted(names)
    }


def _level(samples: Sequence[Sample], value: Value, quantity: str, found: Growth | None = None) -> Level:
    unit = _MEBIBYTE if quantity.endswith("_bytes") else 1
    warm = [sample for sample in samples if sample["at"] - samples[0]["at"] >= growth.WARM_UP_SECONDS]
    values = [one / unit for one in map(value, warm) if one is not None]
    slope, allowed = (found.per_10_minutes, found.most) if found else (None, None)
    return {
        "first": _rounded(values[:1]),
        "last": _rounded(values[-1:]),
        "most": _rounded([max(values)] if values else []),
        "per_10_minutes": None if slope is None else round(slope / unit, 3),
        "allowed": None if allowed is None else round(allowed / unit, 3),
    }


def _rounded(values: Sequence[float]) -> float | None:
    return round(values[0], 2) if values else None


def _pids(samples: Iterable[Sample], name: str) -> set[int]:
    return {sample["processes"][name]["pid"] for sample in samples if name in sample["processes"]}
