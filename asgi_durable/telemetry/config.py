"""The destinations of spans, metrics and log lines: the application's providers, OTLP endpoints."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from asgi_durable.errors import DurableUsageError
from asgi_durable.telemetry.baggage import baggage_keys as checked_keys
from asgi_durable.telemetry.global_providers import global_meter_provider, global_tracer_provider
from asgi_durable.telemetry.observer import NO_OBSERVER, Observer

if TYPE_CHECKING:
    from asgi_durable.telemetry.otel.outputs import Outputs
    from asgi_durable.telemetry.otel.server_spans import ServerSpans

__all__ = ["Telemetry"]

_OUTPUTS = "asgi_durable.telemetry.otel.outputs"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_EXCLUDED_URLS = "OTEL_PYTHON_EXCLUDED_URLS"


class Telemetry:
    """Traces, metrics and logs by OpenTelemetry.

    Without any argument, spans and metrics go to the providers that the application has set before
    its first request or workflow. If there are none, nothing is set up. The application's
    providers are never replaced.

    Args:
        otlp_traces_endpoints: OTLP/HTTP endpoints that spans are exported to, for example
            ``http://localhost:4318/v1/traces``: all spans of the application's provider, or the
            library's alone if there is none. They need the extra ``otel``.
        otlp_logs_endpoints: The same for log records.
        log_names: The loggers whose records are exported; the library's alone by default.
        tracer_provider: Used in place of the global one.
        meter_provider: Used in place of the global one.
        continue_trace: How many seconds after its start a workflow that is resumed without a call,
            for example after a crash, continues the trace that it was started in, as a child of
            the same span; ``math.inf`` for always. Later, so by default always, its run is the
            root of a trace of its own, linked to that span. With the time that a tail sampler
            waits, for example 300, a quick recovery reads as one trace.
        baggage_keys: Keys of the W3C ``baggage`` of requests that their workflows store, 1 kB at
            most, and pass on after a restart too. None by default: baggage may hold personal
            data, and it stays in the database as long as the workflow.
        excluded_urls: Regular expressions. A request has no SERVER span and no metric of the
            library if one of them is found in its URL (``https://shop.example/health``, without the
            query). By default they are those of the variable ``OTEL_PYTHON_EXCLUDED_URLS``,
            between commas. Requests that an instrumentation of OpenTelemetry around the
            application excludes are excluded here as well.
        request_attributes: Returns attributes of the application for the SERVER span of a request,
            from its ASGI scope; called when the response is complete.
        summary_span: True for one more span for each workflow and keyed request that ends, from
            its start to its end: ``durable.workflow {name}``, a root.

    Raises:
        DurableUsageError: There are endpoints, and the extra is not installed; or the seconds, a
            key or an expression are invalid.
    """

    def __init__(
        self,
        *,
        otlp_traces_endpoints: Sequence[str] = (),
        otlp_logs_endpoints: Sequence[str] = (),
        log_names: Sequence[str] = ("asgi_durable",),
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        continue_trace: float = 0.0,
        baggage_keys: Iterable[str] = (),
        excluded_urls: Iterable[str] | None = None,
        request_attributes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        summary_span: bool = False,
    ) -> None:
        self.otlp_traces_endpoints: Sequence[str] = tuple(otlp_traces_endpoints)
        self.otlp_logs_endpoints: Sequence[str] = tuple(otlp_logs_endpoints)
        self.log_names: Sequence[str] = tuple(log_names)
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.continue_trace = _seconds(continue_trace)
        self.baggage_keys = checked_keys(baggage_keys)
        self.excluded_urls = _expression(excluded_urls)
        self.request_attributes = request_attributes
        self.summary_span = summary_span
        self.log_filter: logging.Filter | None = None
        if self._exports and not _is_installed(_EXPORTER):
            msg = "OTLP endpoints need the extra: pip install 'asgi-durable[otel]'"
            raise DurableUsageError(msg)
        self._lock = threading.Lock()
        self._is_decided = False
        self._outputs: Outputs | None = None
        self._observer: Observer = NO_OBSERVER
        self._server_spans: ServerSpans | None = None

    def filter_exported_logs(self, log_filter: logging.Filter) -> None:
        """Let exported log records pass a filter, which adds their workflow and step."""
        self.log_filter = log_filter

    @property
    def observer(self) -> Observer:
        """Observes the engine's work."""
        if not self._is_decided:
            self._decide()
        return self._observer

    @property
    def server_spans(self) -> ServerSpans | None:
        """Opens the spans of requests and takes their times; ``None`` without any provider."""
        if not self._is_decided:
            self._decide()
        return self._server_spans

    @property
    def _exports(self) -> bool:
        return bool(self.otlp_traces_endpoints or self.otlp_logs_endpoints)

    def start(self) -> None:
        """Start the exporters, if there are endpoints; else the first use looks for providers."""
        if self._exports:
            self._decide()

    async def close(self) -> None:
        """Export the remaining spans and records, in a limited time; the next use begins anew."""
        with self._lock:
            outputs, self._outputs = self._outputs, None
            self._is_decided = False
            self._observer, self._server_spans = NO_OBSERVER, None
        if outputs is not None:
            await outputs.close()

    def _decide(self) -> None:
        with self._lock:
            if self._is_decided:
                return
            tracer_provider = self.tracer_provider or global_tracer_provider()
            meter_provider = self.meter_provider or global_meter_provider()
            if self._exports or tracer_provider is not None or meter_provider is not None:
                # Only now: it loads the propagators, which fails if the environment names one that
                # is not installed. Without spans nobody needs them.
                outputs = import_module(_OUTPUTS)
                self._outputs = outputs.open_outputs(self, tracer_provider, meter_provider)
                self._observer = self._outputs.observer
                self._server_spans = self._outputs.server_spans
            # Invariant: set last. A thread that sees it set sees all the rest.
            self._is_decided = True


def _seconds(value: object) -> float:
    # Not NaN, for which every comparison is false.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        msg = f"continue_trace is a number of seconds, 0 or more, got {value!r}"
        raise DurableUsageError(msg)
    return float(value)


def _expression(urls: Iterable[str] | None) -> re.Pattern[str] | None:
    """Return one expression for all excluded URLs, ``None`` if there are none."""
    if urls is None:
        urls = os.environ.get(_EXCLUDED_URLS, "").split(",")
    elif isinstance(urls, str):
        msg = f"excluded_urls are several expressions, as in [{urls!r}]; got one"
        raise DurableUsageError(msg)
    wanted = [url.strip() for url in urls if url.strip()]
    try:
        return re.compile("|".join(f"(?:{url})" for url in wanted)) if wanted else None
    except re.error as error:
        msg = f"excluded_urls (or {_EXCLUDED_URLS}) are regular expressions, got {wanted}: {error}"
        raise DurableUsageError(msg) from error


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
