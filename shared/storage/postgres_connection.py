"""One connection to Postgres, in libpq's pipeline mode: several statements in one round trip, each prepared once.

psycopg connects and converts values. Its cursors are left out: for one short statement they take longer than Postgres.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg import adapt, pq
from psycopg.pq import abc

Row: TypeAlias = dict[str, Any]
Values: TypeAlias = Sequence[Any] | Mapping[str, Any]

#: Postgres keeps what it has prepared, and its plan, in the connection's memory. There are fewer texts than this, all
#: built from constants: nothing is evicted, a statement beyond it is run without being prepared.
_MOST_PREPARED = 400
#: Added to the server's own time-outs: a server that stands still runs into none of them.
_GRACE_SECONDS = 3.0
#: Errors of a pooler that leads each transaction to another connection, where the statement was not prepared.
_NOT_KEPT = ("26000", "42P05")
#: Errors that each further use of the connection would meet as well: a statement was prepared before its table was
#: altered, and a server that stays read-only (after a fail-over another one is not).
_SPOILED = ("0A000", "25006")
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\))?s|%%")


@dataclass(frozen=True, slots=True)
class _Statement:
    """A statement as Postgres reads it, and the order of its values."""

    name: bytes
    text: bytes
    #: Of `%(name)s`; empty where the values have no names.
    names: tuple[str, ...]
    formats: list[adapt.PyFormat]

    def ordered(self, values: Values) -> Sequence[Any]:
        if isinstance(values, Mapping):
            return [values[name] for name in self.names]
        if self.names or len(values) != len(self.formats):
            raise psycopg.ProgrammingError(f"{len(values)} values for {len(self.formats)} placeholders")
        return list(values)


class Statements:
    """The statements that the connections of a pool have run, by their texts."""

    def __init__(self) -> None:
        #: False once a pooler in between has lost one: from then on nothing is prepared.
        self.are_kept = True
        self._known: dict[str, _Statement] = {}

    def of(self, text: str) -> _Statement:
        """Return the statement of a text with `%s` or `%(name)s` in the place of values."""
        known = self._known.get(text)
        # Of two threads that read one text at once, both go on with the first one's result.
        return known if known is not None else self._known.setdefault(text, _read(text))


def _read(text: str) -> _Statement:
    names: dict[str, int] = {}
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] == "%%":
            return "%"
        if found[1] is not None:
            return f"${names.setdefault(found[1], len(names) + 1)}"
        count += 1
        return f"${count}"

    sql = _PLACEHOLDER.sub(number, text).encode()
    return _Statement(
        # Behind a pooler another process may have prepared a statement of that name: it is this one, then.
        name=b"s%b" % hashlib.sha256(sql).hexdigest()[:16].encode(),
        text=sql,
        names=tuple(names),
        formats=[adapt.PyFormat.TEXT] * (len(names) or count),
    )


class Result:
    """The rows of a statement, once they have arrived."""

    def __init__(self) -> None:
        self._rows: list[Row] | None = None
        #: How many rows the statement returned or changed.
        self.rowcount = -1

    def arrived(self, rows: list[Row], rowcount: int) -> None:
        """Keep what the statement came to."""
        self._rows, self.rowcount = rows, rowcount

    def fetchone(self) -> Row | None:
        """Return the first row; None when there is none."""
        rows = self.fetchall()
        return rows[0] if rows else None

    def fetchall(self) -> list[Row]:
        """Return all rows."""
        assert self._rows is not None, "sent, and not waited for yet"
        return self._rows


@dataclass(frozen=True, slots=True)
class _Sent:
    statement: _Statement
    values: Sequence[Any]
    result: Result


class Connection:
    """Runs statements, in autocommit mode or in a transaction. Of one thread at a time.

    Args:
        statement_seconds: The server's own time-out of a statement.
    """

    def __init__(self, raw: psycopg.Connection[Any], statements: Statements, *, statement_seconds: float) -> None:
        self._pg = raw.pgconn
        # Sending does not wait for the server: libpq reads meanwhile what comes back.
        self._pg.nonblocking = 0
        self._pg.enter_pipeline_mode()
        self._adapter = adapt.Transformer(raw)
        self._statements = statements
        self._statement_seconds = statement_seconds
        self._readable = select.poll()
        self._readable.register(self._pg.socket, select.POLLIN)
        self._prepared: set[bytes] = set()
        self._unsent: list[_Sent] = []
        self._is_in_transaction = False
        #: A statement and its values that end each transaction: if it fails, nothing is committed.
        self.guard: tuple[str, Values] | None = None

    def clean_up(self) -> None:
        """Leave nothing to the next user: neither a statement nor a transaction. Close the connection if need be."""
        self._unsent.clear()
        self.guard = None
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            self._pg.finish()

    def execute(self, text: str, values: Values = ()) -> Result:
        """Run a statement, and what was sent before it, in one round trip; return its result.

        Raises:
            psycopg.Error: One of them failed, and those after it were not run. Outside of a transaction those before
                it were not either: they are one transaction.
        """
        result = self.send(text, values)
        self.flush()
        return result

    def send(self, text: str, values: Values = ()) -> Result:
        """Send a statement along with the next one that is waited for, or with the commit."""
        statement, result = self._statements.of(text), Result()
        dumped = self._adapter.dump_sequence(statement.ordered(values), statement.formats)
        self._unsent.append(_Sent(statement, dumped, result))
        return result

    def flush(self) -> None:
        """Run what was sent and not waited for; raises as `execute` does."""
        if not self._unsent:
            return
        if self.guard is not None and not self._is_in_transaction:
            # What is sent together is one transaction.
            self.send(*self.guard)
        batch, self._unsent = self._unsent, []
        try:
            failed = self._exchange(batch)
        except BaseException:
            # What is still to come would be taken for the answer to another statement.
            self._pg.finish()
            raise
        if failed is not None:
            error = psycopg.errors.error_from_result(failed)
            if error.sqlstate in _NOT_KEPT:
                self._statements.are_kept = False
            if error.sqlstate in _SPOILED:
                self._pg.finish()
            raise error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction; rolled back when the block raises. BEGIN and COMMIT cost no round trip of their own."""
        self.send("BEGIN")
        begin, self._is_in_transaction = self._unsent[-1], True
        try:
            yield
            if self._unsent == [begin]:
                self._unsent.clear()
            else:
                self._commit()
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._is_in_transaction = False

    def _commit(self) -> None:
        if self._pg.transaction_status == pq.TransactionStatus.INERROR:
            # Postgres would answer a COMMIT by rolling back, without an error.
            raise psycopg.errors.InFailedSqlTransaction("a statement of the transaction has failed")
        if self.guard is not None:
            self.send(*self.guard)
        self.execute("COMMIT")

    def _roll_back(self) -> None:
        self._unsent.clear()
        if self._pg.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
            # If that fails the connection is closed, which ends the transaction as well.
            with contextlib.suppress(psycopg.Error):
                self.execute("ROLLBACK")

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _exchange(self, batch: Sequence[_Sent]) -> abc.PGresult | None:
        """Send a batch and read its answers up to the end; return the error that broke it off."""
        are_prepared = [self._write(sent) for sent in batch]
        self._pg.pipeline_sync()
        seconds = self._statement_seconds * len(batch) + _GRACE_SECONDS
        failed = None
        for sent, is_prepared in zip(batch, are_prepared, strict=True):
            if is_prepared and _has_failed(answer := self._answer(seconds)):
                self._prepared.discard(sent.statement.name)
                failed = failed or answer
            if _has_failed(answer := self._answer(seconds)):
                failed = failed or answer
            else:
                self._load(answer, sent.result)
        end = self._receive(seconds)
        if end is None or end.status != pq.ExecStatus.PIPELINE_SYNC:
            raise self._lost(end)
        return failed

    def _write(self, sent: _Sent) -> bool:
        """Write one statement; return whether it is prepared with that."""
        statement = sent.statement
        if not self._statements.are_kept:
            self._pg.send_query_params(statement.text, sent.values)
            return False
        if statement.name in self._prepared:
            self._pg.send_query_prepared(statement.name, sent.values)
            return False
        if len(self._prepared) >= _MOST_PREPARED:
            self._pg.send_query_params(statement.text, sent.values)
            return False
        self._prepared.add(statement.name)
        self._pg.send_prepare(statement.name, statement.text)
        self._pg.send_query_prepared(statement.name, sent.values)
        return True

    def _load(self, answer: abc.PGresult, result: Result) -> None:
        count = answer.ntuples
        if not count:
            result.arrived([], answer.command_tuples or 0)
            return
        self._adapter.set_pgresult(answer)
        names = [(answer.fname(number) or b"").decode() for number in range(answer.nfields)]
        rows = self._adapter.load_rows(0, count, lambda row: dict(zip(names, row, strict=True)))
        result.arrived(rows, count)

    def _answer(self, seconds: float) -> abc.PGresult:
        """Return the answer to one command: a result, and the end of it."""
        answer = self._receive(seconds)
        if answer is None:
            raise self._lost(answer)
        if self._receive(seconds) is not None or self._pg.status != pq.ConnStatus.OK:
            raise self._lost(answer)
        return answer

    def _receive(self, seconds: float) -> abc.PGresult | None:
        while self._pg.is_busy():
            if not self._readable.poll(seconds * 1000):
                raise psycopg.OperationalError("no answer from Postgres in time")
            try:
                self._pg.consume_input()
            except psycopg.OperationalError:
                # The connection is lost. What Postgres has said before that is the next result.
                break
        return self._pg.get_result()

    def _lost(self, last: abc.PGresult | None) -> psycopg.OperationalError:
        """Return why the connection is lost: what Postgres said last, or else what libpq says."""
        if last is None or last.status != pq.ExecStatus.FATAL_ERROR:
            return psycopg.OperationalError(self._pg.get_error_message())
        said = psycopg.errors.error_from_result(last)
        return said if isinstance(said, psycopg.OperationalError) else psycopg.OperationalError(str(said))


def _has_failed(answer: abc.PGresult) -> bool:
    """True for an error, and for a statement which an error before it has kept from running."""
    return answer.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)
