"""One connection to Postgres, in libpq's pipeline mode: several statements in one round trip, each prepared once.

psycopg connects and converts values. Its cursors are left out: for one short statement they take longer than Postgres.

Behind a pooler in transaction mode each transaction may run on another connection to Postgres. So what a session keeps
is not relied on there: settings travel with each transaction, and statements are prepared if the pooler keeps them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg import adapt, pq
from psycopg.pq import abc

from shared import ongoing, spans

Row: TypeAlias = dict[str, Any]
Values: TypeAlias = Sequence[Any] | Mapping[str, Any]

#: Postgres keeps what it has prepared, and its plan, in the connection's memory. There are fewer texts than this, all
#: built from constants: nothing is evicted, a statement beyond it is run without being prepared.
_MOST_PREPARED = 400
#: Added to the server's own time-out of a statement: a server that stands still runs into none. The rest is for each
#: statement of a batch.
_GRACE_SECONDS = 1.0
_EACH_SECONDS = 0.05
#: After so many failures in a row the connection is to blame, whatever they were.
_MOST_FAILURES = 5
#: Errors of a pooler that leads each transaction to another connection, where the statement was not prepared.
_NOT_KEPT = ("26000", "42P05")
#: Errors that each further use of the connection would meet as well, as classes and states. First those of the server:
#: it is lost, it stops or starts, it is read-only (after a fail-over another one is not). Then those of what the
#: connection keeps: a statement was prepared before its table was altered.
_UNFIT_SERVER = ("08", "57P", "25006")
_UNFIT = (*_UNFIT_SERVER, "0A000", *_NOT_KEPT)
#: A statement that may not run on a read-only server.
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b")
#: A pooler names a process of its own where Postgres names the one that serves the connection.
_SET_UP = "SELECT is_direct{} FROM (SELECT pg_backend_pid() = %(pid)s AS is_direct) AS here"
#: A pooler that keeps prepared statements gives them names of its own, so none has the name that this one has here.
_PROBE = "SELECT count(*) AS found FROM pg_prepared_statements WHERE name = %s"
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\))?s|%%")


@dataclass(frozen=True, slots=True)
class _Statement:
    """A statement as Postgres reads it, and the order of its values."""

    name: bytes
    text: bytes
    #: Of `%(name)s`; empty where the values have no names.
    names: tuple[str, ...]
    formats: list[adapt.PyFormat]
    writes: bool
    #: Its verb: of a statement with parts, that of the one which writes.
    operation: str

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
        writes=(writes := _WRITES.search(text)) is not None,
        operation=writes[1] if writes is not None else text.split(maxsplit=1)[0].upper() if text.strip() else "",
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
        settings: Postgres's, by name: in force in each transaction.
        statement_seconds: The server's own time-out of a statement, one of the settings.

    Attributes:
        is_direct: False behind a pooler.
        wrote_at: When a statement last succeeded that a read-only server refuses, by the monotonic clock.
    """

    def __init__(
        self,
        raw: psycopg.Connection[Any],
        statements: Statements,
        settings: Mapping[str, str],
        *,
        statement_seconds: float,
    ) -> None:
        self._pg = raw.pgconn
        # A server that stands still takes nothing either: libpq would wait for it, without a bound.
        self._pg.nonblocking = 1
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
        self._failures = 0
        #: Sent with each transaction behind a pooler.
        self._setting: str | None = None
        #: What is prepared here stays with the connection, as far as is known.
        self._prepares = False
        self.wrote_at = float("-inf")
        self.is_direct = self._set_up(settings)
        self._prepares = True

    def _set_up(self, settings: Mapping[str, str]) -> bool:
        """Put the settings in force, for the session or, behind a pooler, for each transaction.

        They are no start-up parameters: a pooler refuses those it does not know, or leaves them out.
        """
        parts = "".join(f", set_config('{name}', %({name})s, NOT is_direct)" for name in settings)
        row = self.execute(_SET_UP.format(parts), {"pid": self._pg.backend_pid, **settings}).fetchone()
        assert row is not None
        if not row["is_direct"]:
            parts = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
            self._setting = f"SELECT {parts}"
            self._ask_pooler()
        return bool(row["is_direct"])

    def _ask_pooler(self) -> None:
        """Prepare nothing further if the pooler does not keep prepared statements."""
        if not self._statements.are_kept:
            return
        name = self._statements.of(_PROBE).name.decode()
        with self.transaction():
            self.flush()
            self._prepares = True
            row = self.execute(_PROBE, [name]).fetchone()
            self._prepares = False
            if row is None or row["found"]:
                self._statements.are_kept = False
                self.execute(f"DEALLOCATE {name}")

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
        if self._setting is not None and self._pg.transaction_status == pq.TransactionStatus.IDLE:
            at = 1 if batch[0].statement.text == b"BEGIN" else 0
            batch.insert(at, _Sent(self._statements.of(self._setting), (), Result()))
        seconds = self._statement_seconds + _GRACE_SECONDS + _EACH_SECONDS * len(batch)
        kept = spans.recording()
        began = time.time_ns() if kept is not None else 0
        try:
            with ongoing.task("Postgres", bound_seconds=seconds):
                failed = self._exchange(batch, seconds)
        except BaseException as exc:
            # What is still to come would be taken for the answer to another statement.
            self._pg.finish()
            if kept is not None:
                _keep_span(kept, batch, began, type(exc).__name__)
            raise
        error = None if failed is None else psycopg.errors.error_from_result(failed)
        if kept is not None:
            _keep_span(kept, batch, began, "" if error is None else type(error).__name__)
        if error is not None:
            self._judge(error)
            raise error
        self._failures = 0
        if any(sent.statement.writes for sent in batch):
            self.wrote_at = time.monotonic()

    def _judge(self, error: psycopg.Error) -> None:
        """Close the connection if it may not be used again."""
        self._failures += 1
        if error.sqlstate in _NOT_KEPT:
            self._statements.are_kept = False
        if self._failures >= _MOST_FAILURES or (error.sqlstate or "").startswith(_UNFIT):
            self._pg.finish()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction; rolled back when the block raises.

        BEGIN and COMMIT cost no round trip of their own. If nothing was waited for in the block, they are not sent at
        all: what is sent together is one transaction.
        """
        self.send("BEGIN")
        begin, self._is_in_transaction = self._unsent[-1], True
        try:
            yield
            if self._unsent and self._unsent[0] is begin:
                del self._unsent[0]
                self._is_in_transaction = False
                self.flush()
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

    def _exchange(self, batch: Sequence[_Sent], seconds: float) -> abc.PGresult | None:
        """Send a batch and read its answers up to the end; return the error that broke it off."""
        ends_at = time.monotonic() + seconds
        are_prepared = [self._write(sent) for sent in batch]
        self._pg.pipeline_sync()
        self._send_all(ends_at)
        failed = None
        for sent, is_prepared in zip(batch, are_prepared, strict=True):
            if is_prepared and _has_failed(answer := self._answer(ends_at)):
                self._prepared.discard(sent.statement.name)
                failed = failed or answer
            if _has_failed(answer := self._answer(ends_at)):
                failed = failed or answer
            else:
                self._load(answer, sent.result)
        end = self._receive(ends_at)
        if end is None or end.status != pq.ExecStatus.PIPELINE_SYNC:
            raise self._lost(end)
        return failed

    def _write(self, sent: _Sent) -> bool:
        """Write one statement; return whether it is prepared with that."""
        statement = sent.statement
        if not (self._prepares and self._statements.are_kept):
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

    def _answer(self, ends_at: float) -> abc.PGresult:
        """Return the answer to one command: a result, and the end of it."""
        answer = self._receive(ends_at)
        if answer is None:
            raise self._lost(answer)
        if self._receive(ends_at) is not None or self._pg.status != pq.ConnStatus.OK:
            raise self._lost(answer)
        return answer

    def _send_all(self, ends_at: float) -> None:
        """Send what libpq has not sent yet, and read meanwhile: a server whose answers are not taken takes nothing."""
        while self._pg.flush():
            self._readable.modify(self._pg.socket, select.POLLIN | select.POLLOUT)
            try:
                ready = self._wait(ends_at)
            finally:
                self._readable.modify(self._pg.socket, select.POLLIN)
            if ready & ~select.POLLOUT:
                self._pg.consume_input()

    def _receive(self, ends_at: float) -> abc.PGresult | None:
        while self._pg.is_busy():
            self._wait(ends_at)
            try:
                self._pg.consume_input()
            except psycopg.OperationalError:
                # The connection is lost. What Postgres has said before that is the next result.
                break
        return self._pg.get_result()

    def _wait(self, ends_at: float) -> int:
        """Wait for the socket; return what it is ready for. What is there is taken, however late."""
        ready = self._readable.poll(max(0.0, ends_at - time.monotonic()) * 1000)
        if not ready:
            raise psycopg.OperationalError("no answer from Postgres in time")
        return ready[0][1]

    def _lost(self, last: abc.PGresult | None) -> psycopg.OperationalError:
        """Return why the connection is lost: what Postgres said last, or else what libpq says."""
        if last is None or last.status != pq.ExecStatus.FATAL_ERROR:
            return psycopg.OperationalError(self._pg.get_error_message())
        said = psycopg.errors.error_from_result(last)
        return said if isinstance(said, psycopg.OperationalError) else psycopg.OperationalError(str(said))


def _keep_span(kept: spans.Recording, batch: Sequence[_Sent], began: int, error: str) -> None:
    """Keep a round trip as a span; its statements are told by what they do, as their texts are long."""
    operations = [sent.statement.operation for sent in batch]
    attributes = {"db.system.name": "postgresql", "db.operation.name": operations[-1]}
    name = " ".join(dict.fromkeys(operations))
    kept.add(
        f"postgresql {name}",
        kind=spans.Kind.CLIENT,
        began=began,
        ended=time.time_ns(),
        attributes={**attributes, "db.operation.batch.size": len(batch)},
        error=error,
    )


def _has_failed(answer: abc.PGresult) -> bool:
    """True for an error, and for a statement which an error before it has kept from running."""
    return answer.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)


def is_server_unfit(error: psycopg.Error) -> bool:
    """True if an error tells that the server may not be used, and not just this connection or one statement."""
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        # The server did not answer.
        return True
    return (error.sqlstate or "").startswith(_UNFIT_SERVER)
