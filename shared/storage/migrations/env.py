"""Alembic's entry: runs the migrations on the connection that `shared.storage.migrations.upgrade` hands over."""

from __future__ import annotations

from alembic import context

# Each by itself: one that cannot be part of a transaction commits those before it.
context.configure(
    connection=context.config.attributes["connection"], version_table_schema="ari", transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
