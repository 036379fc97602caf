"""Alembic's entry: runs the migrations on the connection that `shared.storage.migrations.upgrade` hands over."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="ari")
context.run_migrations()
