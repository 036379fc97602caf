"""Requests made at the same time."""

from __future__ import annotations

import threading

from workers.parallel import ParallelRequests


def test_the_requests_of_every_step_at_work_are_made_in_parallel() -> None:
    """A step whose Asterisk hangs delays no request of another step: each has its own threads."""
    steps, requests = 3, 5
    together = threading.Barrier(steps * requests)
    in_parallel = ParallelRequests(steps)
    results: list[list[object]] = []

    def step() -> None:
        results.append(in_parallel(*[lambda: together.wait(10)] * requests))

    threads = [threading.Thread(target=step) for _ in range(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    in_parallel.close()
    assert len(results) == steps
