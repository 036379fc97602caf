"""The files of this checkout that the checks read: product code, tests and pages."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What is installed and runs in production.
PRODUCT = ("arictl", "console", "listener", "scheduler", "shared", "workers")
#: Stands beside the product and is run from a checkout only.
DEVELOPMENT = ("bench", "chaos", "devstack", "simulator")
PAGES = sorted([*(path.name for path in ROOT.glob("*.md")), *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))])


@cache
def text(name: str) -> str:
    """Return a file's text, by its path in the checkout."""
    return (ROOT / name).read_text()


def product_files(*suffixes: str) -> Iterator[str]:
    """Yield the path of every product file with one of these suffixes."""
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix()


def tests_files() -> Iterator[str]:
    """Yield the path of every Python file under tests/."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix()


def identifiers(name: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every identifier of a product file, Python or Lua."""
    if name.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text(name)).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                yield token.start[0], token.string
    else:
        for number, line in enumerate(text(name).splitlines(), 1):
            code = re.sub(r"'[^']*'|\"[^\"]*\"", "", line).partition("--")[0]
            yield from ((number, found) for found in re.findall(r"[A-Za-z_]\w*", code))


def strings(name: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string of a product file, docstrings and comments left out."""
    if name.endswith(".lua"):
        for number, line in enumerate(text(name).splitlines(), 1):
            code = line.partition("--")[0]
            yield from ((number, one or two) for one, two in re.findall(r"'([^']*)'|\"([^\"]*)\"", code))
        return
    tree = ast.parse(text(name))
    # An expression of its own is a docstring.
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


def log_events(name: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every event that a product file logs."""
    methods = {"debug", "info", "warning", "error", "exception", "critical"}
    for node in ast.walk(ast.parse(text(name))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in methods
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            yield node.lineno, node.args[0].value
