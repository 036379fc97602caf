"""arictl as an operator runs it, and a database for it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pydantic

from arictl import answers, main, output
from shared.storage import database

ROOT = Path(__file__).parents[1]
Completed = subprocess.CompletedProcess[str]
Arictl = Callable[..., Completed]


def runner(database_url: str, folder: Path) -> Arictl:
    """Runs a command with these settings, in a folder; standard input is empty unless given.

    In this process, from the program's entry point on: a process of its own needs a second for its imports.
    """

    def run(*words: str, stdin: str = "", **environment: str) -> Completed:
        out, err, status = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, _environment(database_url, environment), clear=True),
            mock.patch.object(sys, "argv", ["arictl", *words]),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main.main()
            except SystemExit as exc:
                status = int(exc.code or 0)
        if "--json" in words and out.getvalue():
            check_answer(words, out.getvalue())
        return subprocess.CompletedProcess([*words], status, out.getvalue(), err.getvalue())

    return run


def program(database_url: str, folder: Path) -> Arictl:
    """Runs a command as `runner` does, in a process of its own."""

    def run(*words: str, stdin: str = "", **environment: str) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "arictl.main", *words],
            check=False, input=stdin, capture_output=True, text=True, timeout=60, cwd=folder,
            env=_environment(database_url, environment) | {"PYTHONWARNINGS": "error"},
        )  # fmt: skip

    return run


@contextlib.contextmanager
def started(database_url: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command that goes on, in a process of its own; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "arictl.main", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=folder, env=_environment(database_url, {}),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def check_answer(words: tuple[str, ...], text: str) -> None:
    """Assert that JSON has the fields that docs/arictl.md promises, and no others."""
    command = next(name for name in (" ".join(words[:2]), words[0]) if name in answers.ANSWERS)
    complaints = []
    for kind in answers.ANSWERS[command]:
        try:
            read: object = pydantic.TypeAdapter(kind).validate_json(text)
        except pydantic.ValidationError as exc:
            complaints.append(str(exc))
        else:
            assert output.plain(read) == json.loads(text), f"{command}: fields that {kind.__name__} has not"
            return
    raise AssertionError(f"{command} answers with something else: {complaints}")


def _environment(database_url: str, given: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": "a key for arictl's tests", "PYTHONPATH": str(ROOT)}
    return kept | {"COLUMNS": "250"} | settings | given


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


def failed(done: Completed, *said: str, lines: int = 1, status: int = 1) -> None:
    """It failed, and said why in one clear line. Status 3: it may succeed later."""
    assert done.returncode == status, done
    assert len(done.stderr.strip().splitlines()) == lines, done.stderr
    assert done.stderr.startswith("arictl: ")
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr
