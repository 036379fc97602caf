"""What a process says to Postgres: a proxy that reads the frontend's messages of the protocol, version 3.

A round trip ends with Sync, or is a simple Query: the process waits for the answer there, and nowhere else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence

from devstack.tcp_proxy import TcpProxy

_SSL_REQUEST = 80877103
_WRITES = re.compile(r"(?<!FOR )(INSERT|UPDATE|DELETE)(?: INTO| FROM)? ((?:ari\.)?[a-z_]+)")
#: Not a function.
_READS = re.compile(r"FROM ((?:ari\.)?[a-z_]+)\b(?!\()")


class PostgresWire(TcpProxy):
    """A proxy in front of a Postgres; `url` is the URL through it, `round_trips` what was said so far."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        #: The statements of each round trip, in the order in which they ended.
        self.round_trips: list[tuple[str, ...]] = []
        self.hears = lambda: Frontend(self.round_trips.append).feed


class Frontend:
    """Reads what one connection's client sends.

    Args:
        said: Called with the statements of each round trip.
    """

    def __init__(self, said: Callable[[tuple[str, ...]], None]) -> None:
        self._said = said
        self._buffer = b""
        self._has_started = False
        #: Name → text, of prepared statements and of portals.
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._statements: list[str] = []

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._buffer += data
        while (message := self._next()) is not None:
            self._read(*message)

    def _next(self) -> tuple[bytes, bytes] | None:
        head = 1 if self._has_started else 0
        if len(self._buffer) < head + 4:
            return None
        (length,) = struct.unpack_from("!I", self._buffer, head)
        if len(self._buffer) < head + length:
            return None
        kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
        self._buffer = self._buffer[head + length :]
        if not self._has_started:
            self._has_started = struct.unpack_from("!I", body)[0] != _SSL_REQUEST
            return b"", b""
        return kind, body

    def _read(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"Q":
                self._statements.append(_text(body))
                self._end()
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = _text(text)
            case b"B":
                portal, name, _ = body.split(b"\0", 2)
                self._portals[portal] = self._prepared.get(name, "?")
            case b"E":
                self._statements.append(self._portals[body.split(b"\0", 1)[0]])
            case b"S":
                self._end()

    def _end(self) -> None:
        statements, self._statements = tuple(self._statements), []
        if statements:
            self._said(statements)


def _text(text: bytes) -> str:
    return " ".join(text.rstrip(b"\0").decode(errors="replace").split())


def name(statement: str) -> str:
    """Return a statement by its verb, and by the tables that it writes or, if it only reads, reads first."""
    writes = [f"{verb} {table}" for verb, table in _WRITES.findall(statement)]
    if writes:
        return ", ".join(dict.fromkeys(writes))
    reads = _READS.search(statement)
    verb = statement.split(maxsplit=1)[0].upper()
    if reads is None:
        return verb
    return f"{verb} {reads[1]}{' FOR UPDATE' if 'FOR UPDATE' in statement else ''}"


def is_bracket(statement: str) -> bool:
    """True for what begins or ends a transaction."""
    return statement.upper() in ("BEGIN", "COMMIT", "ROLLBACK")


def commits(round_trips: Sequence[tuple[str, ...]]) -> int:
    """Return how many writing transactions a connection committed. Outside of any, what is sent together is one."""
    count, is_open = 0, False
    for statements in round_trips:
        writes = False
        for statement in statements:
            if is_bracket(statement):
                count += statement.upper() == "COMMIT"
                is_open = statement.upper() == "BEGIN"
            elif not is_open and _WRITES.search(statement):
                writes = True
        count += writes
    return count
