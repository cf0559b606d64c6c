"""Finds the application's providers, and starts exporters if there are endpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from asgi_durable.telemetry.observer import NO_OBSERVER, Observer
from asgi_durable.telemetry.otel.metrics import Metrics
from asgi_durable.telemetry.otel.observer import OtelObserver
from asgi_durable.telemetry.otel.request_metrics import RequestTimes
from asgi_durable.telemetry.otel.server_spans import ServerSpans

__all__ = ["Outlets", "Wishes", "open_outlets"]

_SCOPE = "asgi_durable"
_EXPORTERS = "asgi_durable.telemetry.otel.exporters"
# The API has no public way to tell whether a meter provider is set.
_UNSET_METER_PROVIDER = "_ProxyMeterProvider"


class Wishes(Protocol):
    """The application's settings: a :class:`~asgi_durable.telemetry.config.Telemetry`."""

    otlp_traces_endpoints: Sequence[str]
    otlp_logs_endpoints: Sequence[str]
    log_names: Sequence[str]
    log_filter: logging.Filter | None
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    continue_trace: float
    summary_span: bool
    request_attributes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None


class Outlets:
    """The destinations of spans and metrics.

    Attributes:
        observer: Observes the engine's work.
        server_spans: Opens the spans of requests and takes their times, ``None`` without any
            provider.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        exporters: Any,
        wishes: Wishes,
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
                continue_trace=wishes.continue_trace,
                summary_span=wishes.summary_span,
            )
            self.server_spans = ServerSpans(tracer, times, wishes.request_attributes)

    async def close(self) -> None:
        """Export the rest, in a limited time."""
        if self._exporters is not None:
            await self._exporters.close()


def open_outlets(wishes: Wishes) -> Outlets:
    """Return the destinations of spans and metrics, and start exporters if there are endpoints.

    Raises:
        DurableUsageError: The application's provider accepts no exporters.
    """
    tracer_provider = wishes.tracer_provider or _global_tracer_provider()
    exporters = None
    if wishes.otlp_traces_endpoints or wishes.otlp_logs_endpoints:
        # Loaded by name: it needs the SDK, which is an extra.
        exporters = import_module(_EXPORTERS).Exporters()
        if wishes.otlp_traces_endpoints:
            tracer_provider = exporters.export_traces(tracer_provider, wishes.otlp_traces_endpoints)
        if wishes.otlp_logs_endpoints:
            exporters.export_logs(wishes.otlp_logs_endpoints, wishes.log_names, wishes.log_filter)
    meter_provider = wishes.meter_provider or _global_meter_provider()
    return Outlets(tracer_provider, meter_provider, exporters, wishes)


def _global_tracer_provider() -> TracerProvider | None:
    found = trace.get_tracer_provider()
    is_unset = isinstance(found, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
    return None if is_unset else found


def _global_meter_provider() -> MeterProvider | None:
    found = metrics.get_meter_provider()
    is_unset = (
        isinstance(found, metrics.NoOpMeterProvider)
        or type(found).__name__ == _UNSET_METER_PROVIDER
    )
    return None if is_unset else found
