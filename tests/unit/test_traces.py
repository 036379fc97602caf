"""Traces: one for each call, by its id; on they break nothing. tests/integration/test_trace_export.py sends them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared import errors, messages, queues, redaction, spans
from shared.asterisk import rest
from shared.process import settings, traces
from tests.support.traced_work import CALL, NOW_MS, Work, command, without_traces
from workers import claims

OTHER = UUID("1c9a4e52-9c5e-4c53-8a5f-6d0a5d6a2f11")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_traces(monkeypatch):
        yield


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    traces.switch_on(SimpleSpanProcessor(made), process="worker", instance="w1")
    return made


def event(pushed_ms: int = NOW_MS - 20) -> messages.Message:
    message = command(pushed_ms=pushed_ms)
    return message.copy(kwargs={"v": 1, "connection_id": 7, "connection_version": 2, "at_ms": NOW_MS - 30})


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def ids(span: ReadableSpan) -> tuple[int, int, int]:
    """Return its trace, itself and its parent; 0 for none."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id, span.parent.span_id if span.parent is not None else 0


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_the_standard_variables_switch_it_on(environment: dict[str, str], wanted: bool) -> None:
    assert traces.is_wanted(environment) == wanted


def test_wished_for_and_not_installed_is_an_error_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(errors.InvalidSettings, match=r"ari-pipeline\[otel\]"):
        traces.running(settings.Base.model_construct(process_name="w"), "worker").__enter__()


def test_an_event_s_message_is_a_trace_over_listener_queue_and_worker(exporter: InMemorySpanExporter) -> None:
    with Work(event()), spans.of_call(CALL), spans.part("step admission"):
        pass
    found = by_name(exporter)
    queue = messages.ACTORS["start_media"]
    sent, waited, processed, step = (
        found[name] for name in (f"send {queue}", f"wait in {queue}", f"process {queue}", "step admission")
    )
    assert {ids(span)[0] for span in found.values()} == {CALL.int}
    assert ids(sent)[2] == traces.root_id(CALL)
    assert ids(waited)[2] == ids(processed)[2] == ids(sent)[1]
    assert ids(step)[2] == ids(processed)[1]
    services = [span.resource.attributes["service.name"] for span in (sent, waited, step)]
    assert services == ["ari-pipeline-listener", "ari-pipeline-worker", "ari-pipeline-worker"]
    attributes = dict(processed.attributes or {})
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.destination.name"] == queue
    assert attributes["ari.call.id"] == str(CALL)
    assert (sent.end_time or 0) - (sent.start_time or 0) == pytest.approx(10e6, abs=1e6)
    assert (waited.end_time or 0) - (waited.start_time or 0) == pytest.approx(20e6, abs=5e6)


def test_a_command_and_its_retries_are_parts_of_what_ordered_them(exporter: InMemorySpanExporter) -> None:
    sent: list[messages.Message] = []

    class Broker:
        def enqueue(self, message: messages.Message, delay: int | None = None) -> None:
            sent.append(message)

    commands_queue = queues.BrokerCommandQueue(Broker())  # type: ignore[arg-type]
    with spans.task("sweep overdue call"), spans.of_call(CALL):
        commands_queue.send(command())
    (message,) = sent
    ordering = next(span for name, span in by_name(exporter).items() if name.startswith("send"))
    assert message.options["traceparent"] == f"00-{CALL.hex}-{ids(ordering)[1]:016x}-01"
    exporter.clear()
    for tries in (0, 1):
        message.options["tries"] = tries
        with Work(message, OSError("away") if not tries else None):
            pass
    processed = [span for span in exporter.get_finished_spans() if span.name.startswith("process")]
    assert [ids(span)[2] for span in processed] == [ids(ordering)[1]] * 2
    assert [span.status.is_ok for span in processed] == [False, True]


@pytest.mark.parametrize("traceparent", [None, "", "x", f"00-{OTHER.hex}-00000000000000ff-01", "00-" + "z" * 52, 7])
def test_a_message_without_a_parent_of_its_call_is_a_part_of_the_call(
    exporter: InMemorySpanExporter, traceparent: object
) -> None:
    with Work(command(traceparent=traceparent)):
        pass
    (processed,) = (span for span in exporter.get_finished_spans() if span.name.startswith("process"))
    assert ids(processed)[::2] == (CALL.int, traces.root_id(CALL))


def test_a_message_about_no_call_has_no_trace(exporter: InMemorySpanExporter) -> None:
    with Work(event()), spans.part("something"):
        pass
    assert exporter.get_finished_spans() == ()


def test_of_several_calls_each_has_its_own_trace(exporter: InMemorySpanExporter) -> None:
    with Work(event()):
        for call_id in (CALL, OTHER):
            with spans.of_call(call_id), spans.part(f"of {call_id}"):
                pass
    found = by_name(exporter)
    assert ids(found[f"of {CALL}"])[0] == CALL.int
    assert ids(found[f"of {OTHER}"])[::2] == (OTHER.int, traces.root_id(OTHER))


def test_no_span_shows_a_secret_or_a_number(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "SECRETS", redaction.Secrets())
    redaction.SECRETS.add("tenant-password")
    told, clean = "tenant-password token=abc to +49301234567", "[redacted] token=[redacted] to +*******4567"
    with Work(command()), spans.of_call(CALL):
        kept = spans.recording()
        assert kept is not None
        kept.add("x", began=1, ended=2, attributes={"what": told}, error=told)
    span = by_name(exporter)["x"]
    assert (dict(span.attributes or {})["what"], span.status.description) == (clean, clean)


@pytest.mark.parametrize(("argument", "share"), [("0.5", 0.5), ("0.1", 0.1), ("0.9", 0.9)])
def test_a_share_of_calls_is_kept_and_every_process_keeps_the_same(
    monkeypatch: pytest.MonkeyPatch, argument: str, share: float
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    made = InMemorySpanExporter()
    one, another = (
        traces._Exported(SimpleSpanProcessor(made), process=process, instance="i")
        for process in ("worker", "scheduler")
    )
    call_ids = [uuid4() for _ in range(600)]
    kept = [one.is_sampled(call_id) for call_id in call_ids]
    assert kept == [another.is_sampled(call_id) for call_id in call_ids]
    assert sum(kept) / len(kept) == pytest.approx(share, abs=0.1)


def test_a_bug_in_a_trace_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise ValueError("a bug")

    traces.switch_on(Broken(InMemorySpanExporter()), process="worker", instance="w1")
    with structlog.testing.capture_logs() as logged, Work(command()):
        pass
    assert [entry["event"] for entry in logged] == ["spans not kept, a bug"]


def test_a_request_to_an_asterisk_is_a_span_without_ids_in_its_name(exporter: InMemorySpanExporter) -> None:
    with Work(command()), spans.of_call(CALL):
        kept = spans.recording()
        assert kept is not None
        claims._keep_span(kept, rest.RequestRecord(what="POST /channels/1.2/answer", took_ms=5, answer="204"))
        claims._keep_span(kept, rest.RequestRecord(what="POST /channels/externalMedia", took_ms=5, answer="500 x"))
    found = by_name(exporter)
    answered = found["POST /channels/{id}/answer"]
    assert dict(answered.attributes or {})["http.response.status_code"] == 204
    assert answered.status.is_ok
    assert not found["POST /channels/externalMedia"].status.is_ok


def test_a_call_s_set_up_time_names_its_trace_while_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spans.trace_id(CALL) == ""
    for sampler, named in (("always_on", CALL.hex), ("always_off", "")):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        traces.switch_on(SimpleSpanProcessor(InMemorySpanExporter()), process="worker", instance="w1")
        assert spans.trace_id(CALL) == named
