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

from scheduler import sweep
from scheduler.assigner import Assigner
from scheduler.intervals import Intervals
from scheduler.leader import Leader
from scheduler.listeners import Listeners
from scheduler.quarantine import Quarantine
from scheduler.reconciler import Reconciler
from scheduler.resyncs import TICK_SECONDS, Resyncs
from scheduler.retention import EVERY_SECONDS, Retention
from scheduler.socket_rows import SocketRows
from shared import errors, queues
from shared.platform import dograh
from shared.process import health, lifecycle, settings
from shared.storage import call_writer, database, postgres_calls

log = structlog.stdlib.get_logger(__name__)


def main() -> int:
    """Run a scheduler. Returns its exit status."""
    return lifecycle.main("scheduler", settings.Scheduler, run)


def run(config: settings.Scheduler, stop: threading.Event) -> None:
    """Schedule until `stop` is set, then let a standby take over at once."""
    db = database.Database(config.database_url.get_secret_value(), size=config.database_pool, name=config.name)
    db.open()
    redis_url = config.redis_url.get_secret_value()
    commands = queues.BrokerCommandQueue(queues.broker(redis_url))
    calls = postgres_calls.PostgresCalls(db, who=config.name, prefix="", rows_an_hour=config.timeline_rows)
    writer = call_writer.CallWriter(calls, commands, config.limits(), who=config.name)
    leader = Leader(db, holder=f"{config.name}/{uuid.uuid4().hex[:8]}", seconds=config.lease_seconds)
    reconciler = Reconciler(db, dograh.Configurations(db, layout=config.platform_layout), config.sealer())
    runs = dograh.Runs(db)
    layout = dograh.Watch(db, config.platform_layout)
    sockets = SocketRows(
        db,
        drain_seconds=config.removal_drain_seconds,
        reclaim_seconds=config.reclaim_seconds,
        quarantine_seconds=config.quarantine_seconds,
    )
    assigner = Assigner(
        sockets,
        Listeners(queues.client(redis_url), timeout_seconds=config.listener_timeout_seconds),
        leader,
        calls,
        Quarantine(sockets, calls, deaths=config.quarantine_deaths),
        timeout_seconds=config.listener_timeout_seconds,
    )
    resyncs = Resyncs(db, commands, seconds=config.resync_seconds)
    retention = Retention(db, days=config.retention_days)

    def assign() -> None:
        assigner.tick()
        if assigner.redis_was_emptied:
            resyncs.request_full_resyncs()
            assigner.redis_was_emptied = False

    def is_leader() -> bool:
        return leader.is_leader

    def sweep_calls() -> None:
        sweep.dispatch_overdue(writer, calls, batch=config.sweep_batch)

    def end_completed() -> None:
        sweep.end_completed(writer, calls, runs)

    leader.renew()
    intervals = Intervals()
    # Each job has its own thread, so a slow Postgres does not delay the lease. A standby is alive, too.
    intervals.add(leader.renew, seconds=config.lease_seconds / 3)
    intervals.add(health.Liveness(config.health_file).touch, seconds=health.TOUCH_SECONDS)
    intervals.add(layout.try_to_look, seconds=config.configurations_seconds, at_once=True)
    # At once, but not before the lease is renewed: the first run of an installation may write thousands of rows.
    intervals.add(_guarded(is_leader, reconciler.reconcile), seconds=config.configurations_seconds, at_once=True)
    for job, seconds in (
        (assign, config.assign_seconds),
        (sweep_calls, config.sweep_seconds),
        (end_completed, config.completed_runs_seconds),
        (resyncs.request_resyncs, min(TICK_SECONDS, config.resync_seconds)),
    ):
        intervals.add(_guarded(is_leader, job), seconds=seconds)
    calendar = background.BackgroundScheduler(
        timezone="UTC",
        executors={"default": pool.ThreadPoolExecutor(1)},
        job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 60},
    )
    calendar.add_job(_guarded(is_leader, retention.delete_old), "cron", second=f"*/{EVERY_SECONDS}")
    intervals.start()
    calendar.start()
    log.info("scheduler started", leads=leader.is_leader)
    lifecycle.wait(stop)
    # Running jobs may finish, for as long as the drain at most.
    calendar.shutdown(wait=False)
    intervals.stop(seconds=config.drain_seconds)
    leader.release()
    db.close()
    log.info("scheduler stopped")


def _guarded(is_leader: Callable[[], bool], job: Callable[[], object]) -> Callable[[], None]:
    """Wrap a job: run it only while this process leads, and keep its errors from the clock.

    A transient error is logged when the job starts to fail, not at each tick, and again when it has recovered.
    """
    name = getattr(job, "__qualname__", "job").rpartition(".")[2]
    is_failing = False

    def run_job() -> None:
        nonlocal is_failing
        if not is_leader():
            return
        try:
            job()
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
