"""The destinations of spans, metrics and log lines."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from support.asgi import answer, exchange, http_scope
from support.telemetry.otlp import Receiver, attributes_of, otlp_receiver
from support.telemetry.spans import Spans

from asgi_durable import (
    Durable,
    DurableUsageError,
    RequestContextMiddleware,
    Telemetry,
    TracingMiddleware,
)
from asgi_durable.telemetry.otel import exporters

pytestmark = pytest.mark.anyio


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """An OTLP endpoint."""
    with otlp_receiver() as receiver:
        yield receiver


def shop(url: str, telemetry: Telemetry) -> tuple[Durable, Any]:
    """Return an instance, and its application: a handler with a workflow of one step."""
    durable = Durable(url, telemetry=telemetry)

    @durable.step(name="charge")
    async def charge() -> None:
        logging.getLogger("asgi_durable.shop").warning("charging %s", 7)

    @durable.workflow(name="pay")
    async def pay() -> None:
        await charge()

    async def handle(scope, receive, send) -> None:
        await pay()
        await answer(send)

    return durable, durable.wrap(handle)


TREE = ("GET", [("durable.run pay", [("durable.step charge", [])])])


async def test_spans_and_log_records_reach_an_endpoint(url: str, receiver: Receiver) -> None:
    telemetry = Telemetry(
        otlp_traces_endpoints=[receiver.traces_endpoint],
        otlp_logs_endpoints=[receiver.logs_endpoint],
    )
    durable, app = shop(url, telemetry)

    async with durable:
        await exchange(app, http_scope(headers=[("X-Request-ID", "r1")]))

    assert receiver.trees() == [TREE]
    ((name, record),) = receiver.logs
    step = next(span for span in receiver.spans if span.name == "durable.step charge")
    assert (name, record.body.string_value) == ("asgi_durable.shop", "charging 7")
    assert (record.trace_id, record.span_id) == (step.trace_id, step.span_id)
    found = attributes_of(record.attributes)
    workflow_id = attributes_of(step.attributes)["durable.workflow.id"]
    assert (
        found.items() >= {"request_id": "r1", "workflow_id": workflow_id, "step": "charge"}.items()
    )


async def test_each_start_exports_anew_and_leaves_nothing_behind(
    url: str, receiver: Receiver
) -> None:
    logger = logging.getLogger("asgi_durable")
    handlers = list(logger.handlers)
    telemetry = Telemetry(
        otlp_traces_endpoints=[receiver.traces_endpoint],
        otlp_logs_endpoints=[receiver.logs_endpoint],
    )
    durable, app = shop(url, telemetry)

    for _ in range(2):
        async with durable:
            await exchange(app, http_scope())

    assert receiver.trees() == [TREE, TREE]
    assert len(receiver.logs) == 2
    assert logger.handlers == handlers
    assert [t for t in threading.enumerate() if "Otel" in t.name] == []


async def test_spans_of_the_applications_provider_are_exported_too(
    url: str, receiver: Receiver
) -> None:
    spans = Spans()
    telemetry = Telemetry(
        otlp_traces_endpoints=[receiver.traces_endpoint], tracer_provider=spans.provider
    )
    durable, app = shop(url, telemetry)

    async with durable:
        with spans.provider.get_tracer("test").start_as_current_span("theirs"):
            await exchange(app, http_scope())
    with spans.provider.get_tracer("test").start_as_current_span("after the stop"):
        pass

    assert receiver.trees() == [("theirs", [TREE])]
    assert spans.trees() == [("theirs", [TREE]), ("after the stop", [])]


async def test_log_records_of_other_loggers_are_exported_where_named(
    url: str, receiver: Receiver
) -> None:
    telemetry = Telemetry(otlp_logs_endpoints=[receiver.logs_endpoint], log_names=["theirs"])
    durable, app = shop(url, telemetry)

    async with durable:
        await exchange(app, http_scope())
        try:
            raise LookupError("gone")
        except LookupError:
            logging.getLogger("theirs.part").exception("failed", extra={"order": 7})

    ((name, record),) = receiver.logs
    found = attributes_of(record.attributes)
    assert (name, record.severity_text) == ("theirs.part", "ERROR")
    assert (found["exception.type"], found["exception.message"]) == ("LookupError", "gone")
    assert found["order"] == 7


async def test_the_applications_global_providers_are_left_alone(
    url: str, receiver: Receiver
) -> None:
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    durable, app = shop(url, Telemetry(otlp_traces_endpoints=[receiver.traces_endpoint]))

    async with durable:
        await exchange(app, http_scope())

        assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before


async def test_a_receiver_that_is_away_costs_no_request(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    durable, app = shop(url, Telemetry(otlp_traces_endpoints=["http://127.0.0.1:9/v1/traces"]))

    async with durable:
        assert (await exchange(app, http_scope())).status == 200


async def test_an_endpoint_that_does_not_answer_does_not_keep_the_stop(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporters, "CLOSE_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        durable, app = shop(url, Telemetry(otlp_traces_endpoints=[endpoint]))

        async with durable:
            await exchange(app, http_scope())

        assert "does not respond" in caplog.text
        # The thread that exports ends when the connection does.
        connection, _ = silent.accept()
        connection.close()
    for thread in threading.enumerate():
        if thread.name == "asgi-durable-telemetry":
            thread.join()


async def test_log_records_have_their_request_without_an_engine_too(receiver: Receiver) -> None:
    telemetry = Telemetry(otlp_logs_endpoints=[receiver.logs_endpoint])

    async def handle(scope, receive, send) -> None:
        logging.getLogger("asgi_durable.shop").warning("served")
        await answer(send)

    app = RequestContextMiddleware(TracingMiddleware(handle, telemetry=telemetry))
    await exchange(app, http_scope(headers=[("X-Request-ID", "r1")]))
    await telemetry.close()

    ((_, record),) = receiver.logs
    assert attributes_of(record.attributes)["request_id"] == "r1"


def test_endpoints_without_the_extra_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_exporter(name: str, package: str | None = None):
        if "exporter" in name:
            raise ModuleNotFoundError(name)
        return found(name, package)

    monkeypatch.setattr("asgi_durable.telemetry.config.find_spec", without_exporter)

    with pytest.raises(DurableUsageError, match=r"asgi-durable\[otel\]"):
        Telemetry(otlp_traces_endpoints=["http://localhost:4318/v1/traces"])


@pytest.mark.parametrize("seconds", [-1, math.nan, True, "always", None])
def test_what_is_no_number_of_seconds_is_refused(seconds: Any) -> None:
    with pytest.raises(DurableUsageError, match="continue_trace is a number of seconds"):
        Telemetry(continue_trace=seconds)


async def test_a_provider_that_takes_no_exporters_is_refused(url: str) -> None:
    telemetry = Telemetry(
        otlp_traces_endpoints=["http://127.0.0.1:1/v1/traces"],
        tracer_provider=trace.NoOpTracerProvider(),
    )

    with pytest.raises(DurableUsageError, match="NoOpTracerProvider"):
        async with Durable(url, telemetry=telemetry):
            pass


def test_a_global_provider_is_found_if_it_is_set_before_the_first_request(tmp_path) -> None:
    program = f"""
import asyncio, sys
sys.path[:0] = ['tests', 'tests/unit']
from asgi_durable import Telemetry
from test_telemetry import shop, exchange, http_scope, Spans, trace
spans = Spans()
durable, app = shop('sqlite:///{tmp_path}/test.db', Telemetry())
async def main():
    async with durable:
        trace.set_tracer_provider(spans.provider)
        await exchange(app, http_scope())
asyncio.run(main())
print(spans.trees())
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str([TREE])


def test_a_propagator_that_is_not_installed_matters_to_no_process_without_spans(tmp_path) -> None:
    program = f"""
import asyncio, sys
sys.path.insert(0, 'tests')
import httpx
from asgi_durable import Durable
from support.asgi import answer, exchange, http_scope
durable = Durable('sqlite:///{tmp_path}/test.db')
trace = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
async def handle(scope, receive, send):
    request = httpx.Request('GET', 'https://shop.example/')
    await durable.add_trace_headers(request)
    assert request.headers['traceparent'] == trace
    await answer(send)
async def main():
    async with durable:
        headers = [('traceparent', trace)]
        print((await exchange(durable.wrap(handle), http_scope(headers=headers))).status)
asyncio.run(main())
"""
    environment = {**os.environ, "OTEL_PROPAGATORS": "not-installed"}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.strip() == "200"
