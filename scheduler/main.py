"""The scheduler process: holds the lead or stands by; while it leads, reconciles on a clock (APScheduler)."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable

import structlog
from apscheduler.executors import pool
from apscheduler.schedulers import background

from scheduler import sweep
from scheduler.assigner import Assigner
from scheduler.leader import Lease
from scheduler.listeners import Listeners
from scheduler.reconciler import Reconciler
from scheduler.resyncs import Resyncs
from scheduler.retention import EVERY_SECONDS, Retention
from scheduler.socket_rows import Sockets
from shared import errors, queues
from shared.platform import dograh
from shared.process import health, lifecycle, settings
from shared.storage import call_store, call_writer, database

log = structlog.stdlib.get_logger(__name__)


def main() -> int:
    """Runs a scheduler; returns its exit status."""
    return lifecycle.main("scheduler", settings.Scheduler, run)


def run(config: settings.Scheduler, stop: threading.Event) -> None:
    """Schedules until `stop` is set; then lets a standby take over at once."""
    db = database.Database(config.database_url.get_secret_value(), size=config.database_pool, name=config.name)
    db.open()
    redis_url = config.redis_url.get_secret_value()
    orders = queues.BrokerCommandQueue(queues.broker(redis_url))
    calls = call_store.PostgresStore(db, who=config.name, prefix=config.id_prefix)
    writer = call_writer.CallWriter(calls, orders, config.limits(), who=config.name)
    lease = Lease(db, holder=f"{config.name}/{uuid.uuid4().hex[:8]}", seconds=config.lease_seconds)
    reconciler = Reconciler(db, dograh.Configurations(db), config.sealer())
    runs = dograh.Runs(db)
    assigner = Assigner(
        Sockets(db, drain_seconds=config.removal_drain_seconds, reclaim_seconds=config.reclaim_seconds),
        Listeners(queues.client(redis_url), timeout_seconds=config.listener_timeout_seconds),
        lease,
        calls,
        timeout_seconds=config.listener_timeout_seconds,
    )
    resyncs = Resyncs(db, orders)
    retention = Retention(db, days=config.retention_days)

    def assign() -> None:
        assigner.tick()
        if assigner.redis_was_emptied:
            resyncs.ask_all()
            assigner.redis_was_emptied = False

    def leads() -> bool:
        return lease.held

    def sweep_calls() -> None:
        sweep.sweep(writer, calls, batch=config.sweep_batch)

    def end_completed() -> None:
        sweep.end_completed(writer, calls, runs)

    clock = background.BackgroundScheduler(
        timezone="UTC",
        executors={"default": pool.ThreadPoolExecutor(8)},
        job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 60},
    )
    lease.renew()
    clock.add_job(lease.renew, "interval", seconds=config.lease_seconds / 3, max_instances=1)
    for job, seconds in (
        (reconciler.reconcile, config.configurations_seconds),
        (assign, config.assign_seconds),
        (sweep_calls, config.sweep_seconds),
        (end_completed, config.completed_runs_seconds),
        (resyncs.ask, config.resync_seconds),
        (retention.delete_old, EVERY_SECONDS),
    ):
        clock.add_job(_guarded(leads, job), "interval", seconds=seconds)
    # Whether it leads or not, and whatever Postgres does: each job has a thread of its own.
    clock.add_job(health.Liveness(config.health_file).touch, "interval", seconds=health.TOUCH_SECONDS)
    _guarded(leads, reconciler.reconcile)()
    clock.start()
    log.info("scheduler started", leads=lease.held)
    lifecycle.wait(stop)
    # The jobs at work finish, but nobody waits for them longer than the drain.
    ending = threading.Thread(target=clock.shutdown, name="shutdown", daemon=True)
    ending.start()
    ending.join(config.drain_seconds)
    lease.release()
    db.close()
    log.info("scheduler stopped")


def _guarded(leads: Callable[[], bool], job: Callable[[], object]) -> Callable[[], None]:
    """The job, only while we lead; an error of it never reaches the clock, and one that lasts is told once."""
    name = getattr(job, "__qualname__", "job").rpartition(".")[2]
    told = False

    def run_job() -> None:
        nonlocal told
        if not leads():
            return
        try:
            job()
        except errors.TransientError as exc:
            if not told:
                log.warning("not possible now, tried again on each tick", job=name, reason=str(exc))
            told = True
        except Exception:
            log.exception("a job failed", job=name)
        else:
            if told:
                log.info("possible again", job=name)
            told = False

    return run_job


if __name__ == "__main__":
    sys.exit(main())
