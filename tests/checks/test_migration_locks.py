"""No migration holds a lock of a big table for longer than a change of the catalogue: calls go on beside it."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from shared.storage.migrations import versions
from tests.support.migration_locks import Statement, complaints

#: Those of v0.1.0-rc1, which make the schema: there is no table before them.
FIRST = ("0001_schema", "0002_platform")


class Operations:
    """Alembic's `op`, as far as our migrations use it: notes what is executed."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self._autocommit = False

    def execute(self, text: str) -> None:
        self.statements.append(Statement(text=text, autocommit=self._autocommit))

    def get_bind(self) -> object:
        """What a migration reads: that the platform's tables are those that migration 0002 makes."""
        return SimpleNamespace(execute=lambda _query: SimpleNamespace(scalars=lambda: ["workflow_runs_workflow"]))

    def get_context(self) -> Operations:
        return self

    @contextlib.contextmanager
    def autocommit_block(self) -> Iterator[None]:
        self._autocommit = True
        yield
        self._autocommit = False


def modules() -> dict[str, ModuleType]:
    found = [
        importlib.import_module(f"{versions.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(versions.__path__)
    ]
    return {module.revision: module for module in found}


def executed(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    operations = Operations()
    monkeypatch.setattr(module, "op", operations)
    module.upgrade()
    return operations.statements


#: Revisions are named as their files.
LATER = sorted({name for _, name, _ in pkgutil.iter_modules(versions.__path__)} - set(FIRST))


def test_every_migration_but_the_first_two_is_looked_at() -> None:
    assert {*FIRST, *LATER} == set(modules())
    assert LATER


@pytest.mark.parametrize("revision", LATER)
def test_a_migration_holds_no_lock_for_long(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints(executed(modules()[revision], monkeypatch)) == []


def test_a_migration_without_a_time_out_waits_outside_of_a_transaction_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is made beside calls waits for open transactions; everything else gives up early."""
    for module in modules().values():
        if module.revision in LATER:
            for statement in executed(module, monkeypatch):
                assert statement.autocommit or "lock_timeout" not in statement.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CREATE INDEX x ON ari.calls (state)", "no write is possible"),
        ("CREATE UNIQUE INDEX IF NOT EXISTS x ON ari.timeline (id)", "no write is possible"),
        ("CREATE INDEX CONCURRENTLY x ON ari.calls (state)", "cannot be part of a transaction"),
        ("DROP INDEX ari.calls_due", "waits for the table's lock"),
        ("REINDEX TABLE ari.calls", "waits for the table's lock"),
        ("ALTER TABLE ari.calls ADD COLUMN x integer NOT NULL", "NOT NULL without a default"),
        ("ALTER TABLE ari.calls ADD COLUMN y text, ADD COLUMN IF NOT EXISTS x integer\n NOT NULL", "NOT NULL without"),
        ("ALTER TABLE ari.calls ADD COLUMN x timestamptz DEFAULT clock_timestamp()", "no constant"),
        ("ALTER TABLE ari.calls ADD COLUMN x uuid NOT NULL DEFAULT gen_random_uuid()", "no constant"),
        ("ALTER TABLE ari.calls ADD COLUMN x bigserial", "made for every row"),
        ("ALTER TABLE ari.calls ADD COLUMN x integer GENERATED ALWAYS AS (entry + 1) STORED", "made for every row"),
        ("ALTER TABLE ari.attempts ADD COLUMN x integer UNIQUE", "makes an index"),
        ("ALTER TABLE ari.attempts ADD COLUMN x integer REFERENCES ari.connections", "checks every row"),
        ("ALTER TABLE ari.calls ALTER COLUMN entry TYPE bigint", "rewrites every row"),
        ("ALTER TABLE ari.calls ALTER entry SET DATA TYPE bigint", "rewrites every row"),
        ("ALTER TABLE ari.calls ALTER COLUMN outcome SET NOT NULL", "reads every row"),
        ("ALTER TABLE ari.calls ADD CONSTRAINT x CHECK (entry > 0)", "checks every row"),
        ("ALTER TABLE ari.timeline ADD FOREIGN KEY (call_id) REFERENCES ari.calls", "checks every row"),
        ("ALTER TABLE ari.timeline ADD CONSTRAINT x UNIQUE (id, at)", "makes an index"),
        ("ALTER TABLE ari.timeline ADD PRIMARY KEY (id, at)", "makes an index"),
        ("ALTER TABLE ari.calls VALIDATE CONSTRAINT x", "by itself"),
        ("ALTER TABLE ari.calls DROP COLUMN args", "an earlier release"),
        ("ALTER TABLE ONLY calls RENAME COLUMN args TO arguments", "an earlier release"),
        ("ALTER TABLE ari.calls SET UNLOGGED", "rewrites every row"),
        ("UPDATE ari.calls SET changed_at = received_at", "every row"),
        ("DELETE FROM ari.timeline", "every row"),
        ("INSERT INTO ari.usage SELECT organization_id, now(), now(), 0 FROM ari.calls", "every row"),
        ("LOCK TABLE ari.calls", "not known to be short"),
        ("TRUNCATE ari.timeline", "not known to be short"),
        ("DROP TABLE ari.attempts", "not known to be short"),
        ("VACUUM FULL ari.calls", "not known to be short"),
        ("CLUSTER ari.calls USING calls_pkey", "not known to be short"),
        ("-- harmless\nCREATE TABLE ari.x (y integer); DROP TABLE ari.calls", "not known to be short"),
    ],
)
def test_what_would_lock_a_big_table_is_found(text: str, reason: str) -> None:
    (complaint,) = complaints([Statement(text=text)])
    assert reason in complaint


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE ari.calls ADD COLUMN x timestamptz, ADD COLUMN y boolean NOT NULL DEFAULT false",
        "ALTER TABLE ari.calls ADD COLUMN x text NOT NULL DEFAULT 'a'::text, ADD COLUMN y numeric(9,2)",
        "ALTER TABLE ari.calls ADD CONSTRAINT x CHECK (entry > 0) NOT VALID",
        "ALTER TABLE ari.timeline ADD CONSTRAINT x UNIQUE USING INDEX y",
        "ALTER TABLE ari.calls ALTER COLUMN x DROP NOT NULL",
        "ALTER TABLE ari.quotas ADD COLUMN x integer UNIQUE",
        "CREATE TABLE ari.x (y integer); CREATE INDEX z ON ari.x (y)",
        "CREATE INDEX z ON ari.leases (holder)",
        "CREATE FUNCTION ari.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM ari.calls; END $$",
        "UPDATE ari.quotas SET blocked = false",
    ],
)
def test_what_is_short_is_free(text: str) -> None:
    assert complaints([Statement(text=text)]) == []


def test_what_is_made_beside_calls_is_free() -> None:
    index = "CREATE INDEX CONCURRENTLY x ON ari.calls (state); DROP INDEX CONCURRENTLY ari.y"
    constraint = "ALTER TABLE ari.calls VALIDATE CONSTRAINT x"
    assert complaints([Statement(text=text, autocommit=True) for text in (index, constraint)]) == []
