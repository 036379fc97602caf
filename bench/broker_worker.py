"""A worker to be measured: `REDIS_URL=… python -m bench.broker_worker ours|stock NAME THREADS FILE`.

It notes in the file what it begins and ends, with the time of the monotonic clock, which all processes of a machine
share.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq.middleware
from dramatiq.brokers import redis as stock

from shared import queues
from shared.broker import redis_broker, retries

QUEUE = "measured"
NAMESPACE = "bench"

Message = dramatiq.Message[Any]


def broker(kind: str, url: str, *, name: str = "producer", threads: int | None = None) -> dramatiq.Broker:
    """Return our broker, or Dramatiq's own with its defaults."""
    made: dramatiq.Broker
    if kind == "ours":
        client = queues.client(url)
        middleware: list[dramatiq.Middleware] = [retries.Retries(), dramatiq.middleware.Pipelines()]
        made = redis_broker.Broker(client, namespace=NAMESPACE, name=name, capacity=threads, middleware=middleware)
    else:
        stock_retries = dramatiq.middleware.Retries(min_backoff=100, max_backoff=5000)
        middleware = [stock_retries, dramatiq.middleware.Pipelines()]
        made = stock.RedisBroker(url=url, namespace=NAMESPACE, middleware=middleware)
    made.declare_queue(QUEUE)
    return made


def message(actor: str, *args: Any, group: str = "") -> Message:
    """Return a message to one of the actors below."""
    return dramatiq.Message(QUEUE, actor, args, {}, {"group": group})


def declare(
    made: dramatiq.Broker, note: Callable[[str, str], None], is_first: Callable[[str], bool], name: str
) -> None:
    """Declare the actors."""

    def quick(what: str) -> None:
        """Note when it began."""
        note("began", what)

    def chain(what: str, left: int) -> None:
        """Enqueue the next message, as a step of a call does."""
        note(f"link-{left}", what)
        if left:
            made.enqueue(message("chain", what, left - 1))

    def work(what: str, seconds: float, by: str, fails: bool, enqueues: bool) -> None:
        """Work for a while, if this worker is meant; fail the first time, or enqueue another message."""
        note("began", what)
        if by in ("", name):
            time.sleep(seconds)
        if fails and is_first(what):
            raise ValueError(what)
        if enqueues:
            made.enqueue(message("work", f"{what}-next", 0, "", False, False))
        note("ended", what)

    for act in (quick, chain, work):
        dramatiq.actor(actor_name=act.__name__, queue_name=QUEUE, broker=made)(act)


def main() -> None:
    """Work until SIGTERM, or until the parent process is gone."""
    kind, name, threads, path = sys.argv[1:]
    parent = os.getppid()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def note(event: str, what: str) -> None:
        # One write: lines of several processes do not mix.
        os.write(file, (json.dumps([event, what, name, time.monotonic()]) + "\n").encode())

    def is_first(what: str) -> bool:
        try:
            Path(f"{path}-{what}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    made = broker(kind, os.environ["REDIS_URL"], name=name, threads=int(threads))
    declare(made, note, is_first, name)
    worker = dramatiq.Worker(made, worker_threads=int(threads))
    worker.start()
    note("started", name)
    while not stop.wait(1) and os.getppid() == parent:
        pass
    worker.stop(timeout=5000)


def read(path: Path) -> list[tuple[str, str, str, float]]:
    """Return the notes: event, message, worker, time."""
    if not path.exists():
        return []
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
