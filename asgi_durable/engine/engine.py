"""The engine: starts and stops, and routes every durable call to where it belongs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from asgi_durable.concurrency.home_loop import HomeLoop, require_asyncio
from asgi_durable.engine.composition import EngineParts, compose, migrate_databases
from asgi_durable.engine.heartbeat_listener import end_when_dropped
from asgi_durable.engine.process.definitions import (
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.process.log_text import database_text, library_version
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.request_servers import RequestServers
from asgi_durable.engine.process.settings import Limits
from asgi_durable.engine.process.started_process import StartedProcess, not_started
from asgi_durable.engine.recorded_queries import RecordedQueries
from asgi_durable.engine.requests.claims import Requests
from asgi_durable.engine.runs.call import Call, WorkflowOptions
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.engine.runs.outbox import Outbox
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.steps.sleep import checked_seconds, plain_sleep, run_sleep
from asgi_durable.engine.steps.step import run_step
from asgi_durable.engine.steps.transaction import run_plain_transaction, run_transaction
from asgi_durable.engine.workflows.handle import WorkflowStatus
from asgi_durable.errors import DurableUsageError
from asgi_durable.ids import child_workflow_id
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import NO_TELEMETRY, TelemetrySource

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

START_POLL_SECONDS = 0.01


class Engine:
    """Runs one application's workflows on one storage.

    Args:
        open_storage: Makes the storage adapter, at each start.
        open_application: Makes the application's own database, ``None`` where it is the
            storage's.
        registry: What is known of the application's functions, and how values are recorded.
        limits: How long what may take.
        telemetry: Whom to tell of the work.
    """

    def __init__(
        self,
        open_storage: Callable[[], Storage],
        open_application: Callable[[], ApplicationDatabase | None],
        registry: Registry,
        limits: Limits,
        telemetry: TelemetrySource = NO_TELEMETRY,
    ) -> None:
        self.registry = registry
        self.home = HomeLoop()
        self._open_storage = open_storage
        self._open_application = open_application
        self._limits = limits
        self._telemetry = telemetry
        self._running: EngineParts | None = None
        self.process = StartedProcess()
        self._starting = threading.Lock()
        self._questions = RecordedQueries(self.registry, self.running, self.frame)

    # Life

    async def start(self) -> None:
        """Open the storage and enter among the living; recover nothing yet.

        Raises:
            StorageError: The database cannot be used; the message names it.
            DurableUsageError: The event loop is not one of asyncio's.
        """
        await self._start()
        self.home.settle_here()

    async def _start(self) -> None:
        require_asyncio()
        # Before the lock, which a thread of the parent's may have held.
        self.process.require_own()
        # Not `acquire()`: an application without a lifespan may call from several event
        # loops, and none of them may be blocked while another one starts.
        while not self._starting.acquire(blocking=False):  # noqa: ASYNC110
            await asyncio.sleep(START_POLL_SECONDS)
        try:
            if self._running is None:
                self._running = await self._build()
                self.process.enter()
        finally:
            self._starting.release()

    async def ensure_started(self) -> None:
        """Start on the first request of an application whose lifespan never runs."""
        running = self._running
        if running is None:
            await self._start()
            self.recover()
            running = self.running()
        else:
            self.process.require_own()
            require_asyncio()
            running.recovery.sweep_if_wanted()
            running.takeover.start()
        if not running.services.executor.has_looked:
            # What a dead process has left is anybody's before the first request is served.
            await running.services.executor.wait_for_first_look()

    def recover(self) -> None:
        """Resume, in the background, what dead executors left, now and from now on."""
        self.running().takeover.start()

    async def migrate(self) -> None:
        """Create the database's tables, or bring them up to date, and do nothing else.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """
        require_asyncio()
        await migrate_databases(self._open_storage(), self._open_application())

    async def drain(self) -> None:
        """Wait for the runs under way, then interrupt them. New calls are still served."""
        running = self._running
        if running is not None and self.process.is_own():
            await self._drain_here(running)
            await self.home.on_own(lambda: self._drain_here(running))

    async def _drain_here(self, running: EngineParts) -> None:
        await running.takeover.stop()
        await running.recovery.stop()
        await running.active.drain(self._limits.drain_timeout_seconds)

    async def stop(self) -> None:
        """Drain, flush what is to be written, and close the storage."""
        running = self._running
        # What a parent has started is its own to stop.
        if running is None or not self.process.is_own():
            return
        await self.drain()
        # A stack: all of it is closed, whatever fails or is cancelled on the way.
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._telemetry.close)
            closing.push_async_callback(running.services.storage.close)
            if running.services.application is not None:
                closing.push_async_callback(running.services.application.close)
            # Invariant: what is to be written is written. From here on others may take over.
            closing.push_async_callback(running.services.executor.stop)
            closing.callback(self._forget_running)
            running.active.close()
            await self._leave_here(running)
            await self.home.on_own(lambda: self._leave_here(running))
            await self.home.end_own()
        logger.info("asgi-durable stopped: executor %s has left", running.services.executor.id)

    async def _leave_here(self, running: EngineParts) -> None:
        await running.services.committer.flush()
        await running.services.guards.dismiss()

    def _forget_running(self) -> None:
        self._running = None
        self.process.leave()
        self.registry.request_servers.clear()

    async def _build(self) -> EngineParts:
        self.registry.prepare()
        self.registry.run_checks()
        self.registry.threads.forget_those_of_parent()
        async with AsyncExitStack() as opened:
            storage = self._open_storage()
            await storage.open()
            opened.push_async_callback(storage.close)
            application = self._open_application()
            if application is not None:
                await application.open()
                opened.push_async_callback(application.close)
            parts = (storage, application, self.registry, self._limits, self._telemetry)
            running = await compose(*parts)
            end_when_dropped(running, self.home)
            self._telemetry.start()
            opened.push_async_callback(self._telemetry.close)
            await running.services.executor.start()
            opened.pop_all()
        database, executor = database_text(storage, application), running.services.executor.id
        version = library_version()
        logger.info("asgi-durable %s started: %s, executor %s", version, database, executor)
        return running

    def running(self) -> EngineParts:
        """Return what works between start and stop.

        Raises:
            DurableUsageError: The engine is not started, or it was by the parent process.
        """
        if self._running is None:
            raise not_started()
        self.process.require_own()
        return self._running

    # Calls. Each gives out its place in the log at once and returns a coroutine.

    @property
    def requests(self) -> Requests:
        """Workflows that are requests; asked for by async code.

        Raises:
            DurableUsageError: The engine is not started.
        """
        # An engine that runs on asyncio may be called on another event loop all the same.
        require_asyncio()
        return self.running().requests

    @property
    def request_servers(self) -> RequestServers:
        """Who can serve requests without their clients."""
        return self.registry.request_servers

    def call_step(
        self, definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a step: recorded between the steps of a run, a plain call elsewhere."""
        run = self.run_between_steps()
        if run is None:
            return definition.function(*args, **kwargs)
        return run_step(run, definition, run.next_number(), args, kwargs)

    def call_transaction(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a transaction: recorded between the steps of a run, a plain one elsewhere."""
        run = self.run_between_steps()
        if run is None:
            services = self.running().services
            return run_plain_transaction(services, self.frame(), definition, args, kwargs)
        if run.single_transaction is not None:
            return run.single_transaction.call(definition, args, kwargs)
        return run_transaction(run, definition, run.next_number(), args, kwargs)

    def call_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> Coroutine[Any, Any, Any]:
        """Run a workflow and return its result."""
        call = self._call(definition, args, kwargs, options, awaited=True)
        return self.running().workflows.result(call)

    def start_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> Coroutine[Any, Any, str]:
        """Start a workflow in the background; return its id once that is durable."""
        call = self._call(definition, args, kwargs, options, awaited=False)
        return self.running().workflows.start(call)

    def background(
        self, definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, str]:
        """Let a workflow start with the end of the current run; return its id.

        Elsewhere it is started at once.
        """
        run = self._calling_run(definition)
        if run is None:
            return self.start_workflow(definition, args, kwargs, WorkflowOptions())
        outbox = run.outbox = run.outbox or Outbox(run)
        number = outbox.next_number()
        call = Call(
            definition=definition,
            args=args,
            kwargs=kwargs,
            options=WorkflowOptions(),
            loop=run.loop,
            parent=(run, number),
            awaited=False,
        )
        workflow_id = child_workflow_id(run.workflow_id, number)
        # Now: what is called next comes after it in the log.
        self.running().workflows.start_with_end(call, workflow_id, outbox)
        return _known(workflow_id)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Sleep: recorded between the steps of a run, a plain sleep elsewhere."""
        checked_seconds(seconds)
        run = self.run_between_steps()
        if run is None:
            return plain_sleep(seconds)
        return run_sleep(run, run.next_number(), seconds)

    def find_workflow(self, workflow_id: str) -> Coroutine[Any, Any, None]:
        """Raise ``WorkflowNotFoundError`` unless there is a workflow with this id."""
        return self.call_step(self._questions.exists, (workflow_id,), {})

    def workflow_status(self, workflow_id: str) -> Coroutine[Any, Any, WorkflowStatus]:
        """Return a workflow's status; recorded where a workflow asks."""
        return self.call_step(self._questions.status, (workflow_id,), {})

    def workflow_result(
        self, workflow_id: str, timeout_seconds: float | None
    ) -> Coroutine[Any, Any, Any]:
        """Wait for a workflow's outcome; recorded where a workflow asks."""
        self._refuse_in_transaction("waits for")
        asked, arguments = self._questions.result, (workflow_id, timeout_seconds)
        return self._questions.value_of(self.call_step(asked, arguments, {}))

    def cancel_workflow(self, workflow_id: str) -> Coroutine[Any, Any, bool]:
        """Cancel a workflow, wherever it runs; recorded where a workflow asks."""
        self._refuse_in_transaction("cancels")
        return self.call_step(self._questions.cancel, (workflow_id,), {})

    def _refuse_in_transaction(self, what: str) -> None:
        if (frame := self.frame()) is not None and frame.session is not None:
            msg = f"{frame.step_name!r} {what} a workflow while it holds the database"
            raise DurableUsageError(msg)

    def _call(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
        *,
        awaited: bool,
    ) -> Call:
        run = self._calling_run(definition)
        return Call(
            definition=definition,
            args=args,
            kwargs=kwargs,
            options=options,
            loop=run.loop if run is not None else require_asyncio(),
            parent=(run, run.next_number()) if run is not None else None,
            awaited=awaited,
        )

    def _calling_run(self, definition: WorkflowDefinition) -> Run | None:
        frame = self.frame()
        if frame is not None and frame.step_name is not None:
            msg = (
                f"workflow {definition.name!r} is called inside {frame.step_name!r}: "
                "steps and transactions cannot call workflows"
            )
            raise DurableUsageError(msg)
        return self.run_between_steps()

    # Context

    def frame(self) -> Frame | None:
        """Return where the current code runs, ``None`` outside every run of this engine."""
        frame = current_frame.get()
        if frame is None or self._running is None:
            return None
        if frame.services is not self._running.services:
            return None
        if frame.run is not None and frame.run.closed:
            return None
        return frame

    def run_between_steps(self) -> Run | None:
        """Return the run whose next step could be called here.

        Raises:
            DurableUsageError: The current code cannot await what it calls.
        """
        frame = self.frame()
        if frame is None:
            return None
        self.process.require_own()
        if frame.in_thread:
            msg = (
                "code that is not async cannot await this call; use durable.blocking: "
                "durable.blocking.run_workflow(fn, …), durable.blocking.run_step(fn, …)"
            )
            raise DurableUsageError(msg)
        return frame.run if frame.step_name is None else None


async def _known(workflow_id: str) -> str:
    return workflow_id
