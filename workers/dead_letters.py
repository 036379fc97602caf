"""Dead letters: a message that failed permanently becomes a row of the timeline, with its body and the reason."""

from __future__ import annotations

import json
import traceback
from typing import Any

import dramatiq
import structlog

from shared import errors, messages
from shared.process import logs, metrics
from shared.storage.call_store import CallStore
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)
_LENGTH = 8000


class DeadLetters(dramatiq.Middleware):
    """Writes the row before the broker rejects the message: if rejecting fails, both are repeated."""

    def __init__(self, store: CallStore) -> None:
        self._store = store

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: Any,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Log a message that will be retried. Called after Retries, which has decided by then."""
        if exception is not None and not message.failed:
            log.warning("message failed, will retry", actor=message.actor_name, reason=_reason(exception))

    def before_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        """Record a message that will not be retried, or that cannot be decoded."""
        exception = message.exception
        metrics.DEAD_LETTERS.add(message.queue_name)
        log.error("message failed, dead-lettered", actor=message.actor_name, reason=_reason(exception))
        trace = logs.redact("".join(traceback.format_exception(exception)))
        # An unreadable message has no arguments, only its bytes.
        body = json.dumps({"kwargs": message.kwargs}, default=str) if message.kwargs else _text(message.body)
        detail = f"{_reason(exception)}\n{logs.redact(body)}\n{trace}"[:_LENGTH]
        try:
            call = self._store.load(messages.call_id(message.kwargs.get("call_id")))
        except errors.PipelineError:
            call = None
        try:
            self._store.append_timeline(
                [TimelineEntry(kind="dead-letter", name=message.actor_name, detail=detail)],
                call=call,
                connection_id=_connection_id(message) if call is None else None,
            )
        except errors.PipelineError as failure:
            log.error("dead letter not recorded", reason=str(failure))


def _connection_id(message: Any) -> int | None:
    """Return the connection whose event it was; None for other messages, and for one that cannot be read."""
    connection_id = message.kwargs.get("connection_id")
    return connection_id if isinstance(connection_id, int) else None


def _reason(exception: BaseException) -> str:
    return logs.redact(f"{type(exception).__name__}: {exception}")


def _text(body: bytes) -> str:
    # Postgres accepts no NUL in a text.
    return body.decode(errors="backslashreplace").replace("\0", "\\x00")
