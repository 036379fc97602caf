"""What the statements of a migration would lock for longer than a change of the catalogue takes.

It reads the SQL's words, and no more SQL than our migrations use: a statement that it does not know is refused, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Tables that grow with the calls: every row of them is read or written by nothing in a migration.
BIG = frozenset({"calls", "attempts", "timeline"})

_NAME = r"(?:(?:ari|public)\.)?(?P<table>\w+)"
#: Statements that are short, whatever the size of the table. The locks of the others are judged by `_TABLE_RULES`.
_SHORT = (
    r"CREATE TABLE\b",
    r"CREATE (OR REPLACE )?(FUNCTION|TRIGGER|VIEW)\b",
    r"CREATE (SEQUENCE|TYPE|SCHEMA)\b",
    r"DROP (TRIGGER|FUNCTION|VIEW)\b",
    r"COMMENT ON\b",
    r"(SET|RESET) lock_timeout\b",
)
#: Within one ALTER TABLE of a big table: what is forbidden, and why.
_ACTIONS = (
    (r"ADD COLUMN(?: IF NOT EXISTS)? \S+ .*\bNOT NULL\b(?!.*\bDEFAULT\b)", "NOT NULL without a default"),
    (r"ADD COLUMN .*\bDEFAULT (?!(?:true|false|NULL|-?\d+(?:\.\d+)?|'[^']*'(?:::\w+)?)(?:\W|$))",
     "a default that is no constant rewrites every row"),
    (r"ADD COLUMN .*\b(?:GENERATED|serial|bigserial)\b", "a value made for every row rewrites it"),
    (r"ADD COLUMN .*\b(?:UNIQUE|PRIMARY KEY)\b", "makes an index under the lock"),
    (r"ADD COLUMN .*\bREFERENCES\b", "checks every row under the lock: add the constraint NOT VALID, then VALIDATE"),
    (r"ALTER (?:COLUMN )?\w+ (?:SET DATA )?TYPE\b", "rewrites every row"),
    (r"ALTER (?:COLUMN )?\w+ SET NOT NULL\b", "reads every row under the lock"),
    (r"ADD (?:CONSTRAINT \w+ )?(?:CHECK|FOREIGN KEY)\b(?!.*\bNOT VALID\b)",
     "checks every row under the lock: add it NOT VALID, then VALIDATE"),
    (r"ADD (?:CONSTRAINT \w+ )?(?:UNIQUE|PRIMARY KEY|EXCLUDE)\b(?!.*\bUSING INDEX\b)",
     "makes an index under the lock: make it CONCURRENTLY, then USING INDEX"),
    (r"(?:DROP (?!CONSTRAINT|DEFAULT)|RENAME\b)", "an earlier release beside it still uses it"),
    (r"SET (?:TABLESPACE|LOGGED|UNLOGGED)\b", "rewrites every row"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A statement of a migration.

    Args:
        autocommit: It is not part of a transaction.
    """

    text: str
    autocommit: bool = False


def complaints(statements: list[Statement]) -> list[str]:
    """Return what is wrong with the statements of one migration, each with the statement's beginning.

    Tables that the migration itself creates are empty, and free.
    """
    plain = [(one, words) for statement in statements for one, words in _split(statement)]
    created = {found["table"] for _, words in plain
               if (found := re.match(rf"CREATE TABLE (?:IF NOT EXISTS )?{_NAME}", words, re.IGNORECASE))}  # fmt: skip
    return [f"{reason}: {words[:90]}" for one, words in plain for reason in _of_statement(one, words, BIG - created)]


def _split(statement: Statement) -> Iterator[tuple[Statement, str]]:
    """Yield the single statements of a text, without comments, functions' bodies and line breaks."""
    text = re.sub(r"\$\$.*?\$\$", "''", statement.text, flags=re.DOTALL)
    text = re.sub(r"--[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    for part in text.split(";"):
        if words := " ".join(part.split()):
            yield statement, words


def _of_statement(statement: Statement, words: str, big: frozenset[str]) -> Iterator[str]:
    def begins(pattern: str) -> re.Match[str] | None:
        return re.match(pattern, words, re.IGNORECASE)

    is_concurrent = re.search(r"\bCONCURRENTLY\b", words, re.IGNORECASE) is not None
    if is_concurrent and not statement.autocommit:
        yield "CONCURRENTLY cannot be part of a transaction"
    elif found := begins(rf"CREATE (?:UNIQUE )?INDEX .*?\bON (?:ONLY )?{_NAME}"):
        if found["table"] in big and not is_concurrent:
            yield "no write is possible while the index is made: CONCURRENTLY"
    elif begins(r"(?:DROP INDEX|REINDEX)\b"):
        if not is_concurrent:
            yield "waits for the table's lock, and holds it: CONCURRENTLY"
    elif found := begins(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_NAME} (?P<actions>.*)"):
        if found["table"] in big:
            yield from _of_actions(found["actions"])
            if not statement.autocommit and re.search(r"\bVALIDATE\b", words, re.IGNORECASE):
                yield "reads every row while the transaction holds its other locks: by itself"
    elif found := begins(rf"(?:UPDATE (?:ONLY )?|DELETE FROM (?:ONLY )?|INSERT INTO ){_NAME}"):
        # The first row that is found ends an EXISTS.
        read = re.sub(r"\bEXISTS \(SELECT 1 FROM [\w.]+\)", "", words, flags=re.IGNORECASE)
        if found["table"] in big or any(re.search(rf"\bari\.{table}\b", read) for table in big):
            yield "reads or writes every row in one statement: in batches, by a process"
    elif not any(begins(pattern) for pattern in _SHORT):
        yield "not known to be short"


def _of_actions(actions: str) -> Iterator[str]:
    for action in re.split(r",(?![^(]*\))", actions):
        for pattern, reason in _ACTIONS:
            if re.match(pattern, action.strip(), re.IGNORECASE):
                yield reason
