"""The parts that all runs of one engine share."""

from __future__ import annotations

from dataclasses import dataclass

from asgi_durable.concurrency.loop_guard import LoopGuards
from asgi_durable.engine.process.committer import Committer
from asgi_durable.engine.process.executor import Executor
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.engine.runs.suspension import Sleepers
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import NO_TELEMETRY, TelemetrySource

__all__ = ["Services"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts that all runs of one engine share.

    Attributes:
        storage: The step log.
        application: The application's own database; ``None`` if it shares that of the step log.
        committer: Commits the writes of all runs in batches.
        registry: The decorated functions.
        guards: Tell whether an event loop shuts down.
        executor: The name that this process writes under.
        storage_retry_seconds: How long a failing storage is retried.
        sleepers: Reports runs that do nothing but sleep.
        spool: Counts the bodies of duplicate requests that are on the disk.
        telemetry: Observes the engine's work.
    """

    storage: Storage
    application: ApplicationDatabase | None
    committer: Committer
    registry: Registry
    guards: LoopGuards
    executor: Executor
    storage_retry_seconds: float
    sleepers: Sleepers
    spool: SpoolSpace
    telemetry: TelemetrySource = NO_TELEMETRY
