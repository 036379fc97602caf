"""The worker process: wires the steps to their adapters and works until told to stop."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import structlog

from shared import outbound_calls, queues
from shared.asterisk import tcp_connector
from shared.platform import dograh
from shared.platform.dograh.quota_service import QuotaService
from shared.process import health, lifecycle, redis_clock, settings
from shared.storage import call_store, call_writer, connections, database, leases, quotas
from workers import pools
from workers.asterisks import ParallelRequests, RestAsterisks
from workers.ports import NoQuota, Quota, Tools

log = structlog.stdlib.get_logger(__name__)


def main() -> int:
    """Runs a worker; returns its exit status."""
    return lifecycle.main("worker", settings.Worker, run)


def run(config: settings.Worker, stop: threading.Event) -> None:
    """Works until `stop` is set, then finishes what is in hand and gives back the rest."""
    db = database.Database(config.database_url.get_secret_value(), size=config.database_pool, name=config.name)
    db.open()
    calls = call_store.PostgresStore(db, who=config.name, prefix=config.id_prefix)
    redis_url = config.redis_url.get_secret_value()
    in_parallel = ParallelRequests(sum(config.pool_threads.values()))
    limits = config.limits()
    known = connections.Connections(db)
    connector = tcp_connector.TcpConnector(config.guard())
    orders = queues.BrokerCommandQueue(queues.broker(redis_url))
    writer = call_writer.CallWriter(calls, orders, limits, who=config.name)
    routes = dograh.Routes(db)
    runs = dograh.Runs(db, storage_backend=config.storage_backend, run_completion=config.run_completion)
    accounts = dograh.Accounts(db)
    own_quotas = quotas.Quotas(db, now=calls.now)
    slots = quotas.Slots(own_quotas, accounts, default=config.concurrent_calls)
    tools = Tools(
        writer=writer,
        serves=frozenset(),
        asterisks=RestAsterisks(
            known, config.sealer(), limits, calls, requests_at_once=config.asterisk_requests, connector=connector
        ),
        routes=routes,
        runs=runs,
        quota=_quota(config, own_quotas, accounts),
        slots=slots.of,
        originates=outbound_calls.OutboundCalls(writer, routes, runs, known, slots=slots.of, prefix=config.id_prefix),
        connections=known,
        leases=leases.Leases(db),
        in_parallel=in_parallel,
        send_later=lambda message, wait: orders.send(message, wait=wait),
        redis_ms=redis_clock.RedisClock(queues.client(redis_url)).now_ms,
        prefix=config.id_prefix,
        token_secret=config.token_secret,
    )
    if tools.token_secret is None:
        log.warning("media tokens are off: anyone who can reach the voice agent can open a media socket")
    elif config.media_token_secret is None:
        log.info("media tokens are signed by a secret derived from the first SECRET_KEY: changing it changes them")
    mustered = pools.muster(
        redis_url,
        lambda serves: replace(tools, serves=serves),
        name=config.name,
        served=config.queues,
        threads=config.pool_threads,
    )
    for crew in mustered:
        crew.start()
    liveness = health.Liveness(config.health_file)
    log.info("worker started", queues=sorted(config.queues) or "all", threads=config.pool_threads)
    lifecycle.wait(stop, liveness.touch)
    log.info("worker stops: finishes what is in hand")
    pools.stop(mustered, config.drain_seconds)
    in_parallel.close()
    db.close()
    log.info("worker stopped")


def _quota(config: settings.Worker, own: quotas.Quotas, accounts: dograh.Accounts) -> Quota:
    match config.quota:
        case "sql":
            return own
        case "http":
            secret = config.mps_secret_key
            return QuotaService(
                accounts,
                config.limits(),
                url=config.mps_api_url,
                secret=secret.get_secret_value() if secret is not None else None,
                when_unreachable=config.quota_unreachable,
                # A call has three services at most.
                requests_at_once=config.worker_threads * 3,
            )
        case "none":
            return NoQuota()


if __name__ == "__main__":
    sys.exit(main())
