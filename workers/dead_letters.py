"""Dead letters: a message that failed for good becomes a row of the timeline, with what it was and why it failed."""

from __future__ import annotations

import json
import traceback
from typing import Any

import dramatiq
import structlog

from shared import errors, messages
from shared.process import logs
from shared.storage.call_store import CallStore
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)
_LENGTH = 8000


class DeadLetters(dramatiq.Middleware):
    """Writes them before the broker rejects the message: should that fail, it is written again."""

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
        """Logs a message that will be tried again. Told after Retries, which has judged by then."""
        if exception is not None and not message.failed:
            log.warning("message is tried again", actor=message.actor_name, reason=_why(exception))

    def before_nack(self, broker: dramatiq.Broker, message: Any) -> None:
        """Records a message that will not be tried again, or that nobody can read."""
        exception = message.exception
        log.error("message failed for good", actor=message.actor_name, reason=_why(exception))
        trace = logs.redact("".join(traceback.format_exception(exception)))
        # One that cannot be read has nothing but its bytes.
        body = json.dumps({"kwargs": message.kwargs}, default=str) if message.kwargs else _text(message.body)
        detail = f"{_why(exception)}\n{logs.redact(body)}\n{trace}"[:_LENGTH]
        try:
            call = self._store.load(messages.call_id(message.kwargs.get("call_id")))
        except errors.PipelineError:
            call = None
        try:
            self._store.append_timeline(
                [TimelineEntry(kind="dead-letter", name=message.actor_name, detail=detail)], call=call
            )
        except errors.PipelineError as failure:
            log.error("the dead letter could not be recorded", reason=str(failure))


def _why(exception: BaseException) -> str:
    return logs.redact(f"{type(exception).__name__}: {exception}")


def _text(body: bytes) -> str:
    # Postgres takes no NUL in a text.
    return body.decode(errors="backslashreplace").replace("\0", "\\x00")
