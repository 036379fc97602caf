"""Two servers behind one address, which leads to the other one after a fail-over: of Redis, of Postgres."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import redis

from devstack import servers, tcp_proxy
from devstack.pipeline import wait_until
from shared.storage import migrations
from tests.support import worker_harness


class Failover:
    """Connect to `url`. `old` and `new` are clients of the two servers themselves."""

    def __init__(self, proxy: tcp_proxy.TcpProxy, old: redis.Redis, new: redis.Redis, new_url: str) -> None:
        self.url = proxy.url
        self.new_url = new_url
        self.old = old
        self.new = new
        self._proxy = proxy

    def happen(self) -> None:
        """Make the old master a replica of the new one. It still answers; only new connections lead to the new one."""
        self.move()
        new = urlsplit(self.new_url)
        self.old.config_set("masterauth", new.password or "")
        self.old.replicaof(new.hostname, new.port)
        worker_harness.until(lambda: self.old.role()[0] == b"slave", seconds=5, what="not demoted")

    def move(self) -> None:
        """Lead new connections to the new server; the old one refuses nothing yet."""
        self._proxy.lead_to(self.new_url)


@contextlib.contextmanager
def servers_in(folder: Path) -> Iterator[Failover]:
    """Start the two servers."""
    with contextlib.ExitStack() as stack:
        name = uuid.uuid4().hex[:8]
        old, new = (stack.enter_context(servers.Redis(folder / f"{part}-{name}")) for part in ("old", "new"))
        password = urlsplit(old.url).password or ""
        with redis.Redis.from_url(new.url) as configuring:
            configuring.config_set("requirepass", password)
        new_url = old.url.replace(f":{urlsplit(old.url).port}/", f":{urlsplit(new.url).port}/")
        yield Failover(
            stack.enter_context(tcp_proxy.TcpProxy(old.url)),
            stack.enter_context(redis.Redis.from_url(old.url)),
            stack.enter_context(redis.Redis.from_url(new_url)),
            new_url,
        )


class PostgresFailover:
    """Connect to `url`. `old` and `new` are the servers themselves, `new` a streaming replica until it happens."""

    def __init__(self, proxy: tcp_proxy.TcpProxy, old: servers.Postgres, new: servers.Postgres) -> None:
        self.url = proxy.url
        self.old = old
        self.new = new
        self._proxy = proxy

    def happen(self) -> None:
        """Promote the replica. The old server lives on, read-only; only new connections lead to the new one."""
        with psycopg.connect(self.old.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
        self._move()

    def happen_frozen(self) -> None:
        """Promote the replica, with all that was committed until now. The old server answers nothing any more."""
        with (
            psycopg.connect(self.old.url, autocommit=True) as old,
            psycopg.connect(self.new.url, autocommit=True) as new,
        ):
            at = old.execute("SELECT pg_current_wal_lsn()").fetchone()
            wait_until(
                lambda: new.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", at).fetchone() == (True,),
                seconds=10,
                every=0.01,
                what="the replica has what was committed",
            )
        self.old.freeze()
        self._move()

    def _move(self) -> None:
        self._proxy.lead_to(self.new.url)
        self.new.promote()


@contextlib.contextmanager
def postgres_in(folder: Path) -> Iterator[PostgresFailover]:
    """Start two Postgres servers: one with the schema, and its replica."""
    name = uuid.uuid4().hex[:8]
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(servers.Postgres(folder / f"old-postgres-{name}", durable=False))
        migrations.upgrade(old.url)
        new = stack.enter_context(servers.Postgres(folder / f"new-postgres-{name}", durable=False, standby_of=old))
        yield PostgresFailover(stack.enter_context(tcp_proxy.TcpProxy(old.url)), old, new)
