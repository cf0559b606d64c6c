"""Starts and stops the engine around the application's own lifespan."""

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
    """A service with the lifespan's phases; an :class:`~asgi_durable.engine.engine.Engine`."""

    async def start(self) -> None:
        """Get ready to serve calls."""

    async def ensure_started(self) -> None:
        """Start if nothing has done so yet, as no lifespan may come."""

    def recover(self) -> None:
        """Resume interrupted work in the background."""

    async def drain(self) -> None:
        """Let running work end, or interrupt it; calls are still served."""

    async def stop(self) -> None:
        """Stop for good."""


class LifespanMiddleware:
    """Start the engine before the app's startup code and stop it after its shutdown code.

    The app may call workflows in both. Interrupted work resumes once the app has started, and
    ends before the app shuts down, so that it can use the resources that the app has opened. An
    app that raises before it receives ``lifespan.startup`` has no lifespan, and is served all the
    same; an error after that is a failed startup, and the server gets
    ``lifespan.startup.failed``. Where a server or a test client never sends the lifespan, the
    engine starts on the first request. If it cannot start, the request gets a problem response,
    and a WebSocket the error itself.

    Args:
        app: The ASGI app to wrap.
        engine: The service to start and stop.
        on_start: Called once, before the engine and the app start.
    """

    def __init__(
        self, app: ASGIApp, engine: Lifecycle, *, on_start: Callable[[], None] | None = None
    ) -> None:
        self.app = app
        self.engine = engine
        self._on_start = on_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan, or start the engine where the server has sent none."""
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
    """One lifespan: passes the app's messages on and calls the engine between them."""

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
            # Frameworks raise as well here, and test clients wait for the error.
            raise
        try:
            # Test clients leave it out, and some apps send startup.failed without it.
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
                # The app has received the message, so it has a lifespan, and failed to start.
                await self._send_for_app(_startup_failed(error))
                raise
            # By the specification an app without a lifespan raises.
            logger.debug("The app has no lifespan; acknowledging it instead.", exc_info=True)
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
            # `run` sends it once the engine has stopped as well.
            return
        if self._sent == "lifespan.startup.complete":
            self.engine.recover()
        elif self._sent in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            # Invariant: the engine has stopped before the server gets the message. A server may
            # raise from send(), and cancel the application at once if it has not ended.
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
