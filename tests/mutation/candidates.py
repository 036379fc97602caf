"""The mutants there can be: of which files, by which operators, and which lines are left out, with the reason."""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.mutating import mutate_code

from tests.mutants.mutants import ROOT
from tests.mutation import operators

_STEPS = "admission attempts awaited_legs bridge claims flow inbound leg_events media outbound resync teardown"
#: The core, the writer, and what carries calls through their steps.
TARGETS = ("shared/call", "shared/storage/call_writer.py", *(f"workers/{name}.py" for name in _STEPS.split()))

_Position = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutated:
    """A module with one change."""

    source: str
    #: The first line that is changed, before and after, without indentation; the second is empty if it is removed.
    line: str
    becomes: str


def modules() -> list[str]:
    """Return the paths of the files to mutate."""
    files = [file for target in TARGETS for file in ([target] if target.endswith(".py") else _files_in(target))]
    return [file for file in files if (ROOT / file).read_text()]


def reason_left_out(source: str, operator: str, start: _Position, end: _Position) -> str:
    """Return why a mutant is not tried; an empty text if it is."""
    if not operators.USED.fullmatch(operator):
        return "an operator that is not used"
    if "_Mul_" in operator and source.splitlines()[end[0] - 1][end[1] :].startswith(","):
        return "no multiplication: what follows in the signature is keyword-only"
    if operator == "core/AddNot" and _is_comparison(source, start, end):
        return "another operator does the same"
    for begin, until, reason in _ranges(source):
        if begin <= start and end <= until and (reason != _NUMBER or operator == "core/NumberReplacer"):
            return reason
    return ""


def mutated(source: str, operator: str, occurrence: int) -> Mutated | None:
    """Return a mutant of a module; None if it is no program."""
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(operator)(), occurrence)
    try:
        ast.parse(changed)
    except (SyntaxError, TypeError):
        return None
    lines = list(difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm=""))[3:]
    before, after = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
    return Mutated(source=changed, line=(before or [""])[0], becomes=(after or [""])[0])


_NUMBER = "the number of a bound: another one is another choice, not a mistake"


@functools.cache
def _ranges(source: str) -> list[tuple[_Position, _Position, str]]:
    """Return what is left out of a module: start, end, reason."""
    tree = ast.parse(source)
    parts = [part for node in ast.walk(tree) for part in _parts(node)]
    parts += [(statement, _NUMBER) for statement in tree.body if isinstance(statement, ast.Assign | ast.AnnAssign)]
    return [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset), why) for part, why in parts]


def _parts(node: ast.AST) -> Iterator[tuple[Any, str]]:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            yield node, "a log line"
        case ast.JoinedStr():
            yield node, "a text"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node, "for the type checker"
        case ast.ClassDef(bases=[*_, ast.Name(id="Protocol")] | [ast.Subscript(value=ast.Name(id="Protocol"))]):
            yield node, "a protocol has no code"
        case ast.ClassDef(name="Limits", body=body):
            yield from ((field, _NUMBER) for field in body if isinstance(field, ast.AnnAssign))
    if isinstance(node, ast.ClassDef):
        # Without it nothing works at all; frozen, slots and kw_only are for the type checker.
        yield from (
            (one, "the decorator of a dataclass") for one in node.decorator_list if "dataclass" in ast.dump(one)
        )
    if isinstance(node, ast.FunctionDef):
        yield from ((last, "the function ends there anyway") for last in _last(node) if _returns_nothing(last))
    for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        if annotation is not None:
            yield annotation, "an annotation"
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr):
        yield node, "a union of types"


def _last(block: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements after which a block may end."""
    match block:
        case ast.FunctionDef(body=body) | ast.With(body=body) | ast.match_case(body=body):
            yield from _last(body[-1])
        case ast.If(body=body, orelse=orelse):
            yield from (last for branch in (body, orelse) if branch for last in _last(branch[-1]))
        case ast.Match(cases=cases):
            yield from (last for case in cases for last in _last(case))
        case _:
            yield block


def _returns_nothing(statement: ast.AST) -> bool:
    match statement:
        case ast.Return(value=None | ast.Constant(value=None)):
            return True
    return False


def _is_comparison(source: str, start: _Position, end: _Position) -> bool:
    lines = source.splitlines()[start[0] - 1 : end[0]]
    lines[-1] = lines[-1][: end[1]]
    text = f"({' '.join([lines[0][start[1] :], *lines[1:]])})"
    match ast.parse(text, mode="eval").body:
        case ast.Compare(ops=[_]) | ast.UnaryOp(op=ast.Not()):
            return True
    return False


def _files_in(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))
