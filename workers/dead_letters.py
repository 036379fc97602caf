"""Dead letters: a message that failed for good becomes a row of the timeline, with what it was and why it failed."""

from __future__ import annotations

import json
import traceback
from typing import Any

import dramatiq
import structlog

from shared import errors, logs, messages
from shared.store import Note, Store

log = structlog.stdlib.get_logger(__name__)
_LENGTH = 8000


class DeadLetters(dramatiq.Middleware):
    """Must come before Dramatiq's Retries, whose verdict it reads: what comes after is told first."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: Any,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Records a message that will not be tried again; logs one that will."""
        if exception is None:
            return
        why = logs.redact(f"{type(exception).__name__}: {exception}")
        if not message.failed:
            log.warning("message is tried again", actor=message.actor_name, why=why)
            return
        log.error("message failed for good", actor=message.actor_name, why=why)
        trace = logs.redact("".join(traceback.format_exception(exception)))
        body = json.dumps({"kwargs": message.kwargs}, default=str)
        detail = f"{why}\n{body}\n{trace}"[:_LENGTH]
        try:
            call = self._store.load(messages.call_id(message.kwargs.get("call_id")))
        except errors.PipelineError:
            call = None
        try:
            self._store.note([Note(kind="dead-letter", name=message.actor_name, detail=detail)], call=call)
        except errors.PipelineError as failure:
            log.error("the dead letter could not be recorded", why=str(failure))
