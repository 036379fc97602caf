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

#: zset `<kind>/<name>` of a process → Redis's time in ms of its last entry; those of the last day, 1,000 at most.
PROCESSES = "ari:processes"

#: Hash JSON `[process name or "", connection id or 0]` → JSON `{"level", "until_ms"}`, by Redis's clock: the log levels
#: that an operator wishes for; written by arictl and the console, read by every process; until the last one has ended.
LOG_LEVELS = "ari:log-levels"


def process(process_id: str) -> str:
    """String, JSON entry of the process `<kind>/<name>`, written by itself; 30 s."""
    return f"ari:process:{process_id}"


def errors(process_id: str) -> str:
    """List, the last errors that a process has logged, each as JSON, the newest at the end; a day."""
    return f"ari:errors:{process_id}"


def warnings(process_id: str) -> str:
    """List, its last warnings, as its errors."""
    return f"ari:warnings:{process_id}"


def assignments(listener_id: str) -> str:
    """Hash connection key → JSON `assignments.Assignment`; written by the scheduler, read by the listener; 1 h."""
    return f"ari:assignments:{listener_id}"


def revision(listener_id: str) -> str:
    """String, counts up with every change of the assignments hash, so that a listener need not read it each second."""
    return f"ari:revision:{listener_id}"


def reports(listener_id: str) -> str:
    """Hash connection key → JSON `assignments.Report`; written by the listener, read by the scheduler; 1 h."""
    return f"ari:reports:{listener_id}"


def wakeups(listener_id: str) -> str:
    """Channel on which the scheduler tells a listener that its assignments have changed.

    The listener is subscribed for as long as its process lives: the kernel closes the sockets of one that was killed.
    """
    return f"ari:wakeups:{listener_id}"
