"""An OTLP/HTTP receiver in the tests' own process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.telemetry.spans import Tree, trees_of

TRACES_PATH, LOGS_PATH = "/v1/traces", "/v1/logs"


class Receiver:
    """An OTLP/HTTP receiver on a port of this machine.

    Attributes:
        bodies: The request bodies, by path.
    """

    def __init__(self) -> None:
        bodies: dict[str, list[bytes]] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                bodies.setdefault(self.path, []).append(self.rfile.read(length))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        self.bodies = bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.traces_endpoint = self.url + TRACES_PATH
        self.logs_endpoint = self.url + LOGS_PATH

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order of their starts."""
        found = [
            span
            for body in self.bodies.get(TRACES_PATH, ())
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    @property
    def logs(self) -> list[tuple[str, LogRecord]]:
        """All log records, each with the name of its logger."""
        return [
            (scope.scope.name, record)
            for body in self.bodies.get(LOGS_PATH, ())
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def trees(self) -> list[Tree]:
        """Return the names of all spans, each with its children, in the order of their starts."""
        return trees_of(
            [(s.name, _number(s.span_id), _number(s.parent_span_id)) for s in self.spans]
        )


def attributes_of(values: Iterable[KeyValue]) -> dict[str, Any]:
    """Return attributes as Python values."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
        for pair in values
    }


def _number(span_id: bytes) -> int:
    return int.from_bytes(span_id, "big")


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
