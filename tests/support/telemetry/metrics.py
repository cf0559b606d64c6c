"""Metrics in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from asgi_durable import Telemetry


class Figures:
    """A meter provider whose metrics stay in memory.

    Attributes:
        telemetry: For a ``Durable`` that uses the provider.
    """

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(meter_provider=self.provider)

    def read(self) -> dict[str, dict[tuple[Any, ...], float]]:
        """Return the counts of all instruments, by the values of their attributes."""
        found: dict[str, dict[tuple[Any, ...], float]] = {}
        for _, metric in self._all():
            found[metric.name] = {
                tuple((point.attributes or {}).values()): getattr(
                    point, "count", getattr(point, "value", 0)
                )
                for point in metric.data.data_points
            }
        return found

    def points(self, name: str) -> list[tuple[str, Any]]:
        """Return the data points of all instruments with a name: whose each is, and it."""
        return [
            (scope_name, point)
            for scope_name, metric in self._all()
            for point in metric.data.data_points
            if metric.name == name
        ]

    def _all(self) -> list[tuple[str, Any]]:
        data = self._reader.get_metrics_data()
        self.provider.shutdown()
        return [
            (scope.scope.name, metric)
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
