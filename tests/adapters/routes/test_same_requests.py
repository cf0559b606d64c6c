"""Which requests are the same one to each framework, and where their keys are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import post as litestar_post
from litestar.datastructures import State
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings(r"ignore:\[paths="),
]
KEY = {"Idempotency-Key": "k"}
EVENT = IdempotencyPolicy(key="{event_id}", required=True)

Make = Callable[[Durable, str, list[str]], Any]


def starlette_app(durable: Durable, path: str, calls: list[str]) -> Starlette:
    async def serve(request: Request) -> Response:
        calls.append(request.url.path)
        return JSONResponse(len(calls), status_code=201)

    app = Starlette(routes=[Route(path, serve, methods=["POST"])])
    asgi_durable_starlette.install(app, durable)
    return app


def mounted_app(durable: Durable, path: str, calls: list[str]) -> Starlette:
    async def serve(request: Request) -> Response:
        calls.append(request.url.path)
        return JSONResponse(len(calls), status_code=201)

    app = Starlette(routes=[Mount("/", routes=[Route(path, serve, methods=["POST"])])])
    asgi_durable_starlette.install(app, durable)
    return app


def fastapi_app(durable: Durable, path: str, calls: list[str]) -> FastAPI:
    app = FastAPI()

    @app.post(path, status_code=201)
    async def serve(request: Request) -> int:
        calls.append(request.url.path)
        return len(calls)

    asgi_durable_fastapi.install(app, durable)
    return app


def litestar_app(durable: Durable, path: str, calls: list[str]) -> Litestar:
    @litestar_post(path.replace("}", ":int}"), name="serve")
    async def serve(request: LitestarRequest[Any, Any, State]) -> int:
        calls.append(request.url.path)
        return len(calls)

    return Litestar([serve], plugins=[DurablePlugin(durable)])


def client(app: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://shop", headers=KEY, **options)


@pytest.mark.parametrize("make", [starlette_app, mounted_app, fastapi_app])
async def test_a_call_that_the_router_redirects_for_its_slash_can_be_repeated(
    durable: Durable, make: Make
) -> None:
    calls: list[str] = []
    async with client(make(durable, "/orders/", calls), follow_redirects=True) as http:
        answers = [await http.post(path, json={}) for path in ["/orders"] * 3 + ["/orders/"]]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(201, 1)] * 4
    assert [answer.history[0].status_code for answer in answers[:3]] == [307] * 3
    assert calls == ["/orders/"]


@pytest.mark.parametrize("make", [starlette_app, mounted_app, fastapi_app, litestar_app])
async def test_the_spelling_of_a_path_makes_no_other_request(durable: Durable, make: Make) -> None:
    calls: list[str] = []
    async with client(make(durable, "/s", calls)) as http:
        answers = [await http.post(path, json={}) for path in ["/s", "/%73", "/s?"]]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(201, 1)] * 3


async def test_slashes_that_litestar_leaves_out_make_no_other_request(durable: Durable) -> None:
    calls: list[str] = []
    async with client(litestar_app(durable, "/s", calls)) as http:
        answers = [await http.post(path, json={}) for path in ["/s/", "/s", "/s//", "/%73/?"]]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(201, 1)] * 4


@pytest.mark.parametrize("make", [starlette_app, mounted_app, fastapi_app, litestar_app])
@pytest.mark.parametrize("is_default", [True, False])
async def test_the_key_may_be_a_parameter_of_the_frameworks_route(
    url: str, make: Make, is_default: bool
) -> None:
    policies: dict[str, Any] = (
        {"idempotency": EVENT} if is_default else {"idempotency_routes": {"POST /hooks/{n}": EVENT}}
    )
    calls: list[str] = []
    durable = Durable(url, **policies)
    async with durable, client(make(durable, "/hooks/{event_id}", calls)) as http:
        answers = [await http.post(f"/hooks/{event}", json={}) for event in (7, 7, 8)]

    assert [answer.json() for answer in answers] == [1, 1, 2]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", None]
    assert "idempotency-key" not in answers[0].headers
