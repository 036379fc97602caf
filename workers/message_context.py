"""What is told of a message in work: its ids on every log line, its moments in its call's timeline and as a metric."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import dramatiq
import structlog

from shared import current_message, messages, spans
from shared.call import ids
from shared.current_message import CurrentMessage
from shared.process import metrics
from shared.process.metric_kinds import guarded

log = structlog.stdlib.get_logger(__name__)
_std = logging.getLogger(__name__)

#: A moment that lies further back is none: a clock was set, or the message is of an old release. When it was due is.
_MOST_SECONDS = 3600.0


class MessageContext(dramatiq.Middleware):
    """Begins and ends the context of each message. Before every middleware that logs: what it logs is of its message.

    Args:
        age_ms: Returns how long ago a moment of Redis's clock was, in ms; 0 when unknown.
    """

    def __init__(self, age_ms: Callable[[int], float]) -> None:
        self._age_ms = age_ms

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        """Bind the ids of a message, and note its moments."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**_ids(message.kwargs, message.options.get("group")))
        begun = time.monotonic()
        read = self._read(message, begun)
        current_message.begin(read)
        _observe_wait(read)
        if (kept := spans.begin()) is not None:
            _begin_span(kept, message)
        if _std.isEnabledFor(logging.DEBUG):
            log.debug("message begun", actor=message.actor_name, tries=message.options.get("tries", 0))

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """End its context; the ids stay bound for what the broker does with the message."""
        ended = current_message.current()
        current_message.end()
        if (kept := spans.recording()) is not None:
            if ended is not None:
                _end_span(kept, ended, message, exception)
            spans.done()
        if ended is not None and _std.isEnabledFor(logging.DEBUG):
            took_ms = round((time.monotonic() - ended.begun) * 1000, 1)
            log.debug("message done", actor=message.actor_name, took_ms=took_ms, failed=exception is not None)

    after_skip_message = after_process_message

    def _read(self, message: Any, begun: float) -> CurrentMessage:
        options = message.options
        received = self._moment(message.kwargs.get("at_ms"), begun)
        pushed_ms = options.get(messages.PUSHED)
        pushed = None
        if isinstance(pushed_ms, int) and pushed_ms > messages.NOT_PUSHED:
            # Within the same ms its age is 0; that is also what an unknown age is.
            pushed = self._moment(pushed_ms, begun) or (begun if received is not None else None)
        # Of an event that is worked on for the first time it is when that was received.
        due = self._due(message.message_timestamp, begun)
        if pushed is not None:
            due = max(pushed, due or pushed)
        return CurrentMessage(
            actor=message.actor_name,
            queue=message.queue_name,
            message_id=message.message_id,
            received=received,
            pushed=pushed,
            due=due,
            begun=begun,
            tries=_count(options.get("tries")),
            about=_about(message.kwargs.get("event")),
        )

    def _moment(self, at_ms: object, begun: float) -> float | None:
        """Return a moment of Redis's clock by the process's own; None when it is not known."""
        age = self._age_ms(at_ms) / 1000 if isinstance(at_ms, int) else 0.0
        return begun - age if 0 < age <= _MOST_SECONDS else None

    def _due(self, at_ms: object, begun: float) -> float | None:
        """Return when a message was due: now, while Redis's clock is unknown; None if the message does not tell.

        One that has waited for longer than a moment may lie back is told with that: the longest waits count most.
        """
        if not isinstance(at_ms, int) or at_ms <= 0:
            return None
        return begun - min(self._age_ms(at_ms) / 1000, _MOST_SECONDS)


@guarded
def _observe_wait(message: CurrentMessage) -> None:
    if message.due is not None:
        metrics.QUEUE_WAIT.observe(message.begun - message.due, message.queue)


def _begin_span(kept: spans.Recording, message: Any) -> None:
    queue = message.queue_name
    attributes = spans.of_messaging("process", queue, message.message_id)
    attributes |= {"ari.actor": message.actor_name, "ari.message.tries": _count(message.options.get("tries"))}
    kept.begin(f"process {queue}", kind=spans.Kind.CONSUMER, attributes=attributes)
    with contextlib.suppress(ValueError):
        call_id = _ids(message.kwargs, None).get("call")
        kept.main_call = UUID(call_id) if call_id else None


def _end_span(kept: spans.Recording, message: CurrentMessage, delivered: Any, exception: BaseException | None) -> None:
    """End the span of a message, and tell for others what was before it: how the listener pushed it, how it waited.

    Whose call an event is, is known only here: a listener keeps no spans.
    """
    now_ns, now = time.time_ns(), time.monotonic()

    def ns(moment: float) -> int:
        return now_ns - int((now - moment) * 1e9)

    processed, queue = kept.spans[0], message.queue
    parent_id = 0
    if kept.main_call is not None:
        parent_id = spans.parent_of(delivered.options.get(messages.TRACEPARENT), kept.main_call)
    if message.received is not None and message.pushed is not None:
        sent = kept.add(
            f"send {queue}",
            kind=spans.Kind.PRODUCER,
            began=ns(message.received),
            ended=ns(message.pushed),
            attributes={**spans.of_messaging("send", queue, message.message_id), "ari.event": message.about},
        )
        sent.is_of_listener, sent.parent_id, sent.call_id = True, parent_id, None
        parent_id = sent.span_id
    if message.due is not None:
        attributes = {"messaging.system": "redis", "messaging.destination.name": queue}
        waited = kept.add(f"wait in {queue}", began=ns(message.due), ended=processed.began, attributes=attributes)
        waited.parent_id, waited.call_id = parent_id, None
    processed.parent_id = parent_id
    kept.end(processed, type(exception).__name__ if exception is not None else "")


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _ids(kwargs: dict[str, Any], group: object) -> dict[str, str]:
    """Return the connection and the call of a message, as far as it names them.

    Args:
        group: Its option; that of a command is its connection.
    """
    found = {}
    if "connection_id" in kwargs:
        found["connection"] = f"{kwargs['connection_id']}:{kwargs.get('connection_version', '')}".rstrip(":")
    elif isinstance(group, int):
        found["connection"] = str(group)
    call_id = kwargs.get("call_id") or _call_of(kwargs.get("event"))
    return found | ({"call": str(call_id)} if call_id else {})


def _call_of(event: Any) -> str | None:
    """Return the call that the id of an event's leg names: only our own legs have such ids."""
    own = ids.parse(_leg_id(event))
    return str(own.call_id) if own is not None else None


def _about(event: Any) -> str:
    return f"{event.get('type', '')} {_leg_id(event)}"[:200] if isinstance(event, dict) else ""


def _leg_id(event: Any) -> str:
    channel = event.get("channel") if isinstance(event, dict) else None
    return str(channel.get("id", "")) if isinstance(channel, dict) else ""
