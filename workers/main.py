"""The worker process: wires the steps to their adapters and works until told to stop."""

from __future__ import annotations

import secrets
import sys
import threading

import structlog

from shared import queues
from shared.asterisk import tcp_connector
from shared.asterisk.rest import AnswerBounds, AnswerKind
from shared.broker.bounds import Bounds
from shared.call.legs import Naming
from shared.inbound_lookup import InboundLookup
from shared.outbound_calls import OutboundCalls
from shared.platform import dograh
from shared.platform.dograh.quota_service import QuotaService
from shared.process import health, lifecycle, open_files, redis_clock, settings
from shared.storage import connections, database, id_prefixes, leases, quotas
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from workers import awaited_legs, pools, wiring
from workers.asterisks import RestAsterisks
from workers.call_allowance import CallAllowance
from workers.claims import Claim
from workers.step_ports import NoQuota, Quota
from workers.wiring import Adapters

log = structlog.stdlib.get_logger(__name__)

#: Each Asterisk that has had a request lately keeps a few sockets open.
_OPEN_FILES = 8192


def main() -> int:
    """Run a worker; return its exit status."""
    return lifecycle.main("worker", settings.Worker, run)


def run(config: settings.Worker, stop: threading.Event) -> None:
    """Work until `stop` is set, then finish the messages in work and give back the rest."""
    open_files.raise_limit(_OPEN_FILES)
    db = database.Database(
        config.database_url.get_secret_value(),
        size=config.database_pool,
        statement_seconds=config.database_seconds,
        idle_seconds=config.database_idle_seconds,
        name=config.name,
    )
    db.open()
    liveness = health.Liveness(config.health_file)
    prefix = lifecycle.wait_for(id_prefixes.IdPrefixes(db, override=config.id_prefix).current, stop, liveness.touch)
    if prefix is None:
        db.close()
        return
    store = PostgresCalls(db, who=config.name, prefix=prefix, rows_an_hour=config.timeline_rows)
    redis_url = config.redis_url.get_secret_value()
    bounds = Bounds(
        group_messages=config.group_messages,
        group_bytes=config.group_bytes,
        dead_letters=config.dead_letters,
        dead_letter_bytes=config.dead_letter_bytes,
    )
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting()
    limits = config.limits()
    known = connections.Connections(db)
    connector = tcp_connector.TcpConnector(config.guard(), lookups=config.name_lookups)
    commands = queues.BrokerCommandQueue(queues.broker(redis_url, bounds=bounds))
    # A claim ends with its owner's life: another one at each start.
    worker = f"{config.name}/{secrets.token_hex(4)}"
    # Filled below: the handlers, which need the writer and the Asterisks, come first.
    running: list[pools.WorkerPool] = []
    writer = CallWriter(
        store, commands, limits, who=worker, lives_since=lambda moment: pools.lives_since(running, moment)
    )
    dograh.Watch(db, config.platform_layout).try_to_look()
    routes = dograh.Routes(db, layout=config.platform_layout)
    runs = dograh.Runs(
        db,
        storage_backend=config.storage_backend,
        run_completion=config.run_completion,
        layout=config.platform_layout,
    )
    accounts = dograh.Accounts(db)
    own_quotas = quotas.Quotas(db, now=store.now)
    slots = quotas.Slots(own_quotas, accounts, default=config.concurrent_calls)
    asterisks = RestAsterisks(
        known,
        config.sealer(),
        limits,
        store,
        requests_at_once=config.asterisk_requests,
        most_sessions=lambda: pools.share(running, config.asterisk_sessions),
        connector=connector,
        bounds=_answer_bounds(config),
    )
    adapters = Adapters(
        writer=writer,
        asterisks=asterisks,
        routes=routes,
        runs=runs,
        quota=_quota(config, own_quotas, accounts),
        slots=slots,
        outbound_calls=OutboundCalls(writer, routes, runs, known, slots=slots.of, prefix=prefix),
        connections=known,
        lookup=InboundLookup(db, known, routes),
        leases=leases.Leases(db),
        awaited_legs=waiting.legs,
        send_later=lambda message, wait: commands.send(message, wait=wait),
        age_ms=redis_clock.PollingRedisClock(queues.client(redis_url)).age_ms,
        naming=Naming(prefix),
        allowance=CallAllowance(config.calls_per_hour),
        media_url=dograh.MediaUrl(config.token_secret),
    )
    if config.token_secret is None:
        log.warning("media tokens are off: anyone who can reach the voice agent can open a media socket")
    elif config.media_token_secret is None:
        log.info("media tokens are signed by a secret derived from the first SECRET_KEY: changing it changes them")
    running += pools.build_pools(
        redis_url,
        lambda serves, tag: wiring.handlers(adapters, serves=serves, tag=lambda: tag),
        store=store,
        name=worker,
        served=config.queues,
        threads=config.pool_threads,
        bounds=bounds,
    )
    for pool in running:
        pool.start()
    log.info("worker started", queues=sorted(config.queues) or "all", threads=config.pool_threads)
    lifecycle.wait(stop, liveness.touch)
    log.info("worker stopping", drain_seconds=config.drain_seconds)
    for pool in running:
        pool.drain()
    waiting.close()
    pools.stop(running, config.drain_seconds)
    asterisks.close()
    db.close()
    log.info("worker stopped")


def _answer_bounds(config: settings.Worker) -> AnswerBounds:
    largest = {
        AnswerKind.ONE: config.answer_bytes,
        AnswerKind.APP: config.answer_app_bytes,
        AnswerKind.LIST: config.answer_list_bytes,
    }
    return AnswerBounds(bytes=largest, processor_share=config.answer_processor_share)


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
