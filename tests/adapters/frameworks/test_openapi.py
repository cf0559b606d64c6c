"""The key in the OpenAPI documents of FastAPI and Litestar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI, Header
from fastapi.openapi.utils import get_openapi
from litestar import Litestar, get, post
from litestar.openapi.spec import Operation

import asgi_durable_fastapi
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_fastapi import idempotent
from asgi_durable_litestar import DurablePlugin

NEEDS_KEY = IdempotencyPolicy(required=True, header_name="X-Key")
PROBLEM = "application/problem+json"

Document = dict[str, Any]


@pytest.fixture
def durable(url: str) -> Durable:
    routes = {"POST /hooks/{name}": None}
    return Durable(url, idempotency_routes=routes)


def fastapi_document(durable: Durable) -> Document:
    app = FastAPI()
    router = APIRouter(prefix="/shop")
    asgi_durable_fastapi.install(app, durable)

    @app.get("/orders")
    async def read() -> None: ...

    @app.post("/orders/{order_id}")
    @durable.workflow
    async def plain(order_id: int) -> None: ...

    @router.post("/payments")
    @idempotent(NEEDS_KEY)
    async def needs_key() -> None: ...

    @app.post("/out")
    @idempotent(None)
    async def out() -> None: ...

    @app.post("/hooks/{name}")
    async def hook(name: str) -> None: ...

    app.include_router(router)
    return app.openapi()


def litestar_document(durable: Durable) -> Document:
    @get("/orders")
    async def read() -> None: ...

    @post("/orders/{order_id:int}")
    @durable.workflow
    async def plain(order_id: int) -> None: ...

    @post("/shop/payments", opt={"idempotency": NEEDS_KEY})
    async def needs_key() -> None: ...

    @post("/out", opt={"idempotency": None})
    async def out() -> None: ...

    @post("/hooks/{name:str}")
    async def hook(name: str) -> None: ...

    app = Litestar([read, plain, needs_key, out, hook], plugins=[DurablePlugin(durable)])
    return app.openapi_schema.to_schema()


pytestmark = pytest.mark.filterwarnings(r"ignore:\[paths=")
on_both = pytest.mark.parametrize("document_of", [fastapi_document, litestar_document])


def headers_of(operation: Document) -> dict[str, Document]:
    found = [known for known in operation.get("parameters", []) if known["in"] == "header"]
    return {parameter["name"]: parameter for parameter in found}


@on_both
def test_a_covered_operation_takes_a_key_and_may_be_refused(
    durable: Durable, document_of: Callable[[Durable], Document]
) -> None:
    operation = document_of(durable)["paths"]["/orders/{order_id}"]["post"]

    parameter = headers_of(operation)["Idempotency-Key"]
    assert parameter.get("required", False) is False
    assert parameter["schema"]["maxLength"] == 255
    for status in ("400", "409", "410", "422"):
        schema = operation["responses"][status]["content"][PROBLEM]["schema"]
        assert {"type", "code", "retryable"} <= set(schema["properties"])
    (success,) = {"200", "201"}.intersection(operation["responses"])
    assert {"Durable-Id", "Idempotent-Replayed"} <= set(operation["responses"][success]["headers"])


@on_both
def test_a_policy_says_the_name_and_whether_it_is_required(
    durable: Durable, document_of: Callable[[Durable], Document]
) -> None:
    operation = document_of(durable)["paths"]["/shop/payments"]["post"]

    assert {name: known["required"] for name, known in headers_of(operation).items()} == {
        "X-Key": True
    }


@on_both
def test_a_key_that_is_in_no_header_is_none_of_the_documents_headers(
    url: str, document_of: Callable[[Durable], Document]
) -> None:
    policy = IdempotencyPolicy(key="/id", verify=lambda *_: True)
    durable = Durable(url, idempotency_routes={"POST /orders/{order_id}": policy})

    operation = document_of(durable)["paths"]["/orders/{order_id}"]["post"]

    assert headers_of(operation) == {}
    assert {"400", "403", "409", "410", "422"} <= set(operation["responses"])


@on_both
@pytest.mark.parametrize(
    ("path", "method"), [("/orders", "get"), ("/out", "post"), ("/hooks/{name}", "post")]
)
def test_an_operation_that_keys_have_no_effect_on_says_nothing(
    durable: Durable, document_of: Callable[[Durable], Document], path: str, method: str
) -> None:
    operation = document_of(durable)["paths"][path][method]

    assert headers_of(operation) == {}
    assert "409" not in operation["responses"]


def test_what_fastapi_said_of_a_status_stays(durable: Durable) -> None:
    document = fastapi_document(durable)

    said = document["paths"]["/orders/{order_id}"]["post"]["responses"]["422"]
    assert said["description"] == "Validation Error"
    assert set(said["content"]) == {"application/json", PROBLEM}


def test_a_header_that_a_handler_declares_itself_is_not_said_twice(durable: Durable) -> None:
    app = FastAPI()
    asgi_durable_fastapi.install(app, durable)

    @app.post("/orders")
    async def order(idempotency_key: Annotated[str, Header()]) -> None: ...

    for _ in range(2):
        operation = app.openapi()["paths"]["/orders"]["post"]

    assert list(headers_of(operation)) == ["idempotency-key"]
    assert headers_of(operation)["idempotency-key"]["required"] is True


@pytest.mark.parametrize("is_first", [True, False], ids=["before install", "after install"])
def test_an_openapi_of_the_applications_own_is_left_alone(durable: Durable, is_first: bool) -> None:
    app = FastAPI()
    said = get_openapi(title="mine", version="1", routes=[])

    def mine() -> Document:
        return said

    if is_first:
        app.openapi = mine
    asgi_durable_fastapi.install(app, durable)
    if not is_first:
        app.openapi = mine

    @app.post("/orders")
    async def order() -> None: ...

    assert app.openapi() == {"openapi": "3.1.0", "info": said["info"], "paths": {}}
    assert app.openapi is mine


def test_a_subclass_that_makes_its_document_is_left_alone(durable: Durable) -> None:
    class Shop(fastapi.FastAPI):
        def openapi(self) -> Document:
            return {"paths": {"/orders": {"post": {}}}}

    app = Shop()
    asgi_durable_fastapi.install(app, durable)

    @app.post("/orders")
    async def order() -> None: ...

    assert app.openapi() == {"paths": {"/orders": {"post": {}}}}


def test_an_operation_class_of_the_applications_own_has_its_say(durable: Durable) -> None:
    @dataclass
    class Mine(Operation):
        def __post_init__(self) -> None:
            self.tags = ["mine"]

    @post("/orders", operation_class=Mine)
    async def order() -> None: ...

    app = Litestar([order], plugins=[DurablePlugin(durable)])
    operation = app.openapi_schema.to_schema()["paths"]["/orders"]["post"]

    assert operation["tags"] == ["mine"]
    assert "Idempotency-Key" in headers_of(operation)


def test_litestars_document_does_not_list_the_status_pages(durable: Durable) -> None:
    assert not any("durable" in path for path in litestar_document(durable)["paths"])
