"""The parts of a started engine, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass

from asgi_durable.concurrency.loop_guard import LoopGuards
from asgi_durable.engine.process.committer import Committer
from asgi_durable.engine.process.executor import Executor
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.settings import Limits
from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.engine.recovery.own_workflows import Recovery
from asgi_durable.engine.recovery.resumption import Resumption
from asgi_durable.engine.recovery.takeover import Takeover
from asgi_durable.engine.recovery.unknown_functions import UnknownFunctions
from asgi_durable.engine.requests.claims import Requests
from asgi_durable.engine.requests.request_ids import RequestIds
from asgi_durable.engine.requests.retention_sweeper import Sweeper
from asgi_durable.engine.requests.server_recovery import RecoveredRequests, RequestServers
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.runner import WorkflowRunner
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.runs.suspension import Sleepers
from asgi_durable.engine.workflows.cancellation import Cancellation
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.engine.workflows.starter import Workflows
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import TelemetrySource

__all__ = ["EngineParts", "compose", "migrate_databases", "new_services"]


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class EngineParts:
    """The parts of an engine between its start and its stop.

    They live as long as anything refers to them: an engine, the task of a run, a request.
    """

    services: Services
    active: ActiveRuns
    workflows: Workflows
    requests: Requests
    recovery: Recovery
    takeover: Takeover
    outcomes: ResultWaiters
    cancellation: Cancellation
    resumption: Resumption
    unknown: UnknownFunctions
    sweeper: Sweeper


def new_services(
    storage: Storage,
    application: ApplicationDatabase | None,
    registry: Registry,
    limits: Limits,
    telemetry: TelemetrySource,
) -> Services:
    """Return the services of an engine on an open storage."""
    return Services(
        guards=LoopGuards(),
        storage=storage,
        application=application,
        committer=Committer(
            storage, storage_retry_seconds=limits.storage_retry_seconds, telemetry=telemetry
        ),
        registry=registry,
        executor=Executor(storage, lease_seconds=limits.lease_seconds),
        storage_retry_seconds=limits.storage_retry_seconds,
        sleepers=Sleepers(),
        spool=SpoolSpace(limits.spooled_bytes, registry.sealer.disk_cipher),
        telemetry=telemetry,
    )


async def compose(services: Services, servers: RequestServers, limits: Limits) -> EngineParts:
    """Put the parts together.

    Args:
        services: The services, on an open storage.
        servers: The apps of this process.
        limits: Time limits and sizes.
    """
    active = ActiveRuns()
    runner = WorkflowRunner(services)
    recovered = RecoveredRequests(services, active, servers)
    resumption = Resumption(services, active, runner, recovered.drive)
    recovery = Recovery(services, active, resumption)
    takeover = Takeover(services, resumption, recovery, servers.has_one)
    outcomes = ResultWaiters(services, active, recovery)
    recovered.on_recorded = outcomes.wake
    runner.is_waited_for = outcomes.is_waited_for
    workflows = Workflows(services, active, runner, outcomes)
    cancellation = Cancellation(services, active, outcomes, limits.cancelled_requests)
    secret = await services.storage.read_secret()
    ids = RequestIds(secret.value, may_be_former=secret.added_later)
    running = EngineParts(
        services=services,
        active=active,
        workflows=workflows,
        requests=Requests(services, active, outcomes, cancellation, ids),
        recovery=recovery,
        takeover=takeover,
        outcomes=outcomes,
        cancellation=cancellation,
        resumption=resumption,
        unknown=UnknownFunctions(services.storage, services.registry),
        sweeper=Sweeper(
            services.storage,
            lifetime_seconds=limits.request_lifetime_seconds,
            interval_seconds=limits.sweep_interval_seconds,
        ),
    )
    _connect(running)
    return running


async def migrate_databases(storage: Storage, application: ApplicationDatabase | None) -> None:
    """Open and close databases, which creates their tables or brings them up to date."""
    await storage.open()
    await storage.close()
    if application is not None:
        await application.open()
        await application.close()


def _connect(running: EngineParts) -> None:
    """Let the parts hear of each other's events."""
    active = running.active

    # Invariant: it refers to all parts, so they live for as long as a run does.
    def on_ended(run: Run) -> None:
        running.outcomes.on_ended(run)
        if run.outbox is not None:
            running.resumption.begin(run.outbox.take())

    active.on_interrupted = running.recovery.on_interrupted
    active.on_lost = running.recovery.on_lost
    active.on_ended = on_ended
    running.services.sleepers.on_asleep = active.on_asleep
