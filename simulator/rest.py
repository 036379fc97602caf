"""The routes of ARI's REST interface, and the requests and answers of their handlers. HTTP itself is in `server`."""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from simulator import errors


@dataclass(kw_only=True)
class Request:
    """A parsed request; `names` are the decoded ids of the path, in order."""

    method: str
    query: Mapping[str, str]
    body: Any = None
    names: list[str] = field(default_factory=list)

    def text(self, name: str, default: str = "") -> str:
        """Returns a parameter, from the query or else from the JSON body."""
        if name in self.query:
            return self.query[name]
        value = self.body.get(name) if isinstance(self.body, dict) else None
        return default if value is None else str(value)

    def required(self, name: str) -> str:
        """Returns a required parameter.

        Raises:
            errors.Refusal: it is missing.
        """
        value = self.text(name)
        if not value:
            raise errors.Refusal(400, f"Missing parameter: {name}")
        return value

    def items(self, name: str) -> list[str]:
        """Returns a parameter that is a list: in the query one text, in the body a JSON list."""
        value = self.body.get(name) if isinstance(self.body, dict) and name not in self.query else None
        if isinstance(value, list):
            return [str(item) for item in value]
        return [item for item in separated(self.text(name)) if item]

    def number(self, name: str, default: float) -> float:
        """Returns a parameter that is a number.

        Raises:
            errors.Refusal: it is no number.
        """
        try:
            return float(self.text(name) or default)
        except ValueError as exc:
            raise errors.Refusal(400, f"Invalid parameter: {name}") from exc


def separated(text: str) -> list[str]:
    """Takes a list apart as Asterisk does: quotes, brackets and backslashes keep a comma within one of its parts."""
    parts, quoted, escaped, parentheses, brackets = [""], False, False, 0, 0
    for char in text:
        if escaped:
            parts[-1], escaped = parts[-1] + char, False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not (quoted or parentheses or brackets):
            parts.append("")
        else:
            parts[-1] += char
            parentheses = max(0, parentheses + (char == "(") - (char == ")"))
            brackets = max(0, brackets + (char == "[") - (char == "]"))
    return parts


@dataclass(frozen=True)
class Answer:
    """A status and a JSON body (None: no body)."""

    status: int
    body: Any = None


NO_CONTENT = Answer(204)

#: What a handler acts on: the switch, or the whole instance for control requests.
Owner = TypeVar("Owner")
Handler = Callable[[Owner, Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Route(Generic[Owner]):
    """`path` is relative to `/ari` (or `/simulator`); `*` stands for an id."""

    method: str
    path: str
    handler: Handler[Owner]


def match(routes: list[Route[Owner]], method: str, segments: list[str]) -> tuple[Handler[Owner], list[str]]:
    """Returns the handler of a path, and the ids in the path. Routes match in order: a fixed word goes before `*`.

    Raises:
        errors.Refusal: no such resource, or not with this method.
    """
    is_resource = False
    for route in routes:
        pattern = route.path.split("/")[1:]
        if len(pattern) == len(segments) and all(p in ("*", s) for p, s in zip(pattern, segments, strict=True)):
            if route.method == method:
                return route.handler, [s for p, s in zip(pattern, segments, strict=True) if p == "*"]
            is_resource = True
    raise errors.Refusal(405, "Invalid method") if is_resource else errors.Refusal(404, "Resource not found")


def new_id() -> str:
    """Returns an id as Asterisk generates it for a bridge."""
    return str(uuid.uuid4())
