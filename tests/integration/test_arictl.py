"""arictl as the program it is: its errors, help, options and `arictl db`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from arictl import main
from shared.storage import database
from tests import arictl_program
from tests.arictl_program import ROOT, Arictl, failed

pytestmark = pytest.mark.services


@pytest.fixture
def arictl(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.runner(database_url, tmp_path)


@pytest.fixture
def program(database_url: str, tmp_path: Path) -> Arictl:
    return arictl_program.program(database_url, tmp_path)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with arictl_program.filled(database_url) as made:
        yield made


def numbers(app: typer.Typer) -> Iterator[tuple[str, str, Any]]:
    """Every number that a command takes: the command's function, the parameter, and its option."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *options = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {int, float} & {kind, *get_args(kind)}:
                yield command.callback.__name__, name, *options
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from numbers(group.typer_instance)


def test_a_database_is_upgraded(program: Arictl, empty_database_url: str) -> None:
    for _ in range(2):
        done = program("db", "upgrade", DATABASE_URL=empty_database_url)
        assert (done.returncode, done.stderr) == (0, "")
        assert "The database is at revision" in done.stdout


def test_a_database_that_is_away_is_said_so(program: Arictl) -> None:
    done = program("db", "upgrade", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    failed(done, "Postgres cannot be reached", status=3)
    assert "hunter2" not in done.stderr


def test_wrong_settings_are_named(program: Arictl) -> None:
    done = program("calls", DATABASE_URL="mysql://u:hunter2@h/d")
    failed(done, "DATABASE_URL: must begin with postgresql://", lines=2)
    assert "hunter2" not in done.stderr


def test_an_argument_that_is_no_text_is_refused(arictl: Arictl) -> None:
    for words in (("calls", "--number"), ("trace",), ("dlq", "show")):
        failed(arictl(*words, "\udcff"), "not UTF-8", status=2)


def test_an_error_shows_no_control_codes(arictl: Arictl) -> None:
    done = arictl(
        *("connection", "add", "-o", "1", "--endpoint", "http://pbx", "--app", "a", "--ws-client", "m"),
        *("--ca-bundle", "/no/\x1b[2J\rforged"),
        ARI_PASSWORD="x" * 8,
    )
    failed(done, "cannot be read")
    assert not {"\x1b", "\r"} & set(done.stderr)


def test_every_command_explains_itself(arictl: Arictl) -> None:
    for command in (
        "db upgrade",
        "connection add",
        "connection remove",
        "connection unpark",
        "connection list",
        "calls",
        "trace",
    ):
        done = arictl(*command.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert "[/prefix]" in done.stdout or command != "connection add"


def test_a_database_without_the_schema_is_told_what_to_do(arictl: Arictl, empty_database_url: str) -> None:
    failed(arictl("connection", "list", DATABASE_URL=empty_database_url), "arictl db upgrade", lines=1)


def test_a_command_that_is_none_is_explained(program: Arictl) -> None:
    assert "Usage" in program("--help").stdout
    assert program("unheard-of").returncode == 2


@pytest.mark.parametrize(
    ("typed", "completed"), [("conn", "connection"), ("connection pa", "park"), ("dlq list --qu", "--queue")]
)
def test_words_are_completed_by_the_shell(arictl: Arictl, typed: str, completed: str) -> None:
    done = arictl(_ARICTL_COMPLETE="complete_bash", COMP_WORDS=f"arictl {typed}", COMP_CWORD=str(len(typed.split())))
    assert completed in done.stdout.split()


def test_every_number_has_bounds() -> None:
    found = list(numbers(main.app))
    assert len(found) > 10
    assert [(command, name) for command, name, option in found if option.min is None or option.max is None] == []


@pytest.mark.parametrize(
    ("words", "option", "bound"),
    [
        ("calls -o 99999999999", "--organization", "2147483647"),
        ("calls -o 0", "--organization", "1"),
        ("calls --limit 10001", "--limit", "10000"),
        ("quota show -o -1", "--organization", "1"),
        ("call 100 -o 1 --run 2147483648", "--run", "2147483647"),
        ("call 100 -o 1 --workflow 5 --ring-seconds 601", "--ring-seconds", "600"),
        ("call 100 -o 1 --workflow 5 --ring-seconds 0", "--ring-seconds", "1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(arictl: Arictl, words: str, option: str, bound: str) -> None:
    done = arictl(*words.split(), DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert (done.returncode, done.stdout) == (2, "")
    said = done.stderr.splitlines()[-1]
    assert option in said
    assert bound in said


def test_the_version_is_that_of_the_distribution(program: Arictl) -> None:
    done = program("--version")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"arictl {version}\n", "")


def test_every_command_that_asks_answers_with_the_json_that_is_promised(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The runner compares it with docs/arictl.md's fields. The commands that act are each tested where they act."""
    run = arictl_program.runner(database_url, tmp_path)
    with arictl_program.filled(database_url):
        for words in (
            "audit", "calls", "connection list", "dlq list", "dlq list --each", "dlq set", "doctor", "errors",
            "installation show", "processes", "quota list", "quota show -o 1", "top", "usage -o 1", "user list",
        ):  # fmt: skip
            done = run(*words.split(), "--json", REDIS_URL=redis_url)
            # The doctor finds no process.
            assert done.returncode == (1 if words == "doctor" else 0), (words, done)
            assert done.stdout.count("\n") == 1, words
