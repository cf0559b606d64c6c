"""Telemetry: what is exported over OTLP, the figures, and what is left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider
from support.asgi import answer, exchange, keyed
from support.otlp import Receiver, otlp_receiver

from asgi_durable import Durable, Telemetry

pytestmark = pytest.mark.anyio


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


def shop(url: str, telemetry: Telemetry):
    durable = Durable(url, telemetry=telemetry)

    @durable.step(name="reserve")
    async def reserve() -> None:
        logging.getLogger("asgi_durable.test").warning("reserved")

    async def app(_scope, _receive, send) -> None:
        await reserve()
        await answer(send, b"")

    return durable, durable.wrap(app)


async def test_spans_and_log_lines_are_exported_by_the_end_of_the_engine(
    url: str, receiver: Receiver
) -> None:
    telemetry = Telemetry(
        otlp_traces_endpoints=[f"{receiver.url}/v1/traces"],
        otlp_logs_endpoints=[f"{receiver.url}/v1/logs"],
    )
    durable, app = shop(url, telemetry)
    async with durable:
        await exchange(app, keyed())

    names = [
        span.name
        for body in receiver.bodies["/v1/traces"]
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    lines = [
        record
        for body in receiver.bodies["/v1/logs"]
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    assert sorted(names) == ["POST", "durable.step reserve"]
    (reserved,) = [line for line in lines if line.body.string_value == "reserved"]
    assert {"request_id", "workflow_id", "step"} <= {pair.key for pair in reserved.attributes}
    # The application's own providers are left as they were.
    assert isinstance(get_tracer_provider(), ProxyTracerProvider)
    assert logging.getLogger("asgi_durable").handlers == []


async def test_a_receiver_that_is_away_costs_no_request(url: str) -> None:
    telemetry = Telemetry(otlp_traces_endpoints=["http://127.0.0.1:9/v1/traces"])
    durable, app = shop(url, telemetry)
    async with durable:
        assert (await exchange(app, keyed())).status == 200


async def test_figures_go_to_the_meter_provider(url: str) -> None:
    reader = InMemoryMetricReader()
    durable, app = shop(url, Telemetry(meter_provider=MeterProvider([reader])))
    async with durable:
        for _ in range(2):
            await exchange(app, keyed())
        data = reader.get_metrics_data()

    assert data is not None
    points = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    outcomes = {
        point.attributes["idempotency.outcome"]: point.value
        for point in points["idempotency.requests"]
    }
    assert outcomes == {"executed": 1, "replayed": 1}
    assert any("step" in name for name in points)
    assert any("commit" in name for name in points)
