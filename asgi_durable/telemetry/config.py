"""Where spans, figures and log lines go: the application's own providers, and OTLP endpoints."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.log_context import DurableLogFilter
from asgi_durable.telemetry.baggage import baggage_keys as checked_keys
from asgi_durable.telemetry.observer import NO_OBSERVER, Observer

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from asgi_durable.telemetry.otel.providers import Outlets
    from asgi_durable.telemetry.otel.server_spans import ServerSpans

__all__ = ["Telemetry"]

_PROVIDERS = "asgi_durable.telemetry.otel.providers"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
# By which the API makes providers of its own accord.
_EXCLUDED_URLS = "OTEL_PYTHON_EXCLUDED_URLS"
_VARIABLES = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")


class Telemetry:
    """Traces, figures and logs by OpenTelemetry.

    Without any argument spans and figures go to the providers that the application has set, if
    it has, before its first request or workflow; nothing is loaded or set up otherwise. The
    application's providers are never replaced.

    Args:
        otlp_traces_endpoints: OTLP/HTTP endpoints that spans are exported to,
            ``http://localhost:4318/v1/traces`` say: those of the application's provider as
            well; ours alone where it has none. They need the extra ``otel``.
        otlp_logs_endpoints: The same for log records.
        log_names: The loggers whose records are exported; ours alone by default.
        tracer_provider: In the place of the global one.
        meter_provider: In the place of the global one.
        continue_trace: For how many seconds after its start a workflow that is resumed without
            a call, after a crash say, goes on in the trace that it was started in, as a child
            of the same span; ``math.inf`` for always. Later, so by default always, its run is
            the root of a trace of its own, linked to that span. As long as a tail sampler
            waits, 300 say, lets a quick recovery read as one trace.
        baggage_keys: Keys of the W3C ``baggage`` of requests that their workflows keep, 1 kB of
            it at most, to be handed on after a restart too. None by default: baggage may hold
            personal data, and what is kept is in the database as long as the workflow.
        excluded_urls: Regular expressions; a request whose URL (``https://shop.example/health``,
            without the query) one of them is found in has no SERVER span of ours and is in no
            figure of ours. By default those of the variable ``OTEL_PYTHON_EXCLUDED_URLS``,
            between commas. What an instrumentation of OpenTelemetry around the application
            excludes is excluded here as well.
        request_attributes: Returns attributes of the application's own for the SERVER span of a
            request, from its ASGI scope; called when the request is answered.
        summary_span: True for one more span for each workflow and keyed request that ends, from
            its start to its end: ``durable.workflow {name}``, a root.

    Raises:
        DurableUsageError: There are endpoints, and the extra is not installed; or a number of
            seconds is none; or a key is none; or an expression is none.
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
        self.otlp_traces_endpoints = tuple(otlp_traces_endpoints)
        self.otlp_logs_endpoints = tuple(otlp_logs_endpoints)
        self.log_names = tuple(log_names)
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.continue_trace = _seconds(continue_trace)
        self.baggage_keys = checked_keys(baggage_keys)
        self.excluded_urls = _expression(excluded_urls)
        self.request_attributes = request_attributes
        self.summary_span = summary_span
        if self._exports and not _is_installed(_EXPORTER):
            msg = "OTLP endpoints need the extra: pip install 'asgi-durable[otel]'"
            raise DurableUsageError(msg)
        self._lock = threading.Lock()
        self._is_decided = False
        self._outlets: Outlets | None = None
        self._observer: Observer = NO_OBSERVER
        self._server_spans: ServerSpans | None = None

    @property
    def observer(self) -> Observer:
        """Who is told of the engine's work."""
        if not self._is_decided:
            self._decide()
        return self._observer

    @property
    def server_spans(self) -> ServerSpans | None:
        """What opens the spans of requests and takes their times; ``None`` where nothing does."""
        if not self._is_decided:
            self._decide()
        return self._server_spans

    @property
    def _exports(self) -> bool:
        return bool(self.otlp_traces_endpoints or self.otlp_logs_endpoints)

    def start(self) -> None:
        """Set up the exporters that are asked for; else providers are looked for when needed."""
        if self._exports:
            self._decide()

    async def close(self) -> None:
        """Export what is left, in a limited time; the next use begins anew."""
        with self._lock:
            outlets, self._outlets = self._outlets, None
            self._is_decided = False
            self._observer, self._server_spans = NO_OBSERVER, None
        if outlets is not None:
            await outlets.close()

    def _decide(self) -> None:
        with self._lock:
            if self._is_decided:
                return
            if self._may_be_wanted():
                # Loaded by name: who does not use it does not have it installed either.
                self._outlets = import_module(_PROVIDERS).open_outlets(self, DurableLogFilter())
                self._observer = self._outlets.observer
                self._server_spans = self._outlets.server_spans
            # Invariant: set last. Who sees it set sees all the rest.
            self._is_decided = True

    def _may_be_wanted(self) -> bool:
        if self._exports or self.tracer_provider is not None or self.meter_provider is not None:
            return True
        # Who has set a global provider has loaded the API.
        is_loaded = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
        return is_loaded or any(
            name in os.environ and _is_installed("opentelemetry.trace") for name in _VARIABLES
        )


def _seconds(value: object) -> float:
    # Not NaN, which is not less than anything either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        msg = f"continue_trace is a number of seconds, 0 or more, got {value!r}"
        raise DurableUsageError(msg)
    return float(value)


def _expression(urls: Iterable[str] | None) -> re.Pattern[str] | None:
    """Return one expression for all that is excluded, ``None`` for nothing."""
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
