"""arictl as the program it is, and a database for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.storage import database

ROOT = Path(__file__).parents[1]
Arictl = Callable[..., subprocess.CompletedProcess[str]]


def runner(database_url: str, folder: Path) -> Arictl:
    """Runs a command with these settings, in a folder; standard input is empty unless given."""

    def run(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"DATABASE_URL": database_url, "SECRET_KEY": "a key for arictl's tests", "PYTHONPATH": str(ROOT)}
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        return subprocess.run(
            [sys.executable, "-m", "arictl.main", *words],
            check=False, input=stdin, capture_output=True, text=True, timeout=60, cwd=folder,
            env=kept | {"COLUMNS": "250", "PYTHONWARNINGS": "error"} | settings | environment,
        )  # fmt: skip

    return run


@contextlib.contextmanager
def filled(database_url: str) -> Iterator[database.Database]:
    """A database with two organizations and a workflow of each."""
    made = database.Database(database_url, size=2)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO organizations (provider_id) VALUES ('o1'), ('o2')")
        connection.execute(
            "INSERT INTO workflows (id, name, organization_id, workflow_definition, template_context_variables,"
            " call_disposition_codes) VALUES (5, 'w', 1, '{}', '{}', '{}'), (6, 'w', 2, '{}', '{}', '{}')"
        )
    yield made
    made.close()


def failed(done: subprocess.CompletedProcess[str], *said: str, lines: int = 1) -> None:
    """It failed, and said why in one clear line."""
    assert done.returncode == 1, done
    assert len(done.stderr.strip().splitlines()) == lines, done.stderr
    assert done.stderr.startswith("arictl: ")
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr
