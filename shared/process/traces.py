"""Traces by OpenTelemetry, an optional extra: exported by OTLP over HTTP, as the standard OTEL_* variables say.

Nothing of OpenTelemetry is imported unless one of these variables asks for it. The spans wait in a bounded queue, and a
thread of its own sends them: no call waits for a collector. What is dropped is lost, and said once.
"""

# ruff: noqa: PLC0415  # OpenTelemetry is imported when it is wanted

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib import parse
from uuid import UUID

import structlog

from shared import errors, redaction, spans
from shared.process import release, settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = structlog.stdlib.get_logger(__name__)

_NAMESPACE = "ari-pipeline"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
#: A process that ends waits for the last spans as long as this.
_STOP_SECONDS = 2.0


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the environment asks for traces: it names where to, or the exporter."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter == "otlp" or (exporter == "" and any(environment.get(name) for name in _ENDPOINTS))


@contextlib.contextmanager
def running(config: settings.Base, process: str) -> Iterator[None]:
    """Export the spans of a process whose logs are configured, if the environment asks for it.

    Raises:
        InvalidSettings: It does, and OpenTelemetry is not installed, or cannot be used so.
    """
    settings.read_opentelemetry()
    if not is_wanted(os.environ):
        yield
        return
    for name in _HEADERS:
        for pair in os.environ.get(name, "").split(","):
            secret = pair.partition("=")[2].strip()
            # They are %-encoded there, and sent as they are.
            redaction.SECRETS.add(secret)
            redaction.SECRETS.add(parse.unquote(secret))
    for name in _ENDPOINTS:
        redaction.SECRETS.add_url(os.environ.get(name, ""))
    try:
        processor = _batches()
    except ImportError:
        raise errors.InvalidSettings("  OTEL_*: traces need OpenTelemetry: pip install 'ari-pipeline[otel]'") from None
    except ValueError as exc:
        raise errors.InvalidSettings(f"  OTEL_*: {redaction.redact(str(exc))}") from None
    switch_on(processor, process=process, instance=config.name)
    log.info("traces exported", protocol="http/protobuf")
    try:
        yield
    finally:
        spans.switch_off()
        # Its exporter may wait for a collector that gives no answer.
        stopping = threading.Thread(target=processor.shutdown, name="traces", daemon=True)
        stopping.start()
        stopping.join(_STOP_SECONDS)


def switch_on(processor: SpanProcessor, *, process: str, instance: str) -> None:
    """Hand the spans of this process to a processor."""
    exported = _Exported(processor, process=process, instance=instance)
    spans.switch_on(exported.emit, exported.is_sampled)


def _batches() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # They log each failure, and each span that is dropped; here it is said once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return BatchSpanProcessor(_saying_once(OTLPSpanExporter()))


def _saying_once(exporter: SpanExporter) -> SpanExporter:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class SayingOnce(SpanExporter):
        """Logs that spans are not exported, and that they are again: one line each."""

        fails = False

        def export(self, exported: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = exporter.export(exported)
            except Exception:  # noqa: BLE001 - whatever is wrong with a collector, spans are lost and nothing else
                result = SpanExportResult.FAILURE
            has_failed = result is not SpanExportResult.SUCCESS
            if has_failed and not self.fails:
                log.warning("traces not exported, is the collector there?")
            elif self.fails and not has_failed:
                log.info("traces exported again")
            self.fails = has_failed
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return SayingOnce()


class _Exported:
    """Makes OpenTelemetry's spans of ours."""

    def __init__(self, processor: SpanProcessor, *, process: str, instance: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import ReadableSpan, sampling
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._trace = trace
        self._readable = ReadableSpan
        self._processor = processor
        self._sampler = sampling._get_from_env_or_default()
        self._scope = InstrumentationScope(_NAMESPACE, release.VERSION)
        self._resource = _resource(process, {"service.instance.id": instance})
        self._listener = _resource("listener", {})
        self._lock = threading.Lock()

    def is_sampled(self, call_id: UUID) -> bool:
        """Return whether the trace of a call is kept: each process decides alike, by its id.

        A sampler looks at the last 64 bits of a trace id; of a call's id the first two of these are fixed.
        """
        mixed = (call_id.int >> 64 | call_id.int << 64) & (2**128 - 1)
        decision = self._sampler.should_sample(None, mixed, "call").decision
        return bool(decision.is_sampled())  # type: ignore[no-untyped-call]  # the library's

    def emit(self, kept: spans.Recording) -> None:
        """Hand over what a thread has done."""
        try:
            self._emit(kept)
        except Exception:
            # A trace breaks no call.
            log.exception("spans not kept, a bug")

    def _emit(self, kept: spans.Recording) -> None:
        calls = {span.span_id: span.call_id or kept.main_call for span in kept.spans}
        sampled = {call_id for call_id in calls.values() if call_id is not None and self.is_sampled(call_id)}
        for span in kept.spans:
            call_id = calls[span.span_id]
            if call_id in sampled and call_id is not None:
                # A span of another call's trace is none that this one can be a part of.
                is_within = calls.get(span.parent_id, call_id) == call_id
                self._hand_over(span, call_id, parent_id=span.parent_id if is_within else 0)
        for call in kept.ended:
            if self.is_sampled(call.call_id):
                self._hand_over(_whole(call), call.call_id, parent_id=None)

    def _hand_over(self, span: spans.Span, call_id: UUID, *, parent_id: int | None) -> None:
        parent = None if parent_id is None else self._context(call_id, parent_id or root_id(call_id))
        code = self._trace.StatusCode.ERROR if span.error else self._trace.StatusCode.UNSET
        clean = {name: _clean(value) if isinstance(value, str) else value for name, value in span.attributes.items()}
        made = self._readable(
            name=span.name,
            context=self._context(call_id, span.span_id),
            parent=parent,
            resource=self._listener if span.is_of_listener else self._resource,
            attributes={"ari.call.id": str(call_id), **clean},
            kind=self._trace.SpanKind[span.kind.name],
            status=self._trace.Status(code, _clean(span.error) or None),
            start_time=span.began,
            end_time=max(span.began, span.ended),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(made)

    def _context(self, call_id: UUID, span_id: int) -> Any:
        return self._trace.SpanContext(
            trace_id=call_id.int,
            span_id=span_id,
            is_remote=False,
            trace_flags=self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED),
        )


def _clean(text: str) -> str:
    return redaction.mask_numbers(redaction.redact(text))


def root_id(call_id: UUID) -> int:
    """Return the id of the span that is the whole call: derived from its id, so that every process knows it."""
    return (call_id.int ^ (call_id.int >> 64)) & (2**64 - 1) or 1


def _whole(call: Any) -> spans.Span:
    """Return the span of a call from its beginning to its end."""
    ended = call.ended_at or call.received_at
    attributes: dict[str, str | int | float | bool] = {
        "ari.connection.id": call.connection_id,
        "ari.organization.id": call.organization_id,
        "ari.call.direction": str(call.direction),
        "ari.call.attempts": call.attempt,
    }
    if call.workflow_run_id is not None:
        attributes["ari.run.id"] = call.workflow_run_id
    if call.outcome is not None:
        attributes |= {"ari.call.outcome": str(call.outcome), "ari.call.reason": call.reason or ""}
    return spans.Span(
        name=f"call {call.direction}",
        began=int(call.received_at.timestamp() * 1e9),
        ended=int(ended.timestamp() * 1e9),
        attributes=attributes,
        span_id=root_id(call.call_id),
        error=call.reason or "" if call.outcome is not None and str(call.outcome) == "failed" else "",
    )


def _resource(process: str, attributes: Mapping[str, str]) -> Any:
    from opentelemetry.sdk.resources import Resource

    about = {"service.namespace": _NAMESPACE, "service.version": release.VERSION, **attributes}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = f"{_NAMESPACE}-{process}"
    return Resource.create(about)
