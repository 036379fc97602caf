"""What the documents name exists: links, files, tests, commands, settings, queues, actors, keys, tables, states."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from arictl import main as arictl
from devstack import asterisk_config
from shared import errors, keys, messages
from shared.assignments import SocketState
from shared.call import states
from shared.call.steps import Step
from shared.process import settings
from tests.checks.checkout import PAGES, ROOT, text

PROCESSES: list[type[settings.Base]] = [settings.Listener, settings.Worker, settings.Scheduler, settings.Web]
#: First words of a path in the checkout.
FOLDERS = "tests|docs|shared|workers|scheduler|listener|arictl|devstack|simulator|bench|chaos"


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
        *ROOT.glob("tests/contract/*.py"),
    ]
    read = "\n".join(path.read_text() for path in sources)
    makefile = set(re.findall(r"\b[A-Z][A-Z_]*\b", text("Makefile")))
    for command in commands(page):
        # OpenTelemetry reads its own: OTEL_TRACES_SAMPLER, for instance.
        known |= set(re.findall(r"\bOTEL_[A-Z_]+", command))
        names = {*re.findall(r"\b([A-Z][A-Z]*(?:_[A-Z]+)+)\b", command), *re.findall(r"(?:^|\s)([A-Z]+)=", command)}
        unread = sorted(name for name in names - known - makefile if f'"{name}"' not in read)
        assert unread == [], f"{page}: no code reads them, from `{command}`"


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


def rows(first: str) -> list[tuple[str, str]]:
    """Return first cell, of which `first` is the pattern, and the rest of every such table row of any page."""
    return [found for page in PAGES for found in re.findall(rf"^\| `({first}).*?` \|(.*)", text(page), re.MULTILINE)]


def test_a_drawing_has_every_state() -> None:
    drawings = [block for page in PAGES for block in fences(page, "mermaid") if block.startswith("stateDiagram")]
    assert drawings
    for drawing in drawings:
        drawn = set(re.findall(r"^ *(\w+) --> ", drawing, re.MULTILINE)) | set(re.findall(r"--> (\w+)", drawing))
        assert drawn == set(states.State)


#: Configuration file of Asterisk → what tells its excerpts from those of the others.
SIGN_OF_FILE = {
    "http.conf": "bindport=",
    "ari.conf": "type=user",
    "websocket_client.conf": "type=websocket_client",
    "extensions.conf": "exten =>",
}


def test_the_recommended_dialplan_is_what_the_tests_run_on() -> None:
    wanted = asterisk_config.Configuration(
        contexts={"inbound": "voiceai"},
        users={"voiceai": "x"},
        clients={"media": asterisk_config.Client(uri="wss://agent")},
    )
    files = asterisk_config.files(wanted, port=8088, password="x", modules="/")
    shown: dict[str, list[str]] = {name: [] for name in SIGN_OF_FILE}
    for block in (block for page in PAGES for block in fences(page, "ini")):
        (name,) = [name for name, sign in SIGN_OF_FILE.items() if sign in block]
        shown[name].append(block)
    assert all(shown.values())
    assert [block for block in shown.pop("extensions.conf") if block not in files["extensions.conf"]] == []
    for name, blocks in shown.items():
        for block in blocks:
            assert _keys(block) <= _keys(files[name]), name


def _keys(configuration: str) -> set[str]:
    """Sections and keys."""
    return set(re.findall(r"^(\w+|\[\w+\])", configuration, re.MULTILINE))


def test_every_queue_and_actor_is_documented() -> None:
    shown = {actor: queue for queue, cells in rows(r"\w+") for actor in re.findall(r"`(\w+)`", cells)}
    assert {actor: shown.get(actor) for actor in messages.ACTORS} == messages.ACTORS


def test_every_broker_key_that_a_page_names_exists() -> None:
    layout = text("shared/broker/layout.lua")
    keys_of_broker = set(re.findall(r"<ns>:([\w-]+)", layout))
    named = {key for page in PAGES for key in re.findall(r"ari-queue:([\w-]+)", text(page))}
    assert named, "no page names a key of the broker any more"
    assert named <= keys_of_broker


def test_every_redis_key_is_documented() -> None:
    ours = set(re.findall(r'"(ari:[\w-]+)', (ROOT / inspect.getfile(keys)).read_text()))
    assert {key for key, _ in rows(r"ari:[\w-]+")} == ours


def test_every_table_is_documented() -> None:
    migrations = "".join(path.read_text() for path in (ROOT / "shared/storage/migrations/versions").glob("*.py"))
    tables = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(ari\.\w+)", migrations))
    # `ari.conf` is a file of Asterisk.
    assert {table for table, _ in rows(r"ari\.(?!conf`)\w+")} == tables


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
