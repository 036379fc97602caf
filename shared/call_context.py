"""Which call and connection the log lines of this thread concern: bound where its part begins, not at each line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Any
from uuid import UUID

from structlog import contextvars

from shared import spans
from shared.call.calls import Call


class _Here(threading.local):
    #: The call that is bound: a step within the report of its call binds nothing again.
    call_id: UUID | None = None


_HERE = _Here()


class of_call(AbstractContextManager[None]):
    """Put the call and its connection on every line that is logged within, and what is done into the call's trace.

    A class, as `contextlib.contextmanager` and structlog's own context take several times as long.
    """

    __slots__ = ("_around", "_before", "_call", "_recording", "_tokens")

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        call = self._call
        self._tokens: Mapping[str, Token[Any]] = {}
        self._around, _HERE.call_id = _HERE.call_id, call.call_id
        if self._around != call.call_id:
            self._tokens = contextvars.bind_contextvars(call=str(call.call_id), connection=str(call.connection))
        self._recording = spans.recording()
        self._before: UUID | None = None
        if self._recording is not None:
            self._before = self._recording.work_on(call.call_id)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        contextvars.reset_contextvars(**self._tokens)
        _HERE.call_id = self._around
        if self._recording is not None:
            self._recording.call_id = self._before
