"""The metrics of the engine's work."""

from __future__ import annotations

from opentelemetry.metrics import Histogram, Meter

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)
# Those of the HTTP conventions.
_REQUEST_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_WRITES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Metrics:
    """The instruments; a histogram's count is the number of requests, runs, steps or commits."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.run_duration = self._seconds(
            "durable.run.duration", "Executions of workflows, by workflow and outcome."
        )
        self.step_duration = self._seconds(
            "durable.step.duration",
            "Steps and transactions that really ran, by name, kind and outcome.",
        )
        self.resume_lag = self._seconds(
            "durable.resume.lag",
            "How long workflows that were taken over had no owner before they continued.",
        )
        self.store_duration = self._seconds(
            "durable.store.duration",
            "Work of the database for the step log, by operation: commits.",
        )
        self.request_duration = self._seconds(
            "http.server.request.duration", "Duration of HTTP server requests.", _REQUEST_SECONDS
        )
        self.commit_writes = meter.create_histogram(
            "durable.commit.writes",
            unit="{write}",
            description="Writes that share one commit.",
            explicit_bucket_boundaries_advisory=_WRITES,
        )
        self.step_retries = meter.create_counter(
            "durable.step.retries",
            unit="{attempt}",
            description="Attempts of steps that failed and were made again.",
        )
        self.recoveries = meter.create_counter(
            "durable.run.recoveries",
            unit="{run}",
            description="Executions that continued an earlier one.",
        )
        self.lease_losses = meter.create_counter(
            "durable.lease.losses",
            unit="{lease}",
            description="How often this process was declared dead while it was not.",
        )
        self.idempotency_waits = self._seconds(
            "idempotency.wait.duration",
            "How long requests waited for their duplicates, by outcome.",
        )
        self.idempotency_requests = meter.create_counter(
            "idempotency.requests",
            unit="{request}",
            description="Requests with an idempotency key, by outcome.",
        )

    def _seconds(
        self, name: str, description: str, bounds: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return self._meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=bounds
        )
