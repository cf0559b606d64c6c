"""Applications whose responses come in chunks, each produced when a test allows it.

``starlette`` and ``raw`` do the same below ``/events`` and ``/download``, and ``recorded`` records
streams. Below ``/control``, outside of the library, a test allows chunks of a response, and reads
the events of its producer. The database is that of ``ASGI_DURABLE_URL``.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from support.asgi import answer, read_all
from support.pieces import MAX_RESPONSE_BODY, MEDIA_TYPES, PIECES, piece

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send


class Stream:
    """A response in chunks.

    Attributes:
        noted: The events so far, in order.
    """

    def __init__(self) -> None:
        self.noted: list[str] = []
        self._allowed = 0
        self._fails = False
        self._changed = asyncio.Event()

    def allow(self, pieces: int) -> None:
        """Allow this many chunks, counted from the first."""
        self._allowed = pieces
        self._changed.set()

    def fail(self) -> None:
        """Let the app fail where it waits, once."""
        self._fails = True
        self._changed.set()

    async def pieces(self, kind: str) -> AsyncIterator[bytes]:
        """Produce the chunks that the test allows."""
        for number in range(PIECES):
            while number >= self._allowed:
                self._changed.clear()
                await self._changed.wait()
                if self._fails:
                    self._fails = False
                    raise RuntimeError
            self.noted.append(f"piece {number}")
            yield piece(kind, number)


streams: defaultdict[str, Stream] = defaultdict(Stream)


async def answer_by_starlette(request: Request) -> StreamingResponse:
    """Respond in chunks; note each time the client is reported as disconnected."""
    kind, stream = request.path_params["kind"], streams[request.path_params["name"]]
    await request.body()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for data in stream.pieces(kind):
                if await request.is_disconnected():
                    stream.noted.append("disconnected")
                yield data
        except asyncio.CancelledError:
            stream.noted.append("cancelled")
            raise
        stream.noted.append("end")

    return StreamingResponse(pieces(), media_type=MEDIA_TYPES[kind])


async def answer_raw(scope: Scope, receive: Receive, send: Send) -> None:
    """Do the same without a framework; listens to the client all the while."""
    _, kind, name = scope["path"].split("/")
    stream = streams[name]
    await read_all(receive)

    async def listen() -> None:
        stream.noted.append((await receive())["type"])

    listening = asyncio.ensure_future(listen())
    headers = [(b"content-type", MEDIA_TYPES[kind].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for data in stream.pieces(kind):
        await send({"type": "http.response.body", "body": data, "more_body": True})
    stream.noted.append("end")
    listening.cancel()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def controlled(app: ASGIApp) -> ASGIApp:
    """Return an app that the test has a hold on."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/control/"):
            await app(scope, receive, send)
            return
        stream = streams[scope["path"].rpartition("/")[2]]
        for allowed in parse_qs(scope["query_string"].decode()).get("allow", ()):
            stream.allow(int(allowed))
        if scope["query_string"] == b"fail":
            stream.fail()
        await answer(send, json.dumps(stream.noted).encode())

    return serve


# A pause passes nothing on: that would hide chunks that are held back.
NEVER_SECONDS = 3600.0
policy = IdempotencyPolicy(max_response_body=MAX_RESPONSE_BODY, stream_after=NEVER_SECONDS)
durable = Durable(idempotency=policy)
route = Route("/{kind}/{name}", answer_by_starlette, methods=["GET", "POST"])
starlette = controlled(durable.wrap(Starlette(routes=[route])))
raw = controlled(durable.wrap(answer_raw))
recording = IdempotencyPolicy(
    max_response_body=MAX_RESPONSE_BODY, stream_after=NEVER_SECONDS, stream="record"
)
recorded = controlled(Durable(idempotency=recording).wrap(Starlette(routes=[route])))
