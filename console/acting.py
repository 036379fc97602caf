"""What an action of a page works with: who acts, for the audit; the writer of calls; the queue and Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis

from console.pages import Visit
from shared import queues
from shared.operator import audit
from shared.storage import call_writer, database, id_prefixes, postgres_calls


def actor(visit: Visit) -> audit.Actor:
    """Return the user who acts."""
    return audit.Actor(who=visit.user.name, via="console")


@contextlib.contextmanager
def queue(visit: Visit) -> Iterator[queues.BrokerCommandQueue]:
    """Open the queue, for one action."""
    with contextlib.closing(queues.broker(visit.console.config.redis_url.get_secret_value())) as broker:
        yield queues.BrokerCommandQueue(broker)


def writer(visit: Visit, db: database.Database, commands: queues.BrokerCommandQueue) -> call_writer.CallWriter:
    """Return a writer of calls that writes to `db`. What it orders and Redis does not take is left to the sweep."""
    config = visit.console.config
    prefix = id_prefixes.IdPrefixes(visit.console.db, override=config.id_prefix).current()
    calls = postgres_calls.PostgresCalls(db, who=f"console, {visit.user.name}", prefix=prefix)
    return call_writer.CallWriter(calls, commands, config.limits(), who="console")


@contextlib.contextmanager
def redis_client(visit: Visit) -> Iterator[redis.Redis]:
    """Open a client of the pipeline's Redis."""
    with contextlib.closing(queues.client(visit.console.config.redis_url.get_secret_value())) as client:
        yield client
