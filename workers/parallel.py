"""Requests made at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from shared import errors

_T = TypeVar("_T")


class InParallel(Protocol):
    """Runs requests at the same time. `ParallelRequests` is the adapter."""

    def __call__(self, *requests: Callable[[], Any]) -> list[Any]:
        """Run all; return each one's result or PipelineError, in the order given."""


class ParallelRequests:
    """Runs the requests of one step at the same time.

    Args:
        steps: Steps at work at once. Each has threads of its own here, so that none waits for another's requests.
    """

    #: A teardown of two attempts makes five requests; the first runs in the step's own thread.
    _REQUESTS = 5

    def __init__(self, steps: int) -> None:
        threads = steps * (self._REQUESTS - 1)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="request")

    def __call__(self, *requests: Callable[[], _T]) -> list[_T | errors.PipelineError]:
        """Run all, the first in this thread; return each one's result or error, in the order given."""
        futures: list[Future[_T]] = [self._pool.submit(request) for request in requests[1:]]
        return [_result(requests[0]), *(_result(future.result) for future in futures)]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _result(request: Callable[[], _T]) -> _T | errors.PipelineError:
    try:
        return request()
    except errors.PipelineError as exc:
        return exc
