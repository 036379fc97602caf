"""The Asterisks this process talks to: one client for each version of a connection, made when first needed.

Each has a circuit breaker, whose changes are noted in the timeline of the connection: `arictl connection list` reads
them there.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from shared import errors
from shared.asterisk import ari, circuit_breaker, rest, tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.process import sealing
from shared.storage.call_store import TimelineEntry
from shared.storage.connections import Connections, Version

log = structlog.stdlib.get_logger(__name__)

#: Clients kept; the one unused for longest goes first. An idle client holds no socket.
_KEPT = 2000
#: How long a client is used before its credentials are looked up again: they may have been changed.
_FRESH_SECONDS = 10.0

_T = TypeVar("_T")


class Asterisks(Protocol):
    """Where the steps get at an Asterisk."""

    def of(self, call: Call, budget: rest.RequestBudget) -> ari.Ari:
        """The Asterisk a call came in by. Raises PermanentError when we know none."""

    def at(self, connection_id: int, version: int, budget: rest.RequestBudget) -> ari.Ari:
        """The Asterisk of a connection version. Raises PermanentError when we know none."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A client, what it was made of, and until when that is taken for current."""

    client: rest.RestClient
    version: Version
    fresh_until: float


class Notes(Protocol):
    """Where a breaker's changes are noted. `store.Store` is one."""

    def append_timeline(self, timeline: Sequence[TimelineEntry], *, connection_id: int) -> None:
        """Writes rows of the timeline. Raises a PipelineError when that is not possible."""


class RestAsterisks:
    """Over HTTP, by what Postgres says of the connection."""

    def __init__(
        self, connections: Connections, sealer: sealing.Sealer, limits: Limits, timeline: Notes, *,
        requests_at_once: int,
        connector: tcp_connector.TcpConnector,
    ) -> None:  # fmt: skip
        self._connections = connections
        self._sealer = sealer
        self._limits = limits
        self._timeline = timeline
        self._requests_at_once = requests_at_once
        self._connector = connector
        self._lock = threading.Lock()
        self._clients: OrderedDict[tuple[int, int], _Known] = OrderedDict()

    def of(self, call: Call, budget: rest.RequestBudget) -> ari.Ari:
        return self.at(call.connection_id, call.connection_version, budget)

    def at(self, connection_id: int, version: int, budget: rest.RequestBudget) -> ari.Ari:
        return ari.Ari(self._client(connection_id, version), budget)

    def _client(self, connection_id: int, version: int) -> rest.RestClient:
        key = (connection_id, version)
        with self._lock:
            known = self._clients.get(key)
            if known is not None:
                self._clients.move_to_end(key)
                if time.monotonic() < known.fresh_until:
                    return known.client
        found = self._connections.version(connection_id, version)
        if found is None:
            raise errors.PermanentError(f"connection {connection_id} has no version {version}")
        with self._lock:
            known = self._clients.get(key)
            unchanged = known is not None and known.version == found
            client = known.client if known is not None and unchanged else self._make(found)
            # Another version's are looked up each time: they may be right only until our own socket is connected.
            fresh_seconds = _FRESH_SECONDS if found.credentials_of == version else 0.0
            self._clients[key] = _Known(client, found, time.monotonic() + fresh_seconds)
            while len(self._clients) > _KEPT:
                self._clients.popitem(last=False)[1].client.close()
        return client

    def _make(self, version: Version) -> rest.RestClient:
        configuration = Configuration(
            endpoint=version.endpoint,
            app=version.app,
            user=version.user,
            password=self._sealer.open(version.sealed_password),
            ca_bundle=version.ca_bundle,
        )
        return rest.RestClient(
            configuration,
            requests_at_once=self._requests_at_once,
            connect_seconds=self._limits.connect_seconds,
            read_seconds=self._limits.read_seconds,
            connector=self._connector,
            breaker=circuit_breaker.CircuitBreaker(
                functools.partial(self._note, version.connection_id, version.version)
            ),
        )

    def _note(self, connection_id: int, version: int, opened: bool, reason: str) -> None:
        name = circuit_breaker.OPENED if opened else circuit_breaker.CLOSED
        log.warning("circuit breaker", connection=f"{connection_id}:{version}", change=name, reason=reason)
        try:
            self._timeline.append_timeline(
                [TimelineEntry(kind="note", name=name, detail=f"{version}: {reason}")], connection_id=connection_id
            )
        except errors.PipelineError as exc:
            log.warning("a breaker's change could not be noted", connection=connection_id, reason=str(exc))


class ParallelRequests:
    """Runs the requests of one step at the same time.

    Args:
        steps: At work at once. Each has threads of its own here, so that none waits for another's requests.
    """

    #: A teardown of two attempts has five requests; the first runs in the step's own thread.
    _REQUESTS = 5

    def __init__(self, steps: int) -> None:
        threads = steps * (self._REQUESTS - 1)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="request")

    def __call__(self, *asks: Callable[[], _T]) -> list[_T | errors.PipelineError]:
        """Runs all, the first in this thread; each gives its result or its error, in the order given."""
        futures: list[Future[_T]] = [self._pool.submit(ask) for ask in asks[1:]]
        return [_result(asks[0]), *(_result(future.result) for future in futures)]

    def close(self) -> None:
        """Lets the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _result(ask: Callable[[], _T]) -> _T | errors.PipelineError:
    try:
        return ask()
    except errors.PipelineError as exc:
        return exc
