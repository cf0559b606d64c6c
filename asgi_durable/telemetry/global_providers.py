"""The providers of spans and metrics that an application has set for its whole process."""

from __future__ import annotations

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

__all__ = ["global_meter_provider", "global_tracer_provider"]

# The API has no public name for the meter provider that it returns until one is set.
_UNSET_METER_PROVIDER = "_ProxyMeterProvider"


def global_tracer_provider() -> TracerProvider | None:
    """Return the application's tracer provider, ``None`` if it has set none that makes spans."""
    provider = trace.get_tracer_provider()
    is_unset = isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
    return None if is_unset else provider


def global_meter_provider() -> MeterProvider | None:
    """Return the application's meter provider, ``None`` if it has set none that records."""
    provider = metrics.get_meter_provider()
    is_unset = (
        isinstance(provider, metrics.NoOpMeterProvider)
        or type(provider).__name__ == _UNSET_METER_PROVIDER
    )
    return None if is_unset else provider
