"""The plans of all statements that a database executes, read from the log of its Postgres (auto_explain)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

_SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_format": "json",
}
#: An entry of the log; lines after its first begin with a tab.
_PLAN = re.compile(r"LOG:  duration: ([0-9.]+) ms  plan:\n((?:\t.*\n)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One statement as it was executed."""

    query: str
    milliseconds: float
    #: The indexes it used.
    indexes: frozenset[str]
    #: The tables it read from end to end.
    scanned: frozenset[str]
    #: How many rows it returned, and how many it looked at in tables and indexes for that.
    rows: int
    read: int


class Plans:
    """Logs the plan of every statement of a database from its next session on, and reads them.

    Args:
        log: The log of its Postgres.
    """

    def __init__(self, url: str, log: Path) -> None:
        self._log = log
        self._read = log.stat().st_size
        with psycopg.connect(url, autocommit=True) as connection:
            database = sql.Identifier(connection.info.dbname)
            for name, value in _SETTINGS.items():
                setting = sql.SQL(".").join(map(sql.Identifier, name.split(".")))
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, setting, sql.Literal(value))
                )

    def new(self) -> list[Plan]:
        """Return the plans of the statements since the last look."""
        with self._log.open(encoding="utf-8") as log:
            log.seek(self._read)
            text = log.read()
        self._read += len(text.encode())
        return [_plan(float(found[1]), json.loads(found[2])) for found in _PLAN.finditer(text)]


def _plan(milliseconds: float, explained: Mapping[str, Any]) -> Plan:
    nodes = list(_nodes(explained["Plan"]))
    return Plan(
        query=" ".join(explained["Query Text"].split()),
        milliseconds=milliseconds,
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        scanned=frozenset(node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"),
        rows=round(explained["Plan"]["Actual Rows"]),
        read=round(sum(_read(node) for node in nodes if "Relation Name" in node or "Index Name" in node)),
    )


def _read(node: Mapping[str, Any]) -> float:
    removed = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)
