"""The documents say what is so: links, names, commands and settings exist, and the generated tables are current.

`UPDATE_DOCS=1 make test ARGS=tests/unit/test_docs.py` makes the generated tables anew.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from arictl import main as arictl
from devstack import asterisk_config
from shared import errors, keys, messages
from shared.assignments import SocketState
from shared.call import states
from shared.call.limits import Limits
from shared.call.steps import Step
from shared.process import settings

ROOT = Path(__file__).parents[2]
DOCS = (
    "architecture.md", "glossary.md", "configuration.md", "operations.md", "troubleshooting.md", "simulation.md",
    "lessons.md",
)  # fmt: skip
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{page}" for page in DOCS)]
REFRESH = "UPDATE_DOCS=1 make test ARGS=tests/unit/test_docs.py"
#: Who reads which settings: a class's own fields, under this heading.
READERS: dict[str, type[settings.Environment]] = {
    "Every process": settings.Base,
    "Every process and arictl doctor: where tenants' endpoints may lead": settings.Guarded,
    "With a database: worker and scheduler; arictl reads DATABASE_URL alone": settings.WithDatabase,
    "Listener and scheduler": settings.WithHeartbeats,
    "Listener": settings.Listener,
    "Worker": settings.Worker,
    "Scheduler": settings.Scheduler,
}
PROCESSES: list[type[settings.Base]] = [settings.Listener, settings.Worker, settings.Scheduler]
#: First words of a path in the checkout.
FOLDERS = "tests|docs|shared|workers|scheduler|listener|arictl|devstack|simulator"


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text()


def fences(page: str, *languages: str) -> Iterator[str]:
    """The code blocks of a page in these languages."""
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL):
        if match[1] in languages:
            yield match[2]


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def named(page: str) -> list[str]:
    """What stands in backticks, also across a line break."""
    return [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: str) -> list[str]:
    """Lines of shell blocks, and what stands in backticks."""
    joined = "\n".join(fences(page, "sh")).replace("\\\n", " ")
    return [*joined.splitlines(), *named(page)]


# ── what is generated ────────────────────────────────────────────────────────────────────────────────────────────────


def settings_tables() -> str:
    parts = []
    for heading, kind in READERS.items():
        own = {name: field for name, field in kind.model_fields.items() if name in inspect.get_annotations(kind)}
        rows = [(f"`{name.upper()}`", *_default_and_bounds(field), _said(field)) for name, field in own.items()]
        parts.append(f"## {heading}\n\n" + _table(("Variable", "Default", "Bounds", "Meaning"), rows))
    return "\n".join(parts)


def _default_and_bounds(field: Any) -> tuple[str, str]:
    default = "must be set" if field.is_required() else field.default
    if default is None or default == "":
        default = "not set"
    elif default != "must be set":
        default = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    bounds = [
        f"{sign} {value:g}"
        for bound in field.metadata
        for sign, attribute in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le"))
        if (value := getattr(bound, attribute, None)) is not None
    ]
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        bounds.append(", ".join(f"`{choice}`" for choice in choices))
    return str(default), ", ".join(bounds)


def _said(field: Any) -> str:
    assert field.description, "a setting without a description"
    return str(field.description)


def deadlines_table() -> str:
    limits = Limits()
    wait, checks, last = limits.queue_seconds, limits.media_checks, limits.max_step_retries
    begun = limits.attempt_wait().total_seconds()
    again = f"the step again, {last} times at most; then the call ends"
    rows = [
        ("`received`, `admitted`, `joining`", wait, again),
        ("`prepared`, no attempt begun", wait, again),
        ("`prepared`, attempt begun", begun, f"the next attempt, {limits.attempts} in all; then the call ends"),
        (
            "`prepared`, legs made, not ready",
            limits.media_check_seconds,
            f"Asterisk is asked for the leg, {checks} times at most; then the call ends",
        ),
        ("`connected`", limits.call_seconds, "the call ends (`CALL_SECONDS`)"),
        (
            "`ending`",
            wait,
            f"the teardown again, for ever; pauses from 1 s, doubling, to {limits.teardown_pause_seconds:g} s",
        ),
    ]
    shown = [(state, f"{seconds:g}", then) for state, seconds, then in rows]
    return _table(("State", "Seconds", "When overdue"), shown)


def claims_table() -> str:
    limits = Limits()
    made_of = {
        Step.ADMISSION: f"{limits.quota_seconds:g} for quota and the platform's tables",
        Step.RUNS: "two statements",
        Step.MEDIA: "one request",
        Step.BRIDGE: "one request",
        Step.TEARDOWN: "two requests",
    }
    rows = [(f"`{step}`", f"{limits.claim(step).total_seconds():g}", what) for step, what in made_of.items()]
    return _table(("Step", "Claim, seconds", "Made of"), rows) + (
        f"\nA request is {limits.connect_seconds:g} s to connect and {limits.read_seconds:g} s for the answer, a"
        f" statement\n{limits.database_seconds:g} s; each claim but that of `runs` has one statement on top.\n"
    )


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


@pytest.mark.parametrize(
    ("page", "name", "make"),
    [
        ("docs/configuration.md", "settings", settings_tables),
        ("docs/architecture.md", "deadlines", deadlines_table),
        ("docs/architecture.md", "claims", claims_table),
    ],
)
def test_generated_tables_are_current(page: str, name: str, make: Callable[[], str]) -> None:
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    before, _, rest = text(page).partition(begin)
    found, marked, after = rest.partition(end)
    assert marked, f"{page} has no block {name}"
    made = f"\n{make()}\n"
    if os.environ.get("UPDATE_DOCS") and found != made:
        (ROOT / page).write_text(before + begin + made + end + after)
        text.cache_clear()
        found = made
    assert found == made, f"{page} is out of date, to make it anew: {REFRESH}"


def test_every_setting_is_on_the_page() -> None:
    kinds = [kind for _, kind in inspect.getmembers(settings, inspect.isclass) if issubclass(kind, settings.Base)]
    assert {name for kind in kinds for name in kind.model_fields} <= {
        name for kind in READERS.values() for name in kind.model_fields
    }


# ── what is named exists ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_that_are_named_exist(page: str) -> None:
    for name in named(page):
        for path, test in re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*)(?:::(\w+))?", name):
            assert (ROOT / path).exists(), f"{page} names {path}"
            if test:
                assert f"def {test}(" in (ROOT / path).read_text(), f"{page} names {path}::{test}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_are_named_exist(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE)
    for command in commands(page):
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", command):
            assert target in targets, f"{page} names make {target}"


@pytest.mark.parametrize("page", PAGES)
def test_environment_variables_that_are_named_are_read(page: str) -> None:
    known = {name.upper() for kind in PROCESSES for name in kind.model_fields} | {"POSTGRES_PASSWORD", "UPDATE_DOCS"}
    sources = [
        *ROOT.glob("devstack/*.py"),
        *ROOT.glob("arictl/*.py"),
        *ROOT.glob("shared/**/*.py"),
        # Channel variables, which the dialplan reads.
        *ROOT.glob("workers/*.py"),
        ROOT / "tests/conftest.py",
    ]
    read = "\n".join(path.read_text() for path in sources)
    makefile = set(re.findall(r"\b[A-Z]+\b", text("Makefile")))
    for command in commands(page):
        names = {*re.findall(r"\b([A-Z][A-Z]*(?:_[A-Z]+)+)\b", command), *re.findall(r"(?:^|\s)([A-Z]+)=", command)}
        for name in names - known - makefile:
            assert f'"{name}"' in read, f"{page} names {name}, which nothing reads"


@pytest.mark.parametrize("page", PAGES)
def test_arictl_commands_that_are_named_exist(page: str) -> None:
    for line in commands(page):
        for words in re.findall(r"(?:^|/)arictl ([a-z][^;|]*)", line):
            command: Any = typer.main.get_command(arictl.app)
            parts = words.split()
            while parts and hasattr(command, "commands"):
                name = parts.pop(0)
                assert name in command.commands, f"{page}: arictl {words}"
                command = command.commands[name]
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {part for part in parts if part.startswith("--")} <= options, f"{page}: arictl {words}"


def typed(page: str) -> Iterator[str]:
    """What the page has one type: lines of shell blocks, and those behind a prompt."""
    yield from "\n".join(fences(page, "sh")).replace("\\\n", " ").splitlines()
    for block in fences(page, "text"):
        yield from re.findall(r"^\$ (.+)$", block, re.MULTILINE)


def test_every_arictl_command_to_be_typed_is_taken() -> None:
    taken = 0
    for page in PAGES:
        for line in typed(page):
            found = re.match(r"(?:docker compose exec \w+ |.*/)?arictl ([^|;>#&]*)", line)
            if found is None:
                continue
            command: Any = typer.main.get_command(arictl.app)
            words = shlex.split(found[1])
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            # Raises when an argument is missing or of the wrong kind.
            command.make_context("arictl", words)
            taken += 1
    assert taken > 8


def test_the_readme_s_processes_are_the_procfile_s() -> None:
    lines = dict(re.findall(r"^(\w+): (.+)$", text("Procfile"), re.MULTILINE))
    assert dict(re.findall(r"^\| `(\w+)` \| `(python -m [\w.]+)` \|", text("README.md"), re.MULTILINE)) == lines


def test_the_drawing_has_every_state() -> None:
    (drawing,) = (block for block in fences("README.md", "mermaid") if block.startswith("stateDiagram"))
    drawn = set(re.findall(r"^ *(\w+) --> ", drawing, re.MULTILINE)) | set(re.findall(r"--> (\w+)", drawing))
    assert drawn == set(states.State)


def test_the_recommended_dialplan_is_what_the_tests_run_on() -> None:
    wanted = asterisk_config.Configuration(
        contexts={"inbound": "voiceai"},
        users={"voiceai": "x"},
        clients={"media": asterisk_config.Client(uri="wss://agent")},
    )
    files = asterisk_config.files(wanted, port=8088, password="x", modules="/")
    http, ari, client, dialplan = fences("README.md", "ini")
    assert dialplan in files["extensions.conf"]
    for shown, name in ((http, "http.conf"), (ari, "ari.conf"), (client, "websocket_client.conf")):
        assert _keys(shown) <= _keys(files[name]), name


def _keys(configuration: str) -> set[str]:
    """Sections and keys."""
    return set(re.findall(r"^(\w+|\[\w+\])", configuration, re.MULTILINE))


def test_every_queue_and_actor_is_in_the_architecture() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`\w+`(?:, `\w+`)*)", text("docs/architecture.md"), re.MULTILINE)
    shown = {actor: queue for queue, actors in rows for actor in re.findall(r"\w+", actors)}
    assert {actor: shown.get(actor) for actor in messages.ACTORS} == messages.ACTORS


def test_every_redis_key_is_in_the_architecture() -> None:
    ours = set(re.findall(r'"(ari:\w+)', (ROOT / inspect.getfile(keys)).read_text()))
    assert set(re.findall(r"^\| `(ari:\w+)", text("docs/architecture.md"), re.MULTILINE)) == ours


def test_every_table_is_in_the_architecture() -> None:
    migrations = "".join(path.read_text() for path in (ROOT / "shared/storage/migrations/versions").glob("*.py"))
    tables = set(re.findall(r"CREATE TABLE (ari\.\w+)", migrations))
    assert set(re.findall(r"^\| `(ari\.\w+)`", text("docs/architecture.md"), re.MULTILINE)) == tables


def test_the_glossary_has_the_words_of_the_code() -> None:
    words = {*states.State, *states.Outcome, *SocketState, *Step}
    assert {word for word in words if f"`{word}`" not in text("docs/glossary.md")} == set()


# ── files to copy ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_example_environment_wants_nothing_but_a_key(
    kind: type[settings.Base], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in kind.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(text(".env.example"))
    with pytest.raises(errors.InvalidSettings) as caught:
        settings.load(kind)
    assert re.findall(r"^  (\w+):", str(caught.value), re.MULTILINE) == ["SECRET_KEY"]
    monkeypatch.setenv("SECRET_KEY", "a key of more than sixteen")
    settings.load(kind)


def test_the_example_environment_names_settings_only() -> None:
    names = re.findall(r"^#?([A-Z_]+)=", text(".env.example"), re.MULTILINE)
    assert set(names) - {"POSTGRES_PASSWORD"} <= {name.upper() for kind in PROCESSES for name in kind.model_fields}
