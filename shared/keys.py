"""The Redis keys of the listeners and the scheduler, each with its type, lifetime and meaning.

Redis may be emptied at any moment. The broker's keys begin with NAMESPACE: `shared/broker/layout.lua` describes them.
"""

from __future__ import annotations

#: The prefix of every key of the broker.
NAMESPACE = "ari-queue"

#: String `term <number>`, no expiry: the term of the leading scheduler, under a lower one of which no script writes. If
#: it is missing, Redis was emptied: the scheduler rewrites all assignments and requests full resyncs.
BOOT_MARKER = "ari:boot-marker"

#: zset listener id → Redis's time in ms of its last heartbeat.
LISTENERS = "ari:listeners"

#: Hash listener id → most sockets it may hold; written with each heartbeat.
CAPACITIES = "ari:capacities"

#: Hash listener id → connection key of the socket that its event loop was reading when it stopped turning: written by
#: the listener, taken by the scheduler when that listener is lost.
SUSPECTS = "ari:suspects"

#: String, counts up with every heartbeat that brings reports: the scheduler need not read all of them each time.
REPORTS_REVISION = "ari:reports-revision"


def assignments(listener_id: str) -> str:
    """Hash connection key → JSON `assignments.Assignment`; written by the scheduler, read by the listener; 1 h."""
    return f"ari:assignments:{listener_id}"


def revision(listener_id: str) -> str:
    """String, counts up with every change of the assignments hash, so that a listener need not read it each second."""
    return f"ari:revision:{listener_id}"


def reports(listener_id: str) -> str:
    """Hash connection key → JSON `assignments.Report`; written by the listener, read by the scheduler; 1 h."""
    return f"ari:reports:{listener_id}"
