"""A collector of traces: takes OTLP over HTTP, parses it, and keeps the spans."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A span as a collector has it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    #: Empty for the root of a trace.
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, str]


class TraceReceiver:
    """Keeps what it was sent; answers with `status`."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.paths: set[str] = set()
        self.headers: dict[str, str] = {}
        self.status = 200
        self.url = ""

    def of(self, trace_id: str) -> list[Received]:
        """Return the spans of a trace, by their beginning."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.began)

    def take(self, body: bytes) -> None:
        """Parse a request of OTLP."""
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            about = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [
                    Received(
                        service=about["service.name"],
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        began=span.start_time_unix_nano,
                        ended=span.end_time_unix_nano,
                        attributes={each.key: _text(each.value) for each in span.attributes},
                    )
                    for span in scope.spans
                ]


def _text(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    return str(getattr(value, kind))


@contextmanager
def receiving() -> Iterator[TraceReceiver]:
    """Run a collector on a free port."""
    kept = TraceReceiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            kept.paths.add(self.path)
            kept.headers = dict(self.headers.items())
            if kept.status == 200:
                kept.take(body)
            self.send_response(kept.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
