"""The Asterisks this process talks to: one client for each connection version, made when first needed.

Each has a circuit breaker, whose changes go into the timeline of the connection: `arictl connection list` reads them
there.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import structlog

from shared import errors
from shared.asterisk import ari, circuit_breaker, rest, tcp_connector
from shared.asterisk.endpoint import Configuration, address
from shared.asterisk.sessions import Sessions
from shared.call import ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.limits import Limits
from shared.process import metric_kinds, metrics, sealing
from shared.storage.connections import ConnectionDetails, Connections
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)

#: Most clients kept; the least recently used goes first. A client that is not used soon has no open socket.
_KEPT = 2000
#: How long a client is used before its credentials are looked up again, unless a 401 says that they have changed.
_FRESH_SECONDS = 10.0
#: How often the sockets of clients that get no requests are looked at.
_SWEEP_SECONDS = 1.0
#: Of all processes one writes that requests are denied.
_DENIED_NOTED = timedelta(seconds=rest.DENIED_SECONDS)


def is_of_others(channel_id: str) -> bool:
    """True for an id that a PBX has chosen, which a proxy may change on its way: a 404 for it is doubted."""
    return ids.parse(channel_id) is None


class Asterisks(Protocol):
    """Gives the steps their Asterisk."""

    def of(self, call: Call, budget: rest.RequestBudget) -> ari.Ari:
        """Return the Asterisk of a call. Raises PermanentError when there is none."""

    def at(self, connection: ConnectionVersion, budget: rest.RequestBudget) -> ari.Ari:
        """Return the Asterisk of a connection version. Raises PermanentError when there is none."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A client, what it was made of, and until when that counts as current."""

    client: rest.RestClient
    details: ConnectionDetails
    fresh_until: float


@metric_kinds.guarded
def _observe(request: rest.Request[Any], status: int | None, seconds: float) -> None:
    status_class = "none" if status is None else f"{status // 100}xx"
    metrics.ARI_REQUEST.observe(seconds, request.method, request.route, status_class)


class Timeline(Protocol):
    """Where changes of a circuit breaker and denied requests are recorded. `call_store.CallStore` is one."""

    def append_timeline(self, timeline: Sequence[TimelineEntry], *, connection_id: int) -> None:
        """Write timeline entries. Raises a PipelineError when that is not possible."""

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        """Write the timeline entries that no process has written within this time. Raises as `append_timeline`."""


class RestAsterisks:
    """Asterisks over HTTP, as Postgres describes their connections.

    A thread closes the sockets that were idle for too long: those of an Asterisk that has no more calls would otherwise
    stay open for ever.

    Args:
        requests_at_once: The largest number of requests in flight of one connection.
        most_sessions: Returns how many sessions of one Asterisk this process may have open, for all connections to it.
        bounds: Of the answers to one connection.
    """

    def __init__(
        self, connections: Connections, sealer: sealing.Sealer, limits: Limits, timeline: Timeline, *,
        requests_at_once: int, most_sessions: Callable[[], int], connector: tcp_connector.TcpConnector,
        bounds: rest.AnswerBounds,
    ) -> None:  # fmt: skip
        self._connections = connections
        self._sealer = sealer
        self._limits = limits
        self._timeline = timeline
        self._requests_at_once = requests_at_once
        self._most_sessions = most_sessions
        self._connector = connector
        self._bounds = bounds
        self._lock = threading.Lock()
        self._clients: OrderedDict[ConnectionVersion, _Known] = OrderedDict()
        #: Host and port → the sessions there.
        self._sessions: dict[tuple[str, int], Sessions] = {}
        self._is_closed = threading.Event()
        threading.Thread(target=self._sweep, name="idle-sockets", daemon=True).start()

    def close(self) -> None:
        """End the thread, and close the idle sockets."""
        self._is_closed.set()
        for client in self._all():
            client.close()

    def cut_off(self) -> int:
        """Return how many Asterisks are not asked now: their circuit breaker is open. Waits for no lock."""
        return sum(known.client.is_cut_off for known in list(self._clients.values()))

    def of(self, call: Call, budget: rest.RequestBudget) -> ari.Ari:
        return self.at(call.connection, budget)

    def at(self, connection: ConnectionVersion, budget: rest.RequestBudget) -> ari.Ari:
        return ari.Ari(self._client(connection), budget, doubts=is_of_others)

    def _client(self, connection: ConnectionVersion) -> rest.RestClient:
        with self._lock:
            known = self._clients.get(connection)
            if known is not None:
                self._clients.move_to_end(connection)
                if time.monotonic() < known.fresh_until and not known.client.is_unauthorized:
                    return known.client
        found = self._connections.details(connection)
        if found is None:
            raise errors.PermanentError(f"there is no connection {connection}")
        with self._lock:
            known = self._clients.get(connection)
            unchanged = known is not None and known.details == found
            client = known.client if known is not None and unchanged else self._make(found)
            if known is not None and not unchanged:
                known.client.close()
            # Another version's credentials are looked up each time: they may be valid only until this version's socket
            # is connected.
            fresh_seconds = _FRESH_SECONDS if found.credentials_of == connection.number else 0.0
            self._clients[connection] = _Known(client, found, time.monotonic() + fresh_seconds)
            while len(self._clients) > _KEPT:
                self._clients.popitem(last=False)[1].client.close()
        return client

    def _sweep(self) -> None:
        while not self._is_closed.wait(_SWEEP_SECONDS):
            for client in self._all():
                client.close_unused()
            with self._lock:
                self._sessions = {at: sessions for at, sessions in self._sessions.items() if not sessions.is_unused}

    def _all(self) -> list[rest.RestClient]:
        with self._lock:
            return [known.client for known in self._clients.values()]

    def _make(self, details: ConnectionDetails) -> rest.RestClient:
        configuration = Configuration(
            endpoint=details.endpoint,
            app=details.app,
            user=details.user,
            password=self._sealer.open(details.sealed_password),
            ca_bundle=details.ca_bundle,
        )
        at = address(details.endpoint)
        return rest.RestClient(
            configuration,
            sessions=self._sessions.setdefault(at, Sessions(self._most_sessions)),
            tenant=details.connection.connection_id,
            requests_at_once=self._requests_at_once,
            connect_seconds=self._limits.connect_seconds,
            read_seconds=self._limits.read_seconds,
            connector=self._connector,
            breaker=circuit_breaker.CircuitBreaker(functools.partial(self._note, details.connection)),
            bounds=self._bounds,
            on_denied=functools.partial(self._note_denied, details.connection),
            on_answer=_observe,
        )

    def _note_denied(self, connection: ConnectionVersion, answer: str) -> None:
        log.warning("request denied", connection=str(connection), answer=answer)
        entry = TimelineEntry(kind="note", name=rest.DENIED, detail=f"{connection.number}: {answer}")
        try:
            self._timeline.append_new([entry], connection_id=connection.connection_id, within=_DENIED_NOTED)
        except errors.PipelineError as exc:
            log.warning("denied request not recorded", connection=str(connection), reason=str(exc))

    def _note(self, connection: ConnectionVersion, opened: bool, reason: str) -> None:
        name = circuit_breaker.OPENED if opened else circuit_breaker.CLOSED
        log.warning("circuit breaker", connection=str(connection), change=name, reason=reason)
        try:
            self._timeline.append_timeline(
                [TimelineEntry(kind="note", name=name, detail=f"{connection.number}: {reason}")],
                connection_id=connection.connection_id,
            )
        except errors.PipelineError as exc:
            log.warning("circuit breaker change not recorded", connection=str(connection), reason=str(exc))
