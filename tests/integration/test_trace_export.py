"""Traces of a process: not even imported while they are off, sent to a collector by HTTP, and held up by none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog

from shared import redaction, spans
from shared.process import settings, traces
from tests.support.trace_receiver import receiving
from tests.support.traced_work import CALL, Work, command, without_traces


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_traces(monkeypatch):
        yield


def test_off_nothing_of_opentelemetry_is_imported_and_nothing_is_kept() -> None:
    """redis-py imports a part of it where it is installed: that is imported first, and left out."""
    code = (
        "import sys, redis, redis.asyncio\n"
        "before = set(sys.modules)\n"
        "import listener.main, scheduler.main, workers.main, arictl.main\n"
        "from shared import spans\n"
        "from shared.process import settings, traces\n"
        "config = settings.Base.model_construct(process_name='w')\n"
        "with traces.running(config, 'worker'):\n"
        "    assert spans.begin() is None and not spans.is_on()\n"
        "print([name for name in set(sys.modules) - before if name.startswith(('opentelemetry', 'google'))])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_spans_are_sent_as_the_standard_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings.Base.model_construct(process_name="w1")
    with receiving() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=collector%2Dsecret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        monkeypatch.setattr(redaction, "SECRETS", redaction.Secrets())
        with traces.running(config, "worker"):
            assert redaction.redact("collector-secret collector%2Dsecret") == "[redacted] [redacted]"
            with Work(command()):
                pass
        assert collector.paths == {"/v1/traces"}
        assert collector.headers["api-key"] == "collector-secret"
        names = {span.name.split()[0] for span in collector.of(CALL.hex)}
    assert names == {"process", "wait"}
    assert {span.service for span in collector.spans} == {"ours"}
    assert not spans.is_on()


def test_a_collector_that_answers_nothing_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process that ends waits for it 2 s at most."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "512")
    began = time.monotonic()
    with structlog.testing.capture_logs() as logged:
        with traces.running(settings.Base.model_construct(process_name="w1"), "worker"):
            for _ in range(520):
                with Work(command()):
                    pass
            worked = time.monotonic() - began
        ended = time.monotonic() - began
        # A process would be over; here what it still logs would show in another test.
        for thread in threading.enumerate():
            if thread.name == "traces":
                thread.join(20)
    assert worked < 5
    assert ended < worked + 4
    assert [entry["event"] for entry in logged if entry["log_level"] == "warning"] in (
        [],
        ["traces not exported, is the collector there?"],
    )
