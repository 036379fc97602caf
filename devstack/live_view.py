"""The live view of `make run`: prints calls as they connect and end, and warnings of the processes."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.text import Text

CALLS = """
    SELECT call_id, caller_number, called_number, received_at, connected_at, ended_at, outcome, reason
      FROM ari.calls
     WHERE received_at >= %(since)s AND (ended_at IS NULL OR ended_at >= %(since)s) AND call_id <> ALL (%(done)s)
     ORDER BY received_at
"""
#: In a log line of structlog's console format, or in an uncaught exception.
WARNING = re.compile(r"\[(warning|error|critical) *\]|Traceback|Error:")
STYLES = {"completed": "green", "abandoned": "yellow", "refused": "yellow", "failed": "red"}


class LiveView:
    """Follows the table of calls and the log of the processes.

    Args:
        database_url: the pipeline's database.
        log: the log file of the processes.
    """

    def __init__(self, console: Console, database_url: str, log: Path) -> None:
        self._console = console
        self._connection = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        row = self._connection.execute("SELECT clock_timestamp() AS now").fetchone()
        assert row
        self._since: datetime = row["now"]
        self._connected: set[UUID] = set()
        self._ended: set[UUID] = set()
        self._log = log
        self._log_read = log.stat().st_size if log.exists() else 0

    @property
    def ended(self) -> int:
        """The number of calls that have ended since the start."""
        return len(self._ended)

    def step(self) -> None:
        """Print the changes since the last step."""
        for call in self._connection.execute(CALLS, {"since": self._since, "done": list(self._ended)}):
            if call["connected_at"] and call["call_id"] not in self._connected:
                self._connected.add(call["call_id"])
                took = (call["connected_at"] - call["received_at"]).total_seconds()
                self._print(call, call["connected_at"], "connected", f"in {took * 1000:.0f} ms", "cyan")
            if call["ended_at"]:
                self._ended.add(call["call_id"])
                self._print(call, call["ended_at"], "ended", *_ending(call))
        self._warnings()

    def close(self) -> None:
        self._connection.close()

    def _print(self, call: dict[str, Any], at: datetime, what: str, how: str, style: str) -> None:
        line = Text(f"{at.astimezone():%H:%M:%S}  ")
        line.append(f"{what:<10}", style)
        line.append(f"{call['caller_number']} → {call['called_number']}  {how}")
        line.append(f"  {str(call['call_id'])[:8]}", "dim")
        self._console.print(line, soft_wrap=True)

    def _warnings(self) -> None:
        if not self._log.exists():
            return
        with self._log.open(errors="replace") as log:
            log.seek(self._log_read)
            while (line := log.readline()).endswith("\n"):
                self._log_read = log.tell()
                if WARNING.search(line):
                    self._console.print(Text(line.rstrip(), "yellow"), soft_wrap=True)


def _ending(call: dict[str, Any]) -> tuple[str, str]:
    outcome = call["outcome"] or "ended"
    how = str(outcome)
    if call["connected_at"]:
        how += f" after {(call['ended_at'] - call['connected_at']).total_seconds():.1f} s"
    if call["reason"] and outcome != "completed":
        how += f" ({call['reason']})"
    return how, STYLES.get(outcome, "magenta")
