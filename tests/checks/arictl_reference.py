"""The generated parts of docs/arictl.md: every command with its options, and the fields of its JSON."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import typer.main

from arictl import answers, main

#: A field's comment, and the field.
_FIELD = re.compile(r"((?:^ +#: .*\n)+)^ +(\w+):", re.MULTILINE)
_JSON = {
    str: "text",
    int: "number",
    float: "number",
    bool: "true or false",
    UUID: "text",
    datetime: "moment",
    date: "day",
}


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command's words, and the command."""
    yield from _commands("", typer.main.get_command(main.app))


def _commands(before: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        words = f"{before} {name}".strip()
        if hasattr(command, "commands"):
            yield from _commands(words, command)
        else:
            yield words, command


def command_tables() -> str:
    """A section for each command: what it does, its arguments and options."""
    parts = []
    for words, command in commands():
        shown = [parameter for parameter in command.params if parameter.name != "help"]
        arguments = " ".join(_argument(each) for each in shown if each.param_type_name == "argument")
        text = inspect.cleandoc(command.help or "").replace("\n\n", "\n\n").strip()
        part = f"### `arictl {f'{words} {arguments}'.strip()}`\n\n{text}\n"
        if shown:
            rows = [(_named(each), (each.help or "").replace("|", "\\|")) for each in shown]
            part += "\n| | |\n|---|---|\n" + "".join(f"| {name} | {meaning} |\n" for name, meaning in rows)
        answer = ", ".join(f"[`{kind.__name__}`](#{kind.__name__.lower()})" for kind in answers.ANSWERS.get(words, ()))
        parts.append(part + (f"\nWith `--json`: {answer}.\n" if answer else ""))
    return "\n".join(parts)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    metavar = "" if parameter.is_flag else f" `{parameter.metavar or 'TEXT'}`"
    default = parameter.default
    is_told = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    given = f", `{default}`" if is_told else ""
    return f"{names}{metavar}{' (required)' if parameter.required else ''}{given}"


def json_tables() -> str:
    """A section for each dataclass of an answer, and of what is in it: its fields."""
    found: dict[str, type] = {}
    for kinds in answers.ANSWERS.values():
        for kind in kinds:
            _collect(kind, found)
    parts = []
    for name, kind in sorted(found.items()):
        comments, hints = _comments(kind), get_type_hints(kind)
        lines = (inspect.getdoc(kind) or "").splitlines()
        rows = [
            (f"`{field.name}`", _shown(hints[field.name]), comments.get(field.name, ""))
            for field in dataclasses.fields(kind)
        ]
        table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
        parts.append(f"### {name}\n\n{lines[0]}\n\n| Field | Value | Meaning |\n|---|---|---|\n{table}")
    return "\n".join(parts)


def _collect(kind: Any, found: dict[str, type]) -> None:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        assert found.setdefault(kind.__name__, kind) is kind, f"two answers are called {kind.__name__}"
        for hint in get_type_hints(kind).values():
            _collect(hint, found)
    for part in get_args(kind):
        _collect(part, found)


def _comments(kind: type) -> Mapping[str, str]:
    """The comment `#:` above each field; one about several fields is that of the first."""
    return {
        name: re.sub(
            r"\bNone\b", "null", " ".join(line.strip().removeprefix("#:").strip() for line in lines.splitlines())
        )
        for lines, name in _FIELD.findall(inspect.getsource(kind))
    }


def _shown(hint: Any) -> str:
    origin, parts = get_origin(hint), [part for part in get_args(hint) if part is not type(None)]
    if origin in (Union, types.UnionType):
        return " or ".join([*dict.fromkeys(map(_shown, parts)), *(["null"] if type(None) in get_args(hint) else [])])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (tuple, list):
        return f"list of {_shown(parts[0])}"
    if origin is not None:
        assert issubclass(origin, Mapping | dict)
        return "object" if parts[1] in (Any, object) else f"object: name → {_shown(parts[1])}"
    return _shown_type(hint)


def _shown_type(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if issubclass(kind, Enum):
        return " or ".join(f"`{each.value}`" for each in kind)
    return _JSON[kind]
