"""Litestar's own checks of a request, run in front of the idempotency middleware.

Litestar puts its middlewares for allowed hosts and against CSRF inside all others, where a
replay would never meet them. So each one also runs outside, with the application's own settings:
a replay passes the same checks as the first request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from litestar import Litestar
from litestar.middleware.allowed_hosts import AllowedHostsMiddleware
from litestar.middleware.csrf import CSRFMiddleware

from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gates"]


class Gates:
    """Refuses the requests that Litestar's ``allowed_hosts`` and ``csrf_config`` refuse.

    Args:
        app: The ASGI app to wrap.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # Built at the first request: later plugins may change the settings.
        self._gates: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._gates is None:
            self._gates = self._build(scope["litestar_app"])
        await self._gates(scope, receive, send)

    def _build(self, app: Litestar) -> ASGIApp:
        gates = self.app
        if app.csrf_config is not None:
            gates = _CSRFGate(gates, app.csrf_config)
        if app.allowed_hosts:
            made: Any = AllowedHostsMiddleware(cast("Any", gates), app.allowed_hosts)
            gates = made
        return gates


class _CSRFGate:
    """Litestar's check of a CSRF token, after which the body can be read again.

    Safe methods skip it: only Litestar's own middleware sets their cookie, as two of them would
    set two tokens.
    """

    def __init__(self, app: ASGIApp, config: Any) -> None:
        self._app = app
        self._safe_methods = config.safe_methods
        make = cast("Callable[..., ASGIApp]", CSRFMiddleware)
        self._check = make(app=self._pass_on, config=config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in self._safe_methods:
            await self._app(scope, receive, send)
        else:
            await self._check(scope, _ReadBody(receive), send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(receive, _ReadBody):
            receive = receive.again()
        await self._app(scope, receive, send)


class _ReadBody:
    """Remembers the messages that the check reads, which it does only for a token in a form."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: list[Message] = []

    async def __call__(self) -> Message:
        message = await self._receive()
        self._read.append(message)
        return message

    def again(self) -> Receive:
        """Return a ``receive`` that begins with the first message again."""
        if not self._read:
            return self._receive
        self._read.reverse()

        async def receive() -> Message:
            return self._read.pop() if self._read else await self._receive()

        return receive
