"""What may kill a mutant, the cheapest first. Each killer is a command that fails when it sees the mutant."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_UNIT = "tests/unit"
_STEPS = ("tests/simulation/test_situations.py", "tests/simulation/test_situations_outbound.py")
#: A mutant that loops uses up its processor time; one that waits for ever, the other. The machine may be busy.
_SECONDS = 900
_BOUNDED = 'ulimit -t 150; exec nice -n 19 "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Killer:
    """A command that fails when it sees a mutant."""

    name: str
    arguments: tuple[str, ...]


#: Of a mutant that no killer has seen.
SURVIVED = "survived"
NAMES = ("its unit tests", "step tests", "other unit tests", "histories")


def of_module(root: Path, module: str) -> list[Killer]:
    """Return the killers of a module's mutants, the cheapest first."""
    files = sorted(path.relative_to(root).as_posix() for path in (root / _UNIT).glob("test_*.py"))
    own = [file for file in files if _is_about(root / file, module)]
    # A test that never imports the module cannot see its mutants; on a busy machine it may fail all the same.
    others = [file for file in files if file not in own and module in _imported(root, file)]
    suites = dict(zip(NAMES, (own, _STEPS, others), strict=False))
    tests = [Killer(name=name, arguments=(*_PYTEST, *files)) for name, files in suites.items() if files]
    return [*tests, Killer(name=NAMES[-1], arguments=("tests.mutation.histories",))]


#: A killer whose test fails only at times is tried so often.
_FLAKES = 3
#: Such a test waits for threads or clocks.
_WAITS = re.compile(r"^import (?:threading|time)$", re.MULTILINE)

_running: set[subprocess.Popen[str]] = set()


def seen_by(killer: Killer, copy: Path) -> str:
    """Return the test by which a killer sees a mutant in a copy of the project; an empty text if it sees nothing.

    A test that may fail for want of time, on a busy machine, is run once more by itself.
    """
    for _ in range(_FLAKES):
        fails, output = _run(killer.arguments, copy)
        if not fails:
            return ""
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
        if failed is None:
            # No test of pytest's, or the mutant has come to no end.
            return killer.name
        file = copy / failed[1].partition("::")[0]
        if not _WAITS.search(file.read_text()) or _run((*_PYTEST, failed[1]), copy)[0]:
            return failed[1]
    return ""


def prepare(copy: Path) -> str:
    """Compile a copy of the unchanged project, and try it; return what fails, or an empty text.

    Only here is bytecode written: later on, that of a mutant could be taken for that of the module.
    """
    commands = ((*_PYTEST, _UNIT, *_STEPS), ("tests.mutation.histories", "100"))
    return next((" ".join(command) for command in commands if _run(command, copy, writes_bytecode=True)[0]), "")


def stop() -> None:
    """End all commands that run."""
    for process in list(_running):
        _end(process)


#: Of the plug-ins only what the tests need: to load them all takes longer than most tests.
_PYTEST = (
    "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-o", "timeout=90",
    "-o", "addopts=--import-mode=importlib",
)  # fmt: skip


def _run(arguments: tuple[str, ...], copy: Path, *, writes_bytecode: bool = False) -> tuple[bool, str]:
    """Run a command; return whether it fails, and what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "" if writes_bytecode else "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    process = subprocess.Popen(
        ["sh", "-c", _BOUNDED, "sh", sys.executable, "-m", *arguments],
        cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True,
    )  # fmt: skip
    _running.add(process)
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return True, ""
    finally:
        _end(process)
        _running.discard(process)
    return process.returncode != 0, output


def _is_about(test: Path, module: str) -> bool:
    """True if a test file imports the module, or is named like it. The tests of all transitions belong together."""
    name = module.removesuffix(".py").replace("/", ".")
    subject = "transitions" if "transitions" in name else Path(module).stem
    return subject in test.stem or name in _named(test)


@functools.cache
def _imported(root: Path, file: str) -> frozenset[str]:
    """Return the files that a file imports, directly or not."""
    found, due = set[str](), {file}
    while due:
        one = due.pop()
        found.add(one)
        paths = (name.replace(".", "/") for name in _named(root / one))
        due |= {
            path for stem in paths for path in (f"{stem}.py", f"{stem}/__init__.py") if (root / path).is_file()
        } - found
    return frozenset(found)


@functools.cache
def _named(file: Path) -> set[str]:
    """Return the names of what a file imports: modules, and what may be modules in packages."""
    names = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _end(process: subprocess.Popen[str]) -> None:
    """End a command together with all processes it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
