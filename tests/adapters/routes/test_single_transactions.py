"""Handlers of frameworks that are one transaction, committed together with their response."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from litestar import Litestar, post
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from support.executors import query, storage_of

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin
from asgi_durable_starlette import idempotent

pytestmark = [
    pytest.mark.anyio,
    # Parameters that Litestar infers from their names.
    pytest.mark.filterwarnings(r"ignore:\[paths="),
]

SINGLE = IdempotencyPolicy(single_transaction=True)
INSERT = sa.text("INSERT INTO transfers VALUES (:amount)")


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def _transfers(durable: Durable) -> tuple[Any, Any]:
    @durable.transaction
    async def transfer(amount: int) -> dict[str, int]:
        await durable.session.execute(INSERT, {"amount": amount})
        return {"amount": amount}

    @durable.transaction
    def transfer_in_thread(amount: int) -> dict[str, int]:
        durable.blocking.session.execute(INSERT, {"amount": amount})
        return {"amount": amount}

    return transfer, transfer_in_thread


def _starlette(durable: Durable) -> Any:
    transfer, transfer_in_thread = _transfers(durable)

    @idempotent(SINGLE)
    async def endpoint(request: Request) -> Response:
        return JSONResponse(await transfer(request.path_params["amount"]))

    @idempotent(SINGLE)
    def endpoint_in_thread(request: Request) -> Response:
        return JSONResponse(transfer_in_thread(request.path_params["amount"]))

    app = Starlette(
        routes=[
            Route("/async/{amount:int}", endpoint, methods=["POST"]),
            Route("/def/{amount:int}", endpoint_in_thread, methods=["POST"]),
        ]
    )
    asgi_durable_starlette.install(app, durable)
    return app


def _fastapi(durable: Durable) -> Any:
    app = FastAPI()
    for path, transfer in zip(("/async", "/def"), _transfers(durable), strict=True):
        app.post(f"{path}/{{amount}}")(idempotent(SINGLE)(transfer))
    asgi_durable_fastapi.install(app, durable)
    return app


def _litestar(durable: Durable) -> Any:
    transfer, transfer_in_thread = _transfers(durable)
    handlers = [
        post("/async/{amount:int}", opt={"idempotency": SINGLE})(transfer),
        post("/def/{amount:int}", opt={"idempotency": SINGLE}, sync_to_thread=True)(
            transfer_in_thread
        ),
    ]
    return Litestar(handlers, plugins=[DurablePlugin(durable)])


@pytest.mark.parametrize("path", ["/async", "/def"])
@pytest.mark.parametrize("build", [_starlette, _fastapi, _litestar])
async def test_a_handler_is_one_commit(url: str, build: Any, path: str) -> None:
    if path == "/def" and urlsplit(url).scheme == "postgresql":
        pytest.importorskip("psycopg")
    durable = Durable(url)
    app = build(durable)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with durable, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        async with storage_of(durable).transaction(None) as transaction:
            create = "CREATE TABLE transfers (amount INT CHECK (amount > 0))"
            await transaction.session.execute(sa.text(create))
        key = {"Idempotency-Key": "k"}
        first, retry = [await client.post(f"{path}/5", headers=key) for _ in range(2)]
        failed = await client.post(f"{path}/0", headers={"Idempotency-Key": "other"})

        assert (first.json(), retry.content) == ({"amount": 5}, first.content)
        assert retry.headers["idempotent-replayed"] == "true"
        assert failed.status_code == 500
        assert await query(url, "SELECT amount FROM transfers") == [(5,)]
        # A recorded transaction would have a step, and a request that failed a row.
        assert await query(url, "SELECT count(*) FROM asgi_durable_steps") == [(0,)]
        assert await query(url, "SELECT count(*) FROM asgi_durable_workflows") == [(1,)]
