"""What every run of one engine shares."""

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
    """What every run of one engine shares.

    Attributes:
        application: The application's own database; ``None`` where it is the step log's.
        sleepers: Told of runs that do nothing but sleep.
        spool: Where the bodies of duplicates are counted that are kept on the disk.
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
