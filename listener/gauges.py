"""The listener's gauges: they read what it has in memory, while the event loop goes on."""

from __future__ import annotations

from collections import Counter

from listener.buffer import Buffer
from listener.socket_pool import SocketPool
from shared.process import metrics


def read(pool: SocketPool, buffer: Buffer, *, capacity: int, connections: int) -> None:
    """Say where the gauges read.

    Args:
        capacity: The most events that wait in the buffer.
        connections: The most connections of which each has a series.
    """
    metrics.LISTENER_BUFFER.read(lambda: buffer.size)
    metrics.LISTENER_BUFFER_CAPACITY.read(lambda: capacity)
    metrics.EVENT_SOCKETS.read(lambda: _by_state(pool))
    metrics.CONNECTION_LAST_EVENT.read(lambda: _last_events(pool, connections))


def _by_state(pool: SocketPool) -> dict[tuple[str, ...], float]:
    found = Counter(str(socket.state) for socket in pool.sockets())
    return {(state,): found[state] for state in metrics.SOCKET_STATES}


def _last_events(pool: SocketPool, most: int) -> dict[tuple[str, ...], float]:
    """Return when each connection last brought something, of whatever version of it."""
    found: dict[int, int] = {}
    for socket in pool.sockets():
        connection_id, at_ms = socket.assignment.connection_id, socket.last_event_ms
        if at_ms:
            found[connection_id] = max(at_ms, found.get(connection_id, 0))
    return {(str(connection_id),): found[connection_id] / 1000 for connection_id in sorted(found)[:most]}
