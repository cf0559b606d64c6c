"""Calling ASGI apps message by message, where a client library would hide the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send, header_values


def http_scope(
    method: str = "GET", path: str = "/", headers: Iterable[tuple[str, str]] = (), **more: Any
) -> Scope:
    """Return an HTTP scope as uvicorn makes it."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": raw,
        "client": ("127.0.0.1", 5000),
        "server": ("testserver", 80),
    }
    return {**scope, **more}


class Exchange:
    """One request, and the messages of the app's response.

    Attributes:
        sent: The app's messages, without the end of a request whose client has disconnected:
            only middlewares see that, and servers drop it.
        disconnected: Set it to let the client disconnect.
    """

    def __init__(self, body: bytes = b"", *, chunks: list[bytes] | None = None) -> None:
        self._chunks = [body] if chunks is None else list(chunks)
        self.disconnected = asyncio.Event()
        self.answer_began = asyncio.Event()
        self.sent: list[Message] = []
        self._is_for_nobody = False

    async def receive(self) -> Message:
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._is_for_nobody = self._is_for_nobody or message.get("status") == 499
        if self._is_for_nobody:
            return
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.answer_began.set()

    @property
    def status(self) -> int:
        return self._starts()[0]["status"]

    @property
    def body(self) -> bytes:
        bodies = [m.get("body", b"") for m in self.sent if m["type"] == "http.response.body"]
        return b"".join(bodies)

    @property
    def is_complete(self) -> bool:
        """True if the response is one start, and bodies of which only the last one is final."""
        bodies = [m for m in self.sent if m["type"] == "http.response.body"]
        more = [m.get("more_body", False) for m in bodies]
        return len(self._starts()) == 1 and more == [True] * (len(more) - 1) + [False]

    def headers(self, name: str) -> list[str]:
        values = header_values(self._starts()[0]["headers"], name.lower().encode())
        return [value.decode("latin-1") for value in values]

    def _starts(self) -> list[Message]:
        return [m for m in self.sent if m["type"] == "http.response.start"]


class GoneExchange(Exchange):
    """A request to a server whose ``send()`` raises after the client has disconnected (ASGI 2.4).

    Attributes:
        refused: The messages for which it raised.
    """

    def __init__(self, body: bytes = b"") -> None:
        super().__init__(body)
        self.refused: list[Message] = []

    async def send(self, message: Message) -> None:
        if self.disconnected.is_set():
            self.refused.append(message)
            raise OSError("the client has gone")
        await super().send(message)


async def exchange(app: ASGIApp, scope: Scope, body: bytes = b"", **more: Any) -> Exchange:
    """Send one request to an app and return the exchange, once the app is through."""
    exchange = Exchange(body, **more)
    await app(scope, exchange.receive, exchange.send)
    return exchange


async def answered(post: Callable[[], Awaitable[Exchange]]) -> Exchange | None:
    """Send a request; return its exchange unless the client is to come back."""
    result = await post()
    return result if result.status not in (409, 503) else None


def keyed(
    key: str = "k",
    path: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    *,
    method: str = "POST",
    **more: Any,
) -> Scope:
    """Return the scope of a request with an idempotency key."""
    return http_scope(method, path, [("Idempotency-Key", key), *headers], **more)


async def answer(
    send: Send,
    body: bytes = b"ok",
    *,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"text/plain"),),
) -> None:
    """Respond with one body."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def read_all(receive: Receive) -> bytes:
    """Read a request's body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body
