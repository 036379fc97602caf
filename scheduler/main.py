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
from scheduler.dead_workers import DeadWorkers
from scheduler.intervals import Intervals
from scheduler.leader import LEASE_NAME, Leader, LeaderDatabase
from scheduler.listeners import Listeners
from scheduler.quarantine import Quarantine
from scheduler.reconciler import Reconciler
from scheduler.resyncs import TICK_SECONDS, Resyncs
from scheduler.retention import EVERY_SECONDS, Retention
from scheduler.socket_rows import SocketRows
from shared import errors, ongoing, queues
from shared.platform import dograh
from shared.process import health, lifecycle, settings
from shared.storage import call_writer, database, leases, postgres_calls

log = structlog.stdlib.get_logger(__name__)

#: How often to look for what a clock that was set back has left behind: it reads every open call.
_MISDATED_SECONDS = 10.0


def main() -> int:
    """Run a scheduler. Returns its exit status."""
    return lifecycle.main("scheduler", settings.Scheduler, run)


def run(config: settings.Scheduler, stop: threading.Event) -> None:
    """Schedule until `stop` is set, then let a standby take over at once."""
    lease_db, leader, db = _databases(config)
    redis_url = config.redis_url.get_secret_value()
    broker = queues.broker(redis_url)
    commands = queues.BrokerCommandQueue(broker)
    calls = postgres_calls.PostgresCalls(db, who=config.name, prefix="", rows_an_hour=config.timeline_rows)
    writer = call_writer.CallWriter(calls, commands, config.limits(), who=config.name)
    reconciler = Reconciler(db, dograh.Configurations(db, layout=config.platform_layout), config.sealer())
    runs = dograh.Runs(db)
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
    workers = queues.LiveWorkers(broker)
    dead_workers = DeadWorkers(
        writer, calls, leases.Leases(db), workers.names, besides=LEASE_NAME, batch=config.sweep_batch
    )

    def assign() -> None:
        assigner.tick()
        if assigner.redis_was_emptied:
            resyncs.request_full_resyncs()
            assigner.redis_was_emptied = False

    def sweep_calls() -> None:
        sweep.dispatch_overdue(writer, calls, batch=config.sweep_batch)

    def recall_misdated() -> None:
        calls.recall_misdated(config.limits().longest_wait())

    def watch_workers() -> None:
        if leader.begin_job():
            dead_workers.clean_up()
        else:
            # Dead workers' messages are requeued by whoever looks: a leader may have died with them.
            workers.names()

    def end_completed() -> None:
        sweep.end_completed(writer, calls, runs)

    leader.renew()
    intervals = Intervals()
    # Each job has its own thread, so a slow Postgres does not delay the lease. A standby is alive, too.
    intervals.add(leader.renew, seconds=config.lease_seconds / 3)
    intervals.add(health.Liveness(config.health_file).touch, seconds=health.TOUCH_SECONDS)
    # At once, but not before the lease is renewed: the first run of an installation may write thousands of rows.
    intervals.add(_guarded(leader.begin_job, reconciler.reconcile), seconds=config.configurations_seconds, at_once=True)
    intervals.add(
        _guarded(leader.begin_job, dograh.Watch(db, config.platform_layout).look),
        seconds=config.configurations_seconds, at_once=True,
    )  # fmt: skip
    intervals.add(_guarded(lambda: True, watch_workers), seconds=config.sweep_seconds)
    for job, seconds in (
        (assign, config.assign_seconds),
        (sweep_calls, config.sweep_seconds),
        (recall_misdated, _MISDATED_SECONDS),
        (end_completed, config.completed_runs_seconds),
        (resyncs.request_resyncs, min(TICK_SECONDS, config.resync_seconds)),
    ):
        intervals.add(_guarded(leader.begin_job, job), seconds=seconds)
    calendar = background.BackgroundScheduler(
        timezone="UTC",
        executors={"default": pool.ThreadPoolExecutor(1)},
        job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 60},
    )
    calendar.add_job(
        _guarded(leader.begin_job, Retention(db, days=config.retention_days).delete_old),
        "cron", second=f"*/{EVERY_SECONDS}",
    )  # fmt: skip
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


def _guarded(begin_job: Callable[[], bool], job: Callable[[], object]) -> Callable[[], None]:
    """Wrap a job: run it only while this process leads, and keep its errors from the clock.

    A transient error is logged when the job starts to fail, not at each tick, and again when it has recovered.
    """
    name = getattr(job, "__qualname__", "job").rpartition(".")[2]
    is_failing = False

    def run_job() -> None:
        nonlocal is_failing
        if not begin_job():
            return
        try:
            with ongoing.task(name):
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
