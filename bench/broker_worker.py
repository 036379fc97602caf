"""A worker to be measured: `REDIS_URL=… python -m bench.broker_worker ours|stock NAME THREADS FILE`.

Notes in the file what it begins and ends, and when: monotonic clock, which all processes of a machine share.
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
    """Ours, or the one that comes with Dramatiq, with its own defaults."""
    made: dramatiq.Broker
    if kind == "ours":
        client = queues.client(url)
        middleware: list[dramatiq.Middleware] = [retries.Retries(), dramatiq.middleware.Pipelines()]
        made = redis_broker.Broker(client, namespace=NAMESPACE, name=name, capacity=threads, middleware=middleware)
    else:
        again = dramatiq.middleware.Retries(min_backoff=100, max_backoff=5000)
        middleware = [again, dramatiq.middleware.Pipelines()]
        made = stock.RedisBroker(url=url, namespace=NAMESPACE, middleware=middleware)
    made.declare_queue(QUEUE)
    return made


def message(actor: str, *args: Any, group: str = "") -> Message:
    """A message to one of the actors below."""
    return dramatiq.Message(QUEUE, actor, args, {}, {"group": group})


def declare(
    made: dramatiq.Broker, note: Callable[[str, str], None], is_first: Callable[[str], bool], name: str
) -> None:
    """The actors."""

    def quick(what: str) -> None:
        """Notes when it began."""
        note("began", what)

    def chain(what: str, left: int) -> None:
        """Orders the next one, as a step of a call does."""
        note(f"link-{left}", what)
        if left:
            made.enqueue(message("chain", what, left - 1))

    def hold(what: str, seconds: float, by: str, fails: bool, orders: bool) -> None:
        """Works for a while, if it is this worker; fails the first time, or orders another message."""
        note("began", what)
        if by in ("", name):
            time.sleep(seconds)
        if fails and is_first(what):
            raise ValueError(what)
        if orders:
            made.enqueue(message("hold", f"{what}-next", 0, "", False, False))
        note("ended", what)

    for act in (quick, chain, hold):
        dramatiq.actor(actor_name=act.__name__, queue_name=QUEUE, broker=made)(act)


def main() -> None:
    """Works until SIGTERM, or until whoever started it is gone."""
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
    """What was noted: event, what, who, when."""
    if not path.exists():
        return []
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
