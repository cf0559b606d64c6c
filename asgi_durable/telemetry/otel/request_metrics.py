"""How long HTTP requests take, by the stable semantic conventions."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from opentelemetry.metrics import Histogram
from opentelemetry.trace import Span

from asgi_durable.telemetry.otel.metrics import Metrics

__all__ = ["RequestTime", "RequestTimes"]

# In a scope: somebody takes the time of this request.
_IS_TIMED = "asgi_durable.is_timed"
_FASTAPI = "fastapi.telemetry"


class RequestTimes:
    """Takes the time of each request, unless somebody does already."""

    def __init__(self, metrics: Metrics) -> None:
        self._histogram = metrics.request_duration

    def begin(
        self, scope: MutableMapping[str, Any], method: str, current: Span
    ) -> RequestTime | None:
        """Return what takes a request's time from now on, ``None`` if somebody else does.

        Args:
            scope: The request's.
            method: One that is known, else ``_OTHER``.
            current: The span in which the request has come.
        """
        if _is_timed(scope, current):
            return None
        scope[_IS_TIMED] = True
        return RequestTime(self._histogram, method, scope.get("scheme", "http"))


class RequestTime:
    """The time of one request."""

    __slots__ = ("_attributes", "_began", "_histogram")

    def __init__(self, histogram: Histogram, method: str, scheme: str) -> None:
        self._histogram = histogram
        self._attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.scheme": scheme,
        }
        self._began = time.perf_counter()

    def failed(self, error_type: str) -> None:
        """Take note of what the application has raised."""
        self._attributes["error.type"] = error_type

    def end(self, status: int | None, route: str | None) -> None:
        """Record it."""
        seconds, attributes = time.perf_counter() - self._began, self._attributes
        if status is not None:
            attributes["http.response.status_code"] = status
            if status >= 500:
                attributes["error.type"] = str(status)
        if route is not None:
            attributes["http.route"] = route
        self._histogram.record(seconds, attributes)


def _is_timed(scope: MutableMapping[str, Any], current: Span) -> bool:
    """Tell whether an instrumentation around the application measures the request's time.

    FastAPI's marks the scope. Of other ones only their span is visible: a span of this process
    that does not record belongs to a request that is not sampled. A recording span belongs to
    other code, for example a client in this process: the callers have found that it belongs to
    no request.
    """
    if scope.get(_IS_TIMED) or scope.get(_FASTAPI) is not None:
        return True
    context = current.get_span_context()
    return context.is_valid and not context.is_remote and not current.is_recording()
