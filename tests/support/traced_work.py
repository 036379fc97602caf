"""Work on a message, as a worker does it, of which traces are made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog

from shared import current_message, messages, spans
from shared.call import commands
from workers.message_context import MessageContext

CALL = UUID("0c9a4e52-9c5e-4c53-8a5f-6d0a5d6a2f11")
#: Redis's time, now.
NOW_MS = 1_800_000_000_000
BROKER: Any = None


@contextlib.contextmanager
def without_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with no variable that asks for traces; end with traces off, and no message at work."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    yield
    spans.switch_off()
    current_message.end()
    structlog.contextvars.clear_contextvars()


def command(**options: Any) -> messages.Message:
    made = messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7)
    message = made.copy(message_timestamp=NOW_MS - 25)
    message.options.update(options)
    return message


class Work:
    """The work on a message, as a worker does it."""

    def __init__(self, message: messages.Message, exception: BaseException | None = None) -> None:
        self._context = MessageContext(lambda at_ms: max(0.0, NOW_MS - at_ms))
        self._message = message
        self._exception = exception

    def __enter__(self) -> None:
        self._context.before_process_message(BROKER, self._message)

    def __exit__(self, *_: object) -> None:
        self._context.after_process_message(BROKER, self._message, exception=self._exception)
