"""Limits of request bodies, and other refusals of ``receive()``, for requests with a key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.asgi import Exchange, keyed

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send, header_values

KEY = {"Idempotency-Key": "k"}
Post = Callable[[TestClient, str, str, bytes], httpx.Response]


def at_once(client: TestClient, path: str, key: str, body: bytes) -> httpx.Response:
    return client.post(path, content=body, headers={"Idempotency-Key": key})


def in_pieces(client: TestClient, path: str, key: str, body: bytes) -> httpx.Response:
    pieces: Iterator[bytes] = (body[i : i + 10] for i in range(0, len(body), 10))
    return client.post(path, content=pieces, headers={"Idempotency-Key": key, "In-Pieces": "1"})


class InPieces:
    """Splits a body that the test client sends at once into chunks, as a server does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: list[bytes] = []

        async def receive_piece() -> Message:
            if not pieces:
                message = await receive()
                if not message.get("body"):
                    return message
                pieces.extend(
                    message["body"][i : i + 10] for i in range(0, len(message["body"]), 10)
                )
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        is_whole = (
            not header_values(scope["headers"], b"in-pieces") if scope["type"] == "http" else True
        )
        await self.app(scope, receive if is_whole else receive_piece, send)


def fastapi_app(calls: list[bytes]) -> FastAPI:
    app = FastAPI(max_body_size=50)

    @app.post("/small")
    async def small(request: Request) -> int:
        calls.append(await request.body())
        return len(calls[-1])

    @app.post("/large", max_body_size=200)
    async def large(request: Request) -> int:
        calls.append(await request.body())
        return len(calls[-1])

    return app


def starlette_app(calls: list[bytes]) -> Starlette:
    async def count(request: Request) -> Response:
        calls.append(await request.body())
        return PlainTextResponse(str(len(calls[-1])))

    routes = [
        Route("/small", count, methods=["POST"]),
        Route("/large", count, methods=["POST"], max_body_size=200),
    ]
    return Starlette(routes=routes, max_body_size=50)


INSTALL = {fastapi_app: asgi_durable_fastapi.install, starlette_app: asgi_durable_starlette.install}
limits_routes = pytest.mark.skipif(
    not hasattr(FastAPI(), "max_body_size"), reason="this version of FastAPI has no limits"
)


@limits_routes
@pytest.mark.parametrize("new_app", [fastapi_app, starlette_app])
@pytest.mark.parametrize("post", [at_once, in_pieces])
@pytest.mark.parametrize(("oversize", "most"), [("reject", 500), ("hash", 30)])
def test_the_limit_of_the_route_counts_as_without_a_key(
    url: str, new_app: Callable[..., ASGIApp], post: Post, oversize: Any, most: int
) -> None:
    plain, calls = TestClient(InPieces(new_app([]))), list[bytes]()
    policy = IdempotencyPolicy(max_request_body=most, oversize=oversize)
    app = new_app(calls)
    INSTALL[new_app](app, Durable(url, idempotency=policy))

    with TestClient(InPieces(app)) as client:
        for path, size in (("/small", 50), ("/large", 190)):
            body, longer = bytes(size), bytes(size + 20)
            answers = [post(client, path, f"{size}", body) for _ in range(2)]
            refused, unkeyed = [post(c, path, f"{size}+", longer) for c in (client, plain)]
            shorter = post(client, path, f"{size}+", body)

            assert [(a.status_code, a.text) for a in answers] == [(200, str(size))] * 2
            assert answers[1].headers["idempotent-replayed"] == "true"
            assert (refused.status_code, refused.text) == (413, unkeyed.text)
            # It was refused before anything was recorded, so the key is free.
            assert shorter.status_code == 200
            assert calls == [body] * 2
            calls.clear()


class Refusing:
    """Lets nobody receive a body that begins with "x"; it lies around idempotency, or all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_checked() -> Message:
            message = await receive()
            if message.get("body", b"").startswith(b"x"):
                raise HTTPException(413, "not here")
            return message

        await self.app(scope, receive_checked, send)


@pytest.mark.parametrize("place", ["inside of install", "around wrap"])
@pytest.mark.parametrize("oversize", ["reject", "hash"])
def test_what_receive_raises_is_answered_as_without_a_key(
    url: str, place: str, oversize: Any
) -> None:
    calls: list[bytes] = []

    async def count(request: Request) -> Response:
        calls.append(await request.body())
        return PlainTextResponse("ok")

    async def ignore(_request: Request) -> Response:
        return PlainTextResponse("ok")

    durable = Durable(url, idempotency=IdempotencyPolicy(max_request_body=5, oversize=oversize))
    is_installed = place == "inside of install"
    routes = [Route("/", count, methods=["POST"]), Route("/ignore", ignore, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Refusing)] if is_installed else [])
    if is_installed:
        asgi_durable_starlette.install(app, durable)
    with TestClient(app if is_installed else Refusing(durable.wrap(app))) as client:
        unkeyed = client.post("/", content=b"x")
        refused = client.post("/", content=b"x", headers=KEY)
        done = [client.post("/", content=b"body", headers=KEY) for _ in range(2)]
        # The key has a stored response, which a request with an unknown body does not get.
        other = client.post("/", content=b"x", headers=KEY)
        ignored = client.post("/ignore", content=b"x", headers={"Idempotency-Key": "other"})

    assert (refused.status_code, refused.text) == (unkeyed.status_code, unkeyed.text)
    assert refused.status_code == 413
    assert [a.status_code for a in done] == [200, 200]
    assert calls == [b"body"]
    assert other.status_code == (422 if is_installed else 413)
    # Without a body there is no fingerprint, and without a fingerprint no stored response.
    if not is_installed:
        assert (ignored.status_code, ignored.json()["code"]) == (503, "OUTCOME_UNKNOWN")


@pytest.mark.anyio
async def test_a_client_that_leaves_is_noticed_before_its_body_is_read(url: str) -> None:
    policy = IdempotencyPolicy(on_disconnect="cancel")
    durable = Durable(url, idempotency=policy, drain_timeout=0.0)
    begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_request: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()
        return PlainTextResponse("never")

    routes = [Route("/", wait, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Refusing)])
    asgi_durable_starlette.install(app, durable)
    client = Exchange(b"body")
    async with durable:
        call = asyncio.create_task(app(keyed(), client.receive, client.send))
        await begun.wait()
        client.disconnected.set()
        await was_cancelled.wait()
        await call

    assert client.sent == []
