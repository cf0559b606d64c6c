"""The start and stop of an engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio

from asgi_durable.concurrency.home_loop import HomeLoop, require_asyncio
from asgi_durable.engine.composition import (
    EngineParts,
    compose,
    migrate_databases,
    new_services,
)
from asgi_durable.engine.heartbeat_listener import HeartbeatListener, end_when_dropped
from asgi_durable.engine.process.log_text import database_text, library_version
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.settings import Limits
from asgi_durable.engine.process.started_process import StartedProcess, not_started
from asgi_durable.engine.requests.server_recovery import RequestServers
from asgi_durable.engine.runs.frame import call_in_thread
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import NO_TELEMETRY, TelemetrySource

__all__ = ["EngineLifecycle"]

logger = logging.getLogger(__name__)

START_POLL_SECONDS = 0.01


class EngineLifecycle:
    """Starts and stops the engine of one application, on one storage.

    Args:
        open_storage: Makes the storage adapter, at each start.
        open_application: Makes the adapter of the application's own database; ``None`` if the
            application's data is in the storage's database.
        registry: The application's decorated functions, and how their values are recorded.
        limits: Time limits and sizes.
        telemetry: Receives the spans and metrics.

    Attributes:
        home: The event loop on which calls from threads run.
        process: The process that has started the engine.
        request_servers: The apps that can serve a request without its client.
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
        registry.threads.call = call_in_thread
        self.home = HomeLoop()
        self.request_servers = RequestServers()
        self._open_storage = open_storage
        self._open_application = open_application
        self._limits = limits
        self._telemetry = telemetry
        self._running: EngineParts | None = None
        self.process = StartedProcess()
        self._starting = threading.Lock()

    async def start(self) -> None:
        """Open the storage and register the executor; recover nothing yet.

        Raises:
            StorageError: The database cannot be used; the message names it.
            DurableUsageError: The event loop is not an asyncio event loop.
        """
        await self._start()
        self.home.settle_here()

    async def _start(self) -> None:
        require_asyncio()
        # Before the lock: a thread of the parent process may have held it at the fork.
        self.process.require_own()
        while True:
            # Not blocking: an application without a lifespan may call from several event loops,
            # and none of them may be blocked while another one starts the engine.
            if self._starting.acquire(blocking=False):
                break
            await anyio.sleep(START_POLL_SECONDS)
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
            # Free a dead process's workflows before the first request, which may be a retry of one.
            await running.services.executor.wait_for_first_look()

    def recover(self) -> None:
        """Resume dead executors' workflows in the background, now and from now on."""
        self.running().takeover.start()

    async def migrate(self) -> None:
        """Create the database's tables, or bring them up to date, and do nothing else.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """
        require_asyncio()
        await migrate_databases(self._open_storage(), self._open_application())

    async def drain(self) -> None:
        """Wait for the active runs, then interrupt them. New calls are still served."""
        running = self._running
        if running is not None and self.process.is_own():
            await self._drain_here(running)
            await self.home.on_own(lambda: self._drain_here(running))

    async def _drain_here(self, running: EngineParts) -> None:
        await running.takeover.stop()
        await running.recovery.stop()
        await running.active.drain(self._limits.drain_timeout_seconds)

    async def stop(self) -> None:
        """Drain, commit the pending writes, and close the storage."""
        running = self._running
        # Only the process that has started the engine stops it.
        if running is None or not self.process.is_own():
            return
        await self.drain()
        # A stack closes everything, even if one of them fails or is cancelled.
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._telemetry.close)
            closing.push_async_callback(running.services.storage.close)
            if running.services.application is not None:
                closing.push_async_callback(running.services.application.close)
            # Invariant: all pending writes are committed before others may take over.
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
        self.request_servers.clear()

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
            services = new_services(
                storage, application, self.registry, self._limits, self._telemetry
            )
            running = await compose(services, self.request_servers, self._limits)
            HeartbeatListener(running)
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
        """Return the parts that exist between start and stop.

        Raises:
            DurableUsageError: The engine is not started, or the parent process has started it.
        """
        if self._running is None:
            raise not_started()
        self.process.require_own()
        return self._running
