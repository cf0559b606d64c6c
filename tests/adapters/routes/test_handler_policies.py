"""Policies of handlers: the decorator, and where the framework routes a request."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_starlette import idempotent

NEEDS_KEY = IdempotencyPolicy(required=True)
KEY = {"Idempotency-Key": "k"}


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url)


async def _answer(_request: Request) -> Response:
    return JSONResponse("done")


@idempotent(NEEDS_KEY)
async def _needs_key(request: Request) -> Response:
    return await _answer(request)


@idempotent(None)
async def _takes_none(request: Request) -> Response:
    return await _answer(request)


@idempotent(IdempotencyPolicy(methods=frozenset({"PUT"})))
class _Document(HTTPEndpoint):
    async def put(self, request: Request) -> Response:
        return await _answer(request)


def _starlette(durable: Durable) -> Starlette:
    app = Starlette(
        routes=[
            Route("/plain", _answer, methods=["POST"]),
            Route("/payments/{payment_id:int}", _needs_key, methods=["POST"]),
            Route("/hooks", _takes_none, methods=["POST"]),
            Route("/documents", _Document),
            Mount("/inner", routes=[Route("/payments", _needs_key, methods=["POST"])]),
        ]
    )
    asgi_durable_starlette.install(app, durable)
    return app


def test_a_handler_of_starlette_has_the_policy_that_it_is_given(durable: Durable) -> None:
    with TestClient(_starlette(durable)) as client:
        plain = [client.post("/plain", headers=headers) for headers in ({}, KEY)]
        missing = [client.post(path) for path in ("/payments/1", "/inner/payments")]
        given = client.post("/inner/payments", headers={"Idempotency-Key": "other"})
        hook = client.post("/hooks", headers=KEY)
        documents = [client.put("/documents", headers={"Idempotency-Key": "d"}) for _ in range(2)]

    assert [answer.status_code for answer in plain] == [200, 200]
    assert ["durable-id" in answer.headers for answer in plain] == [False, True]
    assert [answer.json()["code"] for answer in missing] == ["KEY_MISSING"] * 2
    assert "durable-id" in given.headers
    assert (hook.status_code, "durable-id" in hook.headers) == (200, False)
    assert "idempotent-replayed" not in documents[0].headers
    assert documents[1].headers["idempotent-replayed"] == "true"


def test_a_path_without_a_handler_has_the_policy_of_the_application(durable: Durable) -> None:
    with TestClient(_starlette(durable)) as client:
        missing = client.post("/nowhere", headers=KEY)
        wrong = client.put("/payments/1", headers=KEY)

    assert (missing.status_code, wrong.status_code) == (404, 405)


def test_a_handler_of_fastapi_has_it_too_as_a_workflow_and_in_a_router(durable: Durable) -> None:
    app = FastAPI()
    router = APIRouter(prefix="/shop")

    @router.post("/orders/{order_id}")
    @durable.workflow
    @idempotent(NEEDS_KEY)
    async def order(order_id: int) -> dict[str, int]:
        return {"order_id": order_id}

    app.include_router(router, prefix="/v1")
    asgi_durable_fastapi.install(app, durable)
    with TestClient(app) as client:
        missing = client.post("/v1/shop/orders/1")
        given = [client.post("/v1/shop/orders/1", headers=KEY) for _ in range(2)]

    assert missing.json()["code"] == "KEY_MISSING"
    assert [answer.json() for answer in given] == [{"order_id": 1}] * 2
    assert given[1].headers["idempotent-replayed"] == "true"


def test_a_policy_by_route_counts_before_the_handlers(url: str) -> None:
    durable = Durable(url, idempotency_routes={"POST /payments/{payment_id}": None})
    with TestClient(_starlette(durable)) as client:
        assert client.post("/payments/1").status_code == 200


def test_a_handler_that_takes_its_request_goes_on_with_the_retry(durable: Durable) -> None:
    tried: list[str] = []

    @durable.step(retry=None)
    async def reserve(name: str) -> str:
        tried.append(name)
        return name

    async def order(request: Request) -> Response:
        name = await reserve(request.path_params["name"])
        if len(tried) + request.headers.get("x-try", "").count("1") == 1:
            msg = "not yet"
            raise ConnectionError(msg)
        return JSONResponse({"reserved": name}, 201)

    app = Starlette(routes=[Route("/orders/{name}", order, methods=["POST"])])
    asgi_durable_starlette.install(app, durable)
    with TestClient(app, raise_server_exceptions=False) as client:
        failed = client.post("/orders/a", headers=KEY)
        done = client.post("/orders/a", headers={**KEY, "X-Try": "1"})

    assert failed.status_code == 500
    assert (done.status_code, done.json()) == (201, {"reserved": "a"})
    assert tried == ["a"]
