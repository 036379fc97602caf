"""The worker process: wires the steps to their adapters and works until told to stop."""

from __future__ import annotations

import secrets
import sys
import threading

import structlog

from shared import dependencies, queues
from shared.asterisk import tcp_connector
from shared.asterisk.rest import AnswerBounds, AnswerKind
from shared.broker.bounds import Bounds
from shared.call.legs import Naming
from shared.inbound_lookup import InboundLookup
from shared.outbound_calls import OutboundCalls
from shared.platform import dograh
from shared.platform.dograh.quota_client import QuotaClient
from shared.platform.dograh.quota_service import QuotaService
from shared.platform.ports import NO_PLATFORM_SLOTS
from shared.process import (
    call_metrics,
    health,
    lifecycle,
    metrics,
    open_files,
    process_metrics,
    redis_clock,
    settings,
)
from shared.storage import app_holders, connections, database, id_prefixes, leases, quotas
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
    return lifecycle.main("worker", settings.Worker, run, dependencies.of)


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
        store,
        commands,
        limits,
        who=worker,
        lives_since=lambda moment: pools.lives_since(running, moment),
        observer=call_metrics.CallMetrics(),
    )
    watch = dograh.Watch(db, config.platform_layout)
    watch.try_to_look()
    call_limits = dograh.CallLimits(setting=config.platform_call_limit, default=config.default_org_concurrency_limit)
    routes = dograh.Routes(db, watch=watch, limits=call_limits)
    runs = dograh.Runs(
        db,
        storage_backend=config.storage_backend,
        run_completion=config.run_completion,
        watch=watch,
        tells_platform=config.platform_redis_url is not None,
    )
    accounts = dograh.Accounts(db, watch=watch)
    own_quotas = quotas.Quotas(db, now=store.now)
    slots = quotas.Slots(own_quotas, accounts, default=config.concurrent_calls)
    platform_redis = _platform_redis(config)
    platform_slots = dograh.Slots(platform_redis) if platform_redis is not None else NO_PLATFORM_SLOTS
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
    age_ms = redis_clock.PollingRedisClock(queues.client(redis_url)).age_ms
    adapters = Adapters(
        writer=writer,
        asterisks=asterisks,
        routes=routes,
        runs=runs,
        quota=_quota(config, own_quotas, accounts),
        slots=slots,
        outbound_calls=OutboundCalls(
            writer, routes, runs, known, slots=slots.of, prefix=prefix, platform_slots=platform_slots
        ),
        connections=known,
        lookup=InboundLookup(db, known, routes),
        leases=leases.Leases(db),
        app_holders=app_holders.AppHolders(db),
        awaited_legs=waiting.legs,
        send_later=lambda message, wait: commands.send(message, wait=wait),
        age_ms=age_ms,
        naming=Naming(prefix),
        allowance=CallAllowance(config.calls_per_hour),
        media_url=dograh.MediaUrl(config.token_secret, derived_secret=config.derived_token_secret, watch=watch),
        refusal_causes=dograh.MediaRefusals(db, sends_token=config.token_secret is not None, watch=watch).causes,
        platform_slots=platform_slots,
        refuses_uncounted=config.platform_slots_unreachable == "refuse",
        detects_talking=config.talk_detection == "on",
        transfer_events=dograh.TransferEvents(platform_redis, watch=watch),
    )
    if config.token_secret is None and config.derived_token_secret is None:
        log.warning("media tokens are off: anyone who can reach the voice agent can open a media socket")
    elif config.token_secret is None:
        log.info("media tokens are signed by a secret derived from the first SECRET_KEY: changing it changes them")
    _read_gauges(config, db, asterisks)
    running += pools.build_pools(
        redis_url,
        lambda serves, tag: wiring.handlers(adapters, serves=serves, tag=lambda: tag),
        store=store,
        name=worker,
        served=config.queues,
        threads=config.pool_threads,
        bounds=bounds,
        age_ms=age_ms,
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
    if platform_redis is not None:
        platform_redis.close()
    db.close()
    log.info("worker stopped")


def _read_gauges(config: settings.Worker, db: database.Database, asterisks: RestAsterisks) -> None:
    process_metrics.read_database(db.usage, most=config.database_pool)
    metrics.BREAKERS_OPEN.read(asterisks.cut_off)


def _platform_redis(config: settings.Worker) -> dograh.PlatformRedis | None:
    url = config.platform_redis_url
    return dograh.PlatformRedis(url.get_secret_value(), seconds=config.platform_redis_seconds) if url else None


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
            limits = config.limits()
            client = QuotaClient(
                config.mps_api_url,
                connect_seconds=limits.connect_seconds,
                # A call has a key or two for each of its services.
                requests_at_once=config.worker_threads * 4,
            )
            return QuotaService(
                accounts,
                client,
                limits,
                secret=secret.get_secret_value() if secret is not None else None,
                contract=config.quota_contract,
                when_unreachable=config.quota_unreachable,
            )
        case "none":
            return NoQuota()


if __name__ == "__main__":
    sys.exit(main())
