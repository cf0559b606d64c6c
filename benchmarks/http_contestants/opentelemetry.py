"""opentelemetry-instrumentation-asgi, whose spans are batched and then thrown away."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from benchmarks.http_contestants import bare as http_bare
from benchmarks.http_contestants.parts import ASGIApp


class Nowhere(SpanExporter):
    """Sends spans nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        """Do nothing."""
        return SpanExportResult.SUCCESS


def new_provider(sampler: Sampler) -> TracerProvider:
    """Return a provider whose spans go nowhere."""
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def raw() -> ASGIApp:
    """Around the bare app, every request sampled."""
    return OpenTelemetryMiddleware(http_bare.answer, tracer_provider=new_provider(ALWAYS_ON))


def raw_not_sampled() -> ASGIApp:
    """Around the bare app, no request sampled."""
    return OpenTelemetryMiddleware(http_bare.answer, tracer_provider=new_provider(ALWAYS_OFF))


def fastapi() -> FastAPI:
    """In FastAPI, every request sampled."""
    app = http_bare.fastapi()
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=new_provider(ALWAYS_ON))
    return app
