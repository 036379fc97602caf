"""Every metric of the pipeline, declared once: name, kind, labels, buckets, and the processes that export it.

A process adds what it observes here: `metrics.CALLS_ENDED.add(…)`. Dashboards, alert rules and docs/metrics.md are made
from `ALL`. What cannot be measured is not declared.

A gauge of the whole installation is exported by the leading scheduler alone, as of its last look; by a scheduler that
stands by, or whose look failed, it is not exported at all.
"""

from __future__ import annotations

import platform

from shared.call.states import LIVE, Direction, Fault, Outcome
from shared.call.steps import Step
from shared.process import release
from shared.process.metric_kinds import Counter, Gauge, Histogram, Metric, Process, ReadCounter

_LISTENER, _WORKER, _SCHEDULER, _WEB = Process.LISTENER, Process.WORKER, Process.SCHEDULER, Process.WEB
_EVERY = (_LISTENER, _WORKER, _SCHEDULER, _WEB)
_WITH_DATABASE = (_WORKER, _SCHEDULER, _WEB)
#: Most steps are a worker's; the scheduler ends a call where no worker can.
_WRITERS = (_WORKER, _SCHEDULER)

#: Seconds, for what callers wait for.
FINE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
#: Seconds, where there are many label sets.
COARSE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

#: Whose fault a call's end was; `none`: it ended well.
FAULTS = ("none", *map(str, Fault))
#: Those of the broker: `messages.QUEUES`.
QUEUES = (*map(str, Step), "resync", "apps")
#: Of a message in its queue. In flight: delivered to a worker, and not acknowledged.
MESSAGE_STATES = ("waiting", "delayed", "in-flight")
#: What an operator may have ordered of a connection.
SUSPENSIONS = ("park", "drain")
#: Of an event socket, as its listener has it: `assignments.SocketState`.
SOCKET_STATES = ("connecting", "connected", "replaced")
VERBS = ("GET", "POST", "PUT", "DELETE")
#: Paths of ARI requests: `rest.Request.route`.
ROUTES = (
    "/applications",
    "/applications/{id}",
    "/applications/{id}/eventFilter",
    "/bridges",
    "/bridges/{id}",
    "/bridges/{id}/addChannel",
    "/channels",
    "/channels/externalMedia",
    "/channels/{id}",
    "/channels/{id}/answer",
    "/channels/{id}/continue",
    "/channels/{id}/variable",
)
#: Of an answer; `none`: no usable answer came.
STATUS_CLASSES = ("2xx", "4xx", "5xx", "none")
#: What a resync found. `caller`: a caller of whom no event had told.
FINDINGS = ("caller", "other")
#: What refused a call. `quota`: minutes, a blocked organization, or the platform's quota service.
LIMITS = ("calls-per-hour", "concurrent-calls", "platform-slots", "quota")
#: Why an event was not pushed. `refused`: its connection has too many in Redis.
DROPS = ("buffer-full", "refused")

# ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────

CALL_SETUP = Histogram(
    "call_setup_seconds",
    "Of each call that was connected: from the event that its leg has entered Stasis, or from the request to place it,"
    " to connected.",
    of=_WRITERS,
    labels={"direction": Direction},
    buckets=FINE,
)
FIRST_AUDIO = Histogram(
    "first_audio_seconds",
    "From connected to the first audio that a party sent, silence or not, of each call of which Asterisk has told it:"
    " with TALK_DETECTION=on alone.",
    of=(_WORKER,),
    labels={"party": ("agent", "caller")},
    buckets=FINE,
)
CALLS_ENDED = Counter(
    "calls_ended_total",
    "Calls that have ended, by how they came out and whose fault it was.",
    of=_WRITERS,
    labels={"direction": Direction, "outcome": Outcome, "fault": FAULTS},
)
CALLS_LIVE = Gauge(
    "calls_live",
    "Calls that have not ended and are not being ended, by state.",
    of=(_SCHEDULER,),
    labels={"state": LIVE},
)
CALLS_ENDING = Gauge("calls_ending", "Calls whose legs, bridge and run are being ended.", of=(_SCHEDULER,))
CALLS_OVERDUE = Gauge(
    "calls_overdue", "Calls past their deadline that the last sweep found, SWEEP_BATCH at most.", of=(_SCHEDULER,)
)
CALLS_DISPATCHED_AGAIN = Counter(
    "calls_dispatched_again_total", "Overdue calls whose step a sweep has ordered again.", of=(_SCHEDULER,)
)
SLOTS_TAKEN = Gauge("slots_taken", "Slots in use, of all organizations together.", of=(_SCHEDULER,))
QUOTA_REFUSALS = Counter(
    "quota_refusals_total", "Calls that a limit refused, by the limit.", of=(_WORKER,), labels={"limit": LIMITS}
)

# ── steps and messages ───────────────────────────────────────────────────────────────────────────────────────────────

STEP = Histogram(
    "step_seconds",
    "From the claim of a step to its stored result; failed: it broke off with an error, and is tried again.",
    of=(_WORKER,),
    labels={"step": Step, "result": ("done", "failed")},
    buckets=FINE,
)
QUEUE_WAIT = Histogram(
    "queue_wait_seconds",
    "From the moment a message is due to the moment a thread begins it.",
    of=(_WORKER,),
    labels={"queue": QUEUES},
    buckets=FINE,
)
QUEUE_MESSAGES = Gauge(
    "queue_messages",
    "Messages of a queue, by state.",
    of=(_SCHEDULER,),
    labels={"queue": QUEUES, "state": MESSAGE_STATES},
)
QUEUE_OLDEST = Gauge(
    "queue_oldest_message_seconds",
    "How long the message has waited that has waited longest; 0 of an empty queue.",
    of=(_SCHEDULER,),
    labels={"queue": QUEUES},
)
DEAD_LETTERS = Counter(
    "dead_letters_total", "Messages that failed for good, by queue.", of=(_WORKER,), labels={"queue": QUEUES}
)
DEAD_LETTERS_KEPT = Gauge("dead_letters_kept", "Dead letters that Redis keeps.", of=(_SCHEDULER,))

# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────

CONNECTION_UP = Gauge(
    "connection_up",
    "1 while the event socket of a connection's newest version is open, else 0; of METRICS_CONNECTIONS connections,"
    " those that are down first. One that an operator has parked has no series.",
    of=(_SCHEDULER,),
    labels={"connection": None},
)
CONNECTIONS = Gauge(
    "connections", "Connections whose event socket is wanted: not those that an operator has parked.", of=(_SCHEDULER,)
)
CONNECTIONS_DOWN = Gauge("connections_down", "Those of them whose event socket is not open.", of=(_SCHEDULER,))
CONNECTIONS_SUSPENDED = Gauge(
    "connections_suspended",
    "Connections that take no new calls, as an operator has ordered; a drained one keeps its event socket.",
    of=(_SCHEDULER,),
    labels={"suspension": SUSPENSIONS},
)
CONNECTION_LAST_EVENT = Gauge(
    "connection_last_event_timestamp_seconds",
    "When a listener last read an event of the connection, of those that it holds: METRICS_CONNECTIONS at most.",
    of=(_LISTENER,),
    labels={"connection": None},
)
EVENT_SOCKETS = Gauge(
    "event_sockets", "Event sockets of this listener, by state.", of=(_LISTENER,), labels={"state": SOCKET_STATES}
)
EVENT_SOCKETS_OPENED = Counter("event_sockets_opened_total", "Event sockets that were opened.", of=(_LISTENER,))
EVENTS = Counter("events_total", "Events that were read and concern a call.", of=(_LISTENER,))
EVENTS_UNREADABLE = Counter("events_unreadable_total", "Events that could not be read.", of=(_LISTENER,))
EVENTS_DROPPED = Counter(
    "events_dropped_total",
    "Events that were not passed on; a resync of their connection makes up for them.",
    of=(_LISTENER,),
    labels={"reason": DROPS},
)
LISTENER_BUFFER = Gauge("listener_buffer_messages", "Messages that wait for Redis in this listener.", of=(_LISTENER,))
LISTENER_BUFFER_CAPACITY = Gauge(
    "listener_buffer_capacity_messages", "The most that may wait: LISTENER_BUFFER.", of=(_LISTENER,)
)
ARI_REQUEST = Histogram(
    "ari_request_seconds",
    "From the moment a request to an Asterisk is sent to its answer. A path's ids are left out.",
    of=(_WORKER,),
    labels={"verb": VERBS, "route": ROUTES, "status": STATUS_CLASSES},
    buckets=COARSE,
    # There are 17 requests, and few have an answer of each class.
    most=80,
)
BREAKERS_OPEN = Gauge(
    "circuit_breakers_open", "Connections that this worker sends nothing to: their circuit breaker is not closed.",
    of=(_WORKER,),
)  # fmt: skip
RESYNC = Histogram(
    "resync_seconds",
    "How long resyncs took; failed: the Asterisk gave no answer.",
    of=(_WORKER,),
    labels={"result": ("done", "failed")},
    buckets=FINE,
)
RESYNC_FINDINGS = Counter(
    "resync_findings_total",
    "What resyncs found that no event had told; what stands is found by each resync.",
    of=(_WORKER,),
    labels={"kind": FINDINGS},
)
RESYNC_AGE = Gauge(
    "resync_age_seconds",
    "How long ago a resync was requested, of the connection for which that is longest: RESYNC_SECONDS and a"
    " little when all is well.",
    of=(_SCHEDULER,),
)

# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────

LEADER = Gauge("leader", "1 on the scheduler that leads, 0 on one that stands by.", of=(_SCHEDULER,))
LISTENERS = Gauge("listeners", "Listeners that live.", of=(_SCHEDULER,))
WORKERS = Gauge("workers", "Workers that live.", of=(_SCHEDULER,))
DATABASE_CONNECTIONS = Gauge(
    "database_connections",
    "Connections to Postgres of this process.",
    of=_WITH_DATABASE,
    labels={"state": ("idle", "in-use")},
)
DATABASE_CONNECTIONS_MOST = Gauge(
    "database_connections_most", "The most that it may have: DATABASE_POOL.", of=_WITH_DATABASE
)
DATABASE_WAITING = Gauge("database_waiting_threads", "Threads that wait for one of them.", of=_WITH_DATABASE)
OLDEST_WORK = Gauge(
    "oldest_work_seconds", "How long what has been under way longest in this process has been so.", of=_EVERY
)
BUILD_INFO = Gauge(
    "build_info",
    "1, with the release.",
    of=_EVERY,
    labels={"version": (release.VERSION,), "python": (platform.python_version(),)},
)
PROCESS_CPU = ReadCounter("process_cpu_seconds_total", "Processor time of this process.", of=_EVERY)
PROCESS_MEMORY = Gauge("process_resident_memory_bytes", "Memory of this process.", of=_EVERY)
PROCESS_FILES = Gauge("process_open_fds", "Open files of this process.", of=_EVERY)
PROCESS_FILES_MOST = Gauge("process_max_fds", "The most that it may have.", of=_EVERY)
PROCESS_START = Gauge("process_start_time_seconds", "When this process started.", of=_EVERY)
METRICS_FAILED = ReadCounter("metrics_failed_total", "Metrics that could not be kept or read: a bug.", of=_EVERY)

ALL: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
