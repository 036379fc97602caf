"""What a thread did for a call, as the spans of a trace: kept here while it works, and handed over when it is done.

Off, which is the default, nothing is kept, and no part of OpenTelemetry is imported: `shared.process.traces` switches
it on and exports the spans. Every call is one trace, whose id is the call's: all that know the call know its trace.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from uuid import UUID

from shared.call.calls import Call

#: Most spans that are kept of one message: a resync may work on thousands of calls.
MOST_SPANS = 500


class Kind(StrEnum):
    """OpenTelemetry's kinds of spans."""

    INTERNAL = "internal"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(slots=True, kw_only=True)
class Span:
    """A part of the work; its moments are in ns since the epoch, by this host's clock."""

    name: str
    kind: Kind = Kind.INTERNAL
    began: int
    ended: int = 0
    attributes: Mapping[str, str | int | float | bool]
    span_id: int
    #: The span that it is a part of; 0 for none of this thread.
    parent_id: int = 0
    #: The call that it was for; None before that was known.
    call_id: UUID | None = None
    error: str = ""
    #: It is told for a listener, which knows no call.
    is_of_listener: bool = False


@dataclass(slots=True, kw_only=True)
class Recording:
    """What this thread does, until it is done."""

    spans: list[Span] = field(default_factory=list)
    #: The open spans, the innermost one last.
    open: list[Span] = field(default_factory=list)
    #: The first call that it was for: that of every span before it was known.
    main_call: UUID | None = None
    #: The call that is worked on now.
    call_id: UUID | None = None
    #: The calls that have ended by it.
    ended: list[Call] = field(default_factory=list)

    def work_on(self, call_id: UUID) -> UUID | None:
        """Have what follows be of the trace of a call; return the call before."""
        before, self.call_id = self.call_id, call_id
        self.main_call = self.main_call or call_id
        return before

    def add(
        self,
        name: str,
        *,
        kind: Kind = Kind.INTERNAL,
        began: int,
        ended: int,
        attributes: Mapping[str, str | int | float | bool],
        error: str = "",
    ) -> Span:
        """Keep a span that is over, as a part of the innermost open one."""
        span = self._made(name, kind, began, attributes)
        span.ended, span.error = ended, error
        return span

    def begin(
        self, name: str, *, kind: Kind = Kind.INTERNAL, attributes: Mapping[str, str | int | float | bool]
    ) -> Span:
        """Begin a span: what is kept until its end is a part of it."""
        span = self._made(name, kind, time.time_ns(), attributes)
        self.open.append(span)
        return span

    def end(self, span: Span, error: str = "") -> None:
        """End a span."""
        span.ended, span.error = time.time_ns(), error
        if span in self.open:
            del self.open[self.open.index(span) :]

    def _made(self, name: str, kind: Kind, began: int, attributes: Mapping[str, str | int | float | bool]) -> Span:
        span = Span(
            name=name,
            kind=kind,
            began=began,
            attributes=attributes,
            span_id=new_span_id(),
            parent_id=self.open[-1].span_id if self.open else 0,
            call_id=self.call_id,
        )
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)
        return span


#: Takes what a thread has done. It must not wait, and must not fail.
Emit = Callable[[Recording], None]


class _Switch:
    emit: Emit | None = None
    is_sampled: Callable[[UUID], bool] = staticmethod(lambda _call_id: True)


class _Here(threading.local):
    recording: Recording | None = None


_HERE = _Here()


def switch_on(emit: Emit, is_sampled: Callable[[UUID], bool] = lambda _call_id: True) -> None:
    """Keep spans from now on, in every thread."""
    _Switch.emit, _Switch.is_sampled = emit, staticmethod(is_sampled)


def switch_off() -> None:
    """Keep none any more."""
    _Switch.emit = None
    _HERE.recording = None


def is_on() -> bool:
    """Return whether spans are kept at all."""
    return _Switch.emit is not None


def recording() -> Recording | None:
    """Return what this thread keeps; None while it keeps nothing."""
    return _HERE.recording


def begin() -> Recording | None:
    """Have this thread keep what it does; return None if spans are off."""
    _HERE.recording = Recording() if _Switch.emit is not None else None
    return _HERE.recording


def done() -> None:
    """Hand over what this thread has kept."""
    kept, _HERE.recording = _HERE.recording, None
    if kept is not None and _Switch.emit is not None:
        _Switch.emit(kept)


class part(AbstractContextManager[None]):
    """A context whose work is a span of its own; without a recording it does nothing."""

    __slots__ = ("_attributes", "_name", "_recording", "_span")

    def __init__(self, name: str, **attributes: str | int | float | bool) -> None:
        self._name = name
        self._attributes = attributes
        self._span: Span | None = None

    def __enter__(self) -> None:
        self._recording = _HERE.recording
        if self._recording is not None:
            self._span = self._recording.begin(self._name, attributes=self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._recording is not None and self._span is not None:
            self._recording.end(self._span, type(value).__name__ if value is not None else "")


class task(AbstractContextManager[None]):
    """A context in which a thread that handles no message keeps what it does, as one span: a sweep, for instance."""

    __slots__ = ("_kept", "_name", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._kept = begin()
        self._span = None if self._kept is None else self._kept.begin(self._name, attributes={})

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._kept is not None and self._span is not None:
            self._kept.end(self._span, type(value).__name__ if value is not None else "")
            done()


class _OfCall(AbstractContextManager[None]):
    __slots__ = ("_before", "_call_id", "_recording")

    def __init__(self, kept: Recording, call_id: UUID) -> None:
        self._recording = kept
        self._call_id = call_id

    def __enter__(self) -> None:
        self._before = self._recording.work_on(self._call_id)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recording.call_id = self._before


_NOTHING: AbstractContextManager[None] = nullcontext()


def of_call(call_id: UUID) -> AbstractContextManager[None]:
    """Have what is done within be of the trace of a call."""
    kept = _HERE.recording
    return _OfCall(kept, call_id) if kept is not None else _NOTHING


def note_ended(call: Call) -> None:
    """A call has ended: its trace gets the span that all the others are parts of."""
    if _HERE.recording is not None:
        _HERE.recording.ended.append(call)


def new_span_id() -> int:
    """Return a random id that is none of another span."""
    return random.getrandbits(64) or 1


def of_messaging(operation: str, queue: str, message_id: str) -> dict[str, str | int | float | bool]:
    """Return the attributes of what is done with a message, by OpenTelemetry's conventions for messaging."""
    return {
        "messaging.system": "redis",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": message_id,
    }


@contextmanager
def sending(queue: str, message_id: str, call_id: object) -> Iterator[str]:
    """Keep the sending of a message as a span; yield the traceparent that it is to carry, empty for none.

    Args:
        call_id: The call that the message names; None for one that names none, which is of the call worked on.
    """
    kept = _HERE.recording
    call = None if kept is None else UUID(call_id) if isinstance(call_id, str) else kept.call_id or kept.main_call
    if kept is None or call is None:
        yield ""
        return
    with of_call(call):
        span = kept.begin(f"send {queue}", kind=Kind.PRODUCER, attributes=of_messaging("send", queue, message_id))
        error = ""
        try:
            yield traceparent(call, span.span_id)
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            kept.end(span, error)


# ── W3C trace context ────────────────────────────────────────────────────────────────────────────────────────────────


def traceparent(call_id: UUID, span_id: int) -> str:
    """Return the header of W3C's trace context that names a span of a call's trace."""
    flags = "01" if _Switch.is_sampled(call_id) else "00"
    return f"00-{call_id.hex}-{span_id:016x}-{flags}"


def parent_of(text: object, call_id: UUID) -> int:
    """Return the span that a traceparent names, if it is one of this call's trace; 0 otherwise."""
    parts = text.split("-") if isinstance(text, str) and len(text) == 55 else ()
    if len(parts) != 4 or parts[1] != call_id.hex:
        return 0
    try:
        return int(parts[2], 16)
    except ValueError:
        return 0


def trace_id(call_id: UUID) -> str:
    """Return the trace of a call, for an exemplar; empty while spans are off, or if the trace is not kept."""
    return call_id.hex if _Switch.emit is not None and _Switch.is_sampled(call_id) else ""
