"""The scheduler process: leads or stands by. While it leads, it runs its jobs.

What callers wait for runs at intervals by the monotonic clock. What goes by the calendar is for APScheduler.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable

import structlog
from apscheduler.executors import pool
from apscheduler.schedulers import background

from scheduler import looks, sweep
from scheduler.app_questions import AppQuestions
from scheduler.assigner import Assigner
from scheduler.deactivation import LOOK_SECONDS, Deactivation
from scheduler.dead_workers import DeadWorkers
from scheduler.intervals import Intervals
from scheduler.leader import LEASE_NAME, Leader, LeaderDatabase
from scheduler.listeners import Listeners
from scheduler.platform_slots import PlatformSlots
from scheduler.quarantine import Quarantine
from scheduler.reconciler import Reconciler
from scheduler.resyncs import TICK_SECONDS, Resyncs
from scheduler.retention import EVERY_SECONDS, Retention
from scheduler.socket_rows import SocketRows
from shared import dependencies, errors, ongoing, queues
from shared.broker import redis_broker
from shared.call.legs import Naming
from shared.operator import dead_letter_sets
from shared.platform import dograh
from shared.process import (
    call_metrics,
    health,
    lifecycle,
    process_metrics,
    redis_clock,
    settings,
)
from shared.storage import call_writer, database, leases, postgres_calls, slot_holders

log = structlog.stdlib.get_logger(__name__)

#: How often to look for what a clock that was set back has left behind: it reads every open call.
_MISDATED_SECONDS = 10.0


def main() -> int:
    """Run a scheduler. Returns its exit status."""
    return lifecycle.main("scheduler", settings.Scheduler, run, dependencies.of)


def run(config: settings.Scheduler, stop: threading.Event) -> None:
    """Schedule until `stop` is set, then let a standby take over at once."""
    lease_db, leader, db = _databases(config)
    redis_url = config.redis_url.get_secret_value()
    broker = queues.broker(redis_url, redis_ms=redis_clock.PollingRedisClock(queues.client(redis_url)).now_ms)
    commands = queues.BrokerCommandQueue(broker)
    calls = postgres_calls.PostgresCalls(db, who=config.name, prefix="", rows_an_hour=config.timeline_rows)
    writer = call_writer.CallWriter(
        calls, commands, config.limits(), who=config.name, observer=call_metrics.CallMetrics()
    )
    watch = dograh.Watch(db, config.platform_layout)
    configurations = dograh.Configurations(db, watch=watch)
    runs = dograh.Runs(db, watch=watch)
    sockets = SocketRows(
        db,
        drain_seconds=config.removal_drain_seconds,
        reclaim_seconds=config.reclaim_seconds,
        quarantine_seconds=config.quarantine_seconds,
    )
    assigner = Assigner(
        sockets,
        Listeners(queues.client(redis_url), timeout_seconds=config.listener_timeout_seconds, leader=leader.holder),
        leader,
        calls,
        Quarantine(sockets, calls, deaths=config.quarantine_deaths),
        timeout_seconds=config.listener_timeout_seconds,
    )
    resyncs = Resyncs(db, commands, seconds=config.resync_seconds)
    seen = _looks(config, db, broker, leader, assigner)
    live_workers = seen.note_workers(queues.LiveWorkers(broker).names)
    dead_workers = DeadWorkers(
        writer, calls, leases.Leases(db), live_workers, besides=LEASE_NAME, batch=config.sweep_batch
    )

    def assign() -> None:
        assigner.tick()
        if assigner.redis_was_emptied:
            resyncs.request_full_resyncs()
            assigner.redis_was_emptied = False

    def sweep_calls() -> None:
        seen.overdue.put(sweep.dispatch_overdue(writer, calls, batch=config.sweep_batch))

    def recall_misdated() -> None:
        calls.recall_misdated(config.limits().longest_wait())

    def watch_workers() -> None:
        if leader.begin_job():
            dead_workers.clean_up()
        else:
            # Dead workers' messages are requeued by whoever looks: a leader may have died with them.
            live_workers()

    def end_completed() -> None:
        sweep.end_completed(writer, calls, runs)

    leader.renew()
    intervals = Intervals()
    # Each job has its own thread, so a slow Postgres does not delay the lease. A standby is alive, too.
    intervals.add(leader.renew, seconds=config.lease_seconds / 3)
    intervals.add(health.Liveness(config.health_file).touch, seconds=health.TOUCH_SECONDS)
    # At once, but not before the lease is renewed: the first run of an installation may write thousands of rows. The
    # event socket of a new configuration waits for the answer to the question that follows.
    intervals.add(
        _guarded(
            leader.begin_job,
            Reconciler(db, configurations, config.sealer()).reconcile,
            AppQuestions(db, commands, occupied_seconds=config.resync_seconds).ask,
        ),
        seconds=config.configurations_seconds, at_once=True,
    )  # fmt: skip
    intervals.add(_guarded(lambda: True, watch_workers), seconds=config.sweep_seconds)
    for job, seconds in (
        (assign, config.assign_seconds),
        (sweep_calls, config.sweep_seconds),
        (recall_misdated, _MISDATED_SECONDS),
        (end_completed, config.completed_runs_seconds),
        (_deactivation(config, db, configurations, calls, assigner).look, LOOK_SECONDS),
        *_platform_redis_jobs(config, db, calls, watch),
        (resyncs.request_resyncs, min(TICK_SECONDS, config.resync_seconds)),
        *(seen.jobs if config.metrics == "on" else ()),
        (_settle_dead_letters(db, broker), config.sweep_seconds),
    ):
        intervals.add(_guarded(leader.begin_job, job), seconds=seconds)
    calendar = _calendar(_guarded(leader.begin_job, _retention(config, db).delete_old))
    intervals.start()
    calendar.start()
    log.info("scheduler started", leads=leader.is_leader)
    lifecycle.wait(stop)
    # Running jobs may finish, for as long as the drain at most.
    calendar.shutdown(wait=False)
    intervals.stop(seconds=config.drain_seconds)
    leader.release()
    db.close()
    lease_db.close()
    log.info("scheduler stopped")


def _looks(
    config: settings.Scheduler,
    db: database.Database,
    broker: redis_broker.Broker,
    leader: Leader,
    assigner: Assigner,
) -> looks.Looks:
    """Return the looks that are made for gauges, and say where the gauges read."""
    made = looks.Looks(
        db,
        broker,
        seconds=config.look_seconds,
        sweep_seconds=config.sweep_seconds,
        resync_seconds=config.resync_seconds,
    )
    looks.read(leader, assigner, made, connections=config.metrics_connections)
    process_metrics.read_database(db.usage, most=config.database_pool)
    return made


def _settle_dead_letters(db: database.Database, broker: redis_broker.Broker) -> Callable[[], None]:
    def settle_dead_letters() -> None:
        dead_letter_sets.work(db, broker.client)

    return settle_dead_letters


def _retention(config: settings.Scheduler, db: database.Database) -> Retention:
    return Retention(db, days=config.retention_days, audit_days=config.audit_days)


def _calendar(delete_old: Callable[[], None]) -> background.BackgroundScheduler:
    """Return the jobs that go by the calendar, not started yet."""
    calendar = background.BackgroundScheduler(
        timezone="UTC",
        executors={"default": pool.ThreadPoolExecutor(1)},
        job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 60},
    )
    calendar.add_job(delete_old, "cron", second=f"*/{EVERY_SECONDS}")
    return calendar


def _deactivation(
    config: settings.Scheduler,
    db: database.Database,
    configurations: dograh.Configurations,
    calls: postgres_calls.PostgresCalls,
    assigner: Assigner,
) -> Deactivation:
    return Deactivation(
        db,
        configurations,
        calls,
        assigner.hears_listeners,
        lasting_seconds=config.deactivate_lasting_seconds,
        failing_seconds=config.deactivate_failing_seconds,
    )


def _platform_redis_jobs(
    config: settings.Scheduler, db: database.Database, calls: postgres_calls.PostgresCalls, watch: dograh.Watch
) -> list[tuple[Callable[[], object], float]]:
    """Return the jobs that use the platform's Redis, each with its interval in seconds; none if that is not named.

    One tells it of ended runs; one keeps the slots in it right.
    """
    if config.platform_redis_url is None:
        return []
    url = config.platform_redis_url.get_secret_value()
    limits = dograh.CallLimits(setting=config.platform_call_limit, default=config.default_org_concurrency_limit)
    platform_slots = PlatformSlots(
        dograh.Slots(dograh.PlatformRedis(url, seconds=config.platform_redis_seconds)),
        slot_holders.SlotHolders(db),
        calls.load,
        # Every call that has an attempt has its own prefix.
        Naming(""),
        is_shared=lambda: limits.shares_slots_of(watch.found()),
    )
    return [
        (dograh.Outbox(db, url, hours=config.outbox_hours).tell, config.sweep_seconds),
        (platform_slots.compare, config.platform_slots_seconds),
    ]


def _databases(config: settings.Scheduler) -> tuple[database.Database, Leader, LeaderDatabase]:
    """Return the connection of the lease, the leader, and Postgres for the leader's jobs; all are opened."""
    database_url = config.database_url.get_secret_value()
    # Its own connection: no job holds the lease up.
    lease_db = database.Database(database_url, size=1, statement_seconds=config.database_seconds, name=config.name)
    leader = Leader(lease_db, holder=f"{config.name}/{uuid.uuid4().hex[:8]}", seconds=config.lease_seconds)
    db = LeaderDatabase(
        leader,
        database_url,
        size=config.database_pool,
        statement_seconds=config.database_seconds,
        idle_seconds=config.database_idle_seconds,
        name=config.name,
    )
    lease_db.open()
    db.open()
    return lease_db, leader, db


def _guarded(begin_job: Callable[[], bool], *parts: Callable[[], object]) -> Callable[[], None]:
    """Wrap a job, of one or several parts: run it only while this process leads, and keep its errors from the clock.

    A transient error is logged when the job starts to fail, not at each tick, and again when it has recovered.
    """
    name = getattr(parts[0], "__qualname__", "job").rpartition(".")[2]
    is_failing = False

    def run_job() -> None:
        nonlocal is_failing
        if not begin_job():
            return
        try:
            with ongoing.task(name):
                for part in parts:
                    part()
        except errors.TransientError as exc:
            if not is_failing:
                log.warning("job failing, will retry", job=name, reason=str(exc))
            is_failing = True
        except Exception:
            log.exception("job failed", job=name)
        else:
            if is_failing:
                log.info("job recovered", job=name)
            is_failing = False

    return run_job


if __name__ == "__main__":
    sys.exit(main())
