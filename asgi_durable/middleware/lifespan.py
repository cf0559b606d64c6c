"""The engine's life around the application's own lifespan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from asgi_durable.errors import DurableError, DurableUsageError
from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send
from asgi_durable.middleware.problem_details import send_problem

__all__ = ["Lifecycle", "LifespanMiddleware"]

logger = logging.getLogger(__name__)


class Lifecycle(Protocol):
    """What the lifespan starts and stops; an :class:`~asgi_durable.engine.engine.Engine`."""

    async def start(self) -> None:
        """Get ready to serve calls."""

    async def ensure_started(self) -> None:
        """Start, unless that has been done, because no lifespan will."""

    def recover(self) -> None:
        """Resume interrupted work in the background."""

    async def drain(self) -> None:
        """End the work under way; calls are still served."""

    async def stop(self) -> None:
        """Stop for good."""


class LifespanMiddleware:
    """Start the engine before the app's startup code and stop it after its shutdown code.

    The app may call workflows in both. Interrupted work is resumed once the app has started,
    and drained before the app shuts down, so that it finds what the app has opened. An app
    that raises before it receives ``lifespan.startup`` has no lifespan, and works; what it
    raises after that is a failed startup, and the server is told. Where a server or a test
    client never sends the lifespan, the engine starts on the first request.

    Args:
        app: The ASGI app to wrap.
        engine: What is started and stopped.
        on_start: Called once, before either has begun.
    """

    def __init__(
        self, app: ASGIApp, engine: Lifecycle, *, on_start: Callable[[], None] | None = None
    ) -> None:
        self.app = app
        self.engine = engine
        self._on_start = on_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan, or start the engine where nobody sent one."""
        if self._on_start is not None:
            on_start, self._on_start = self._on_start, None
            on_start()
        if scope["type"] == "lifespan":
            await _Lifespan(self.app, self.engine, receive, send).run(scope)
            return
        if scope["type"] in ("http", "websocket"):
            try:
                await self.engine.ensure_started()
            except Exception as error:
                if scope["type"] == "websocket":
                    raise
                await send_problem(send, _as_durable_error(error))
                return
        await self.app(scope, receive, send)


def _as_durable_error(error: Exception) -> DurableError:
    if isinstance(error, DurableError):
        return error
    failure = DurableUsageError(f"the engine cannot start ({type(error).__name__}: {error})")
    failure.__cause__ = error
    return failure


class _Lifespan:
    """One lifespan: the app's messages, and what the engine does between them."""

    def __init__(self, app: ASGIApp, engine: Lifecycle, receive: Receive, send: Send) -> None:
        self.app = app
        self.engine = engine
        self._receive = receive
        self._send = send
        self._received: str | None = None
        self._sent: str | None = None
        self._is_stopped = False

    async def run(self, scope: Scope) -> None:
        try:
            await self.engine.start()
        except Exception as error:
            await self._receive()
            await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            # As frameworks do: test clients wait for it.
            raise
        try:
            # Test clients leave it out, and some apps answer startup.failed without it.
            scope.setdefault("asgi", {"version": "3.0", "spec_version": "2.0"})
            await self._run_app(scope)
        finally:
            await self._stop_engine()
        if self._received == "lifespan.shutdown" and self._sent != "lifespan.shutdown.failed":
            await self._send({"type": "lifespan.shutdown.complete"})

    async def _run_app(self, scope: Scope) -> None:
        try:
            await self.app(scope, self._receive_for_app, self._send_for_app)
        except Exception as error:
            if self._sent is not None:
                raise
            if self._received is not None:
                # It has a lifespan: it took the message, and failed to start.
                await self._send_for_app(_startup_failed(error))
                raise
            # The specification lets an app raise to say that it has no lifespan.
            logger.debug("The app has no lifespan; answering for it.", exc_info=True)
        if self._sent == "lifespan.startup.failed":
            return
        if self._received is None:
            await self._receive_for_app()
        if self._sent is None:
            await self._send_for_app({"type": "lifespan.startup.complete"})
        while self._received != "lifespan.shutdown":
            await self._receive_for_app()

    async def _receive_for_app(self) -> Message:
        message = await self._receive()
        self._received = message["type"]
        if self._received == "lifespan.shutdown":
            await self.engine.drain()
        return message

    async def _send_for_app(self, message: Message) -> None:
        self._sent = message["type"]
        if self._sent == "lifespan.shutdown.complete":
            # Told to the server once the engine has stopped as well.
            return
        if self._sent == "lifespan.startup.complete":
            self.engine.recover()
        elif self._sent in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            # Invariant: stopped before the server is told. A server may raise from send() and
            # look at once whether the application has ended, or cancel what has not.
            await self._stop_engine()
        await self._send(message)

    async def _stop_engine(self) -> None:
        if not self._is_stopped:
            await self.engine.stop()
            self._is_stopped = True


def _startup_failed(error: Exception) -> Message:
    text = str(error)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return {"type": "lifespan.startup.failed", "message": message}
