"""What a command answers: text for people, or with `--json` one JSON value for programs.

The JSON is that of the dataclass that the command answers with: docs/arictl.md has the fields of each. Moments are in
ISO 8601, UTC. Fields may be added, and are neither removed nor given another meaning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import date
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import typer

from arictl import tools

AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON: docs/arictl.md has its fields.")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an action has come to."""

    #: What was done, and to what, in words.
    message: str
    #: False: there was nothing to do.
    changed: bool


def done(message: str, *, as_json: bool, changed: bool = True) -> None:
    """Print what an action has come to, in words."""
    text = "\n".join(map(tools.plain, message.splitlines()))
    answer(Done(message=message, changed=changed), lambda: tools.out.print(text), as_json=as_json)


def answer(result: object, text: Callable[[], object], *, as_json: bool) -> None:
    """Print a command's answer: a dataclass, as JSON or by `text`."""
    if as_json:
        typer.echo(as_line(result))
    else:
        text()


def as_line(result: object) -> str:
    """Return a dataclass as JSON in one line, with a mark for each character that is none."""
    return json.dumps(plain(result), ensure_ascii=False).encode(errors="replace").decode()


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, UUID) else value
