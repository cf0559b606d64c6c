"""The same application on a raw ASGI app and on three frameworks, steered by a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

import fastapi
import litestar
import litestar.background_tasks
import litestar.response
from starlette import responses
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.routing import Route

from asgi_durable import Durable, DurableError
from asgi_durable.middleware.asgi import ASGIApp
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable_fastapi import install

__all__ = ["FRAMEWORKS", "Reply", "build"]

PATHS = ["/orders", "/returns"]
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A handler's response, whatever its framework calls that.

    Attributes:
        pieces: The chunks of the body, if it is streamed.
        background: Called after the response.
    """

    status: int
    headers: dict[str, str]
    media_type: str
    body: bytes = b""
    pieces: Iterable[bytes] | None = None
    background: Callable[[], Awaitable[None]]


Handle = Callable[[str], Awaitable[Reply]]


def build(framework: str, handle: Handle, durable: Durable) -> ASGIApp:
    """Return a durable application whose handler gets the request's method.

    Args:
        framework: One of :data:`FRAMEWORKS`.
        handle: The handler's work.
        durable: The instance that stores its requests.
    """
    return FRAMEWORKS[framework](handle, durable)


def _asgi(handle: Handle, durable: Durable) -> ASGIApp:
    async def app(scope, receive, send) -> None:
        reply = await handle(scope["method"])
        headers = {"content-type": reply.media_type, **reply.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        if reply.pieces is None:
            await send({"type": "http.response.body", "body": reply.body})
        else:
            for piece in reply.pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        await reply.background()

    return durable.wrap(app)


def _starlette(handle: Handle, durable: Durable) -> ASGIApp:
    async def endpoint(request: Request) -> responses.Response:
        return _starlette_response(await handle(request.method))

    return durable.wrap(
        Starlette(routes=[Route(path, endpoint, methods=METHODS) for path in PATHS])
    )


def _fastapi(handle: Handle) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    async def endpoint(request: Request) -> responses.Response:
        return _starlette_response(await handle(request.method))

    for path in PATHS:
        app.add_api_route(path, endpoint, methods=METHODS)
    return app


def _wrapped_fastapi(handle: Handle, durable: Durable) -> ASGIApp:
    return durable.wrap(_fastapi(handle))


def _installed_fastapi(handle: Handle, durable: Durable) -> ASGIApp:
    app = _fastapi(handle)
    install(app, durable)
    return app


def _starlette_response(reply: Reply) -> responses.Response:
    options = {
        "status_code": reply.status,
        "headers": reply.headers,
        "media_type": reply.media_type,
        "background": BackgroundTask(reply.background),
    }
    if reply.pieces is not None:
        return responses.StreamingResponse(reply.pieces, **options)
    return responses.Response(reply.body, **options)


def _litestar(handle: Handle, durable: Durable) -> ASGIApp:
    @litestar.route(PATHS, http_method=METHODS)
    async def endpoint(request: litestar.Request) -> litestar.Response:
        return _litestar_response(await handle(request.method))

    return durable.wrap(
        litestar.Litestar(
            [endpoint],
            # It responds to every error itself, and does not pass errors on.
            exception_handlers={DurableError: _litestar_problem},
            openapi_config=None,
            logging_config=None,
        )
    )


def _litestar_response(reply: Reply) -> litestar.Response:
    options = {
        "status_code": reply.status,
        "headers": reply.headers,
        "media_type": reply.media_type,
        "background": litestar.background_tasks.BackgroundTask(reply.background),
    }
    if reply.pieces is not None:
        return litestar.response.Stream(_in_turn(reply.pieces), **options)
    return litestar.Response(reply.body, **options)


async def _in_turn(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _litestar_problem(_request: litestar.Request, error: DurableError) -> litestar.Response:
    status, headers, body = problem_response(error)
    decoded = {name.decode(): value.decode() for name, value in headers}
    media_type = decoded.pop("content-type")
    return litestar.Response(body, status_code=status, headers=decoded, media_type=media_type)


FRAMEWORKS = {
    "asgi": _asgi,
    "starlette": _starlette,
    "fastapi": _wrapped_fastapi,
    "fastapi-installed": _installed_fastapi,
    "litestar": _litestar,
}
