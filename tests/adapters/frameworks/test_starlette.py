"""The Starlette adapter: what it fills in, and what handlers may ask for."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, DurableUsageError
from asgi_durable_starlette import current_durable, current_request_context, install

KEY = {"Idempotency-Key": "k"}


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url)


def test_what_starlette_fills_in_is_not_recorded(durable: Durable) -> None:
    @durable.workflow
    async def order(
        request: Request, generic: Request[dict[str, str]], task: BackgroundTask, name: str
    ) -> list[str]:
        handle = await durable.retrieve_workflow(durable.workflow_id or "")
        return sorted((await handle.get_status()).input)

    async def handler(request: Request) -> Response:
        task = BackgroundTask(lambda: None)
        return JSONResponse(await order(request, request, task, "a"))

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    install(app, durable)
    with TestClient(app) as client:
        assert client.post("/", headers=KEY).json() == ["name"]


def test_a_workflow_that_needs_its_request_cannot_be_started_in_the_background(
    durable: Durable,
) -> None:
    @durable.workflow
    async def order(request: Request) -> None: ...

    async def handler(request: Request) -> Response:
        await durable.start_workflow(order, request)
        return Response()

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    install(app, durable)
    with TestClient(app) as client:
        problem = client.post("/").json()

    assert (problem["status"], problem["code"]) == (500, "USAGE")


def test_a_handler_finds_the_instance_and_the_request_context(durable: Durable) -> None:
    async def handler(request: Request) -> Response:
        found = current_durable(request)
        return JSONResponse([found is durable, current_request_context().request_id])

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        assert current_durable(websocket) is durable
        await websocket.send_text(current_request_context().method)
        await websocket.close()

    app = Starlette(routes=[Route("/", handler), WebSocketRoute("/ws", talk)])
    install(app, durable)
    with TestClient(app) as client:
        assert client.get("/", headers={"X-Request-ID": "r1"}).json() == [True, "r1"]
        with client.websocket_connect("/ws") as websocket:
            assert websocket.receive_text() == "WEBSOCKET"


def test_without_install_there_is_neither(durable: Durable) -> None:
    async def handler(request: Request) -> Response:
        with pytest.raises(DurableUsageError, match="install"):
            current_durable(request)
        with pytest.raises(DurableUsageError, match="install"):
            current_request_context()
        return Response()

    inner = Starlette(routes=[Route("/", handler)])
    assert TestClient(Starlette(routes=[Mount("/", inner)])).get("/").status_code == 200


def test_fastapi_has_what_starlette_has(durable: Durable) -> None:
    shared = {"current_durable", "current_request_context", "idempotent", "install"}

    assert set(asgi_durable_starlette.__all__) == set(asgi_durable_fastapi.__all__) == shared
