"""The observer and the request spans of an application that has providers or endpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from asgi_durable.telemetry.observer import NO_OBSERVER, Observer
from asgi_durable.telemetry.otel.metrics import Metrics
from asgi_durable.telemetry.otel.observer import OtelObserver
from asgi_durable.telemetry.otel.request_metrics import RequestTimes
from asgi_durable.telemetry.otel.server_spans import ServerSpans

__all__ = ["Options", "Outputs", "open_outputs"]

_SCOPE = "asgi_durable"
_EXPORTERS = "asgi_durable.telemetry.otel.exporters"


class Options(Protocol):
    """The settings of a :class:`~asgi_durable.telemetry.config.Telemetry`."""

    otlp_traces_endpoints: Sequence[str]
    otlp_logs_endpoints: Sequence[str]
    log_names: Sequence[str]
    log_filter: logging.Filter | None
    continue_trace: float
    summary_span: bool
    request_attributes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None


class Outputs:
    """Where spans and metrics go, from a start to a stop.

    Attributes:
        observer: Makes spans and metrics of the engine's work.
        server_spans: Opens the spans of requests and measures their durations; ``None`` without
            any provider.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        exporters: Any,
        options: Options,
    ) -> None:
        tracer = tracer_provider.get_tracer(_SCOPE) if tracer_provider is not None else None
        meter = meter_provider.get_meter(_SCOPE) if meter_provider is not None else None
        self._exporters = exporters
        self.observer: Observer = NO_OBSERVER
        self.server_spans: ServerSpans | None = None
        if tracer is not None or meter is not None:
            metrics = Metrics(meter) if meter is not None else None
            times = RequestTimes(metrics) if metrics is not None else None
            self.observer = OtelObserver(
                tracer,
                metrics,
                continue_trace=options.continue_trace,
                summary_span=options.summary_span,
            )
            self.server_spans = ServerSpans(tracer, times, options.request_attributes)

    async def close(self) -> None:
        """Export what is left, within a few seconds."""
        if self._exporters is not None:
            await self._exporters.close()


def open_outputs(
    options: Options,
    tracer_provider: TracerProvider | None,
    meter_provider: MeterProvider | None,
) -> Outputs:
    """Start the exporters of the endpoints, and return where spans and metrics go.

    Args:
        options: The endpoints and all other settings.
        tracer_provider: The application's; without one, endpoints get a provider of our own.
        meter_provider: The application's.

    Raises:
        DurableUsageError: The application's provider takes no exporters.
    """
    exporters = None
    if options.otlp_traces_endpoints or options.otlp_logs_endpoints:
        # By name, as it needs the extra `otel`.
        exporters = import_module(_EXPORTERS).Exporters()
        if options.otlp_traces_endpoints:
            tracer_provider = exporters.export_traces(
                tracer_provider, options.otlp_traces_endpoints
            )
        if options.otlp_logs_endpoints:
            exporters.export_logs(
                options.otlp_logs_endpoints, options.log_names, options.log_filter
            )
    return Outputs(tracer_provider, meter_provider, exporters, options)
