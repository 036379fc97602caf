"""How a process asks whether the servers it depends on are there: for `/readyz`."""

from __future__ import annotations

from collections.abc import Mapping

from shared.broker import redis_clients
from shared.process import settings
from shared.process.readiness import Check
from shared.storage import database


def of(config: settings.Base) -> Mapping[str, Check]:
    """Return server → how it is asked: Redis, Postgres for a process with a database, the platform's Redis if named.

    Without the platform's Redis calls are served, but nothing is counted or told there: it is no reason not to be
    ready. Each has a connection of its own: a pool that is empty for a moment is no server that is away.
    """
    checks = {"redis": Check(ask=redis_clients.client(config.redis_url.get_secret_value()).ping)}
    if isinstance(config, settings.WithDatabase):
        url = config.database_url.get_secret_value()
        checks["postgres"] = Check(ask=lambda: database.ask(url))
    if isinstance(config, settings.Worker | settings.Scheduler) and config.platform_redis_url is not None:
        theirs = redis_clients.client(config.platform_redis_url.get_secret_value())
        checks["platform-redis"] = Check(ask=theirs.ping, is_needed=False)
    return checks
