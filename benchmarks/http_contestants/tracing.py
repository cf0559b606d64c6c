"""The library's spans, which are batched and then thrown away."""

from __future__ import annotations

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from asgi_durable import Durable, Telemetry, TracingMiddleware
from benchmarks.http_contestants.bare import answer
from benchmarks.http_contestants.opentelemetry import new_provider
from benchmarks.http_contestants.parts import ASGIApp, database_url


def _telemetry(sampler: Sampler) -> Telemetry:
    return Telemetry(tracer_provider=new_provider(sampler))


def tracing() -> ASGIApp:
    """The span alone, every request sampled."""
    return TracingMiddleware(answer, telemetry=_telemetry(ALWAYS_ON))


def tracing_not_sampled() -> ASGIApp:
    """The span alone, no request sampled."""
    return TracingMiddleware(answer, telemetry=_telemetry(ALWAYS_OFF))


def stack() -> ASGIApp:
    """All middlewares, every request sampled."""
    return Durable(database_url(), telemetry=_telemetry(ALWAYS_ON)).wrap(answer)


def stack_not_sampled() -> ASGIApp:
    """All middlewares, no request sampled."""
    return Durable(database_url(), telemetry=_telemetry(ALWAYS_OFF)).wrap(answer)
