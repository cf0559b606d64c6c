"""A route that returns a result stored by earlier code responds as today's code does."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from support.versions import BEFORE, KINDS, Change, Class, Code, Defined, Field

from asgi_durable import Durable
from asgi_durable_fastapi import install

pytestmark = pytest.mark.anyio

N, NAME = BEFORE.fields
CHANGE = Change(
    BEFORE,
    Class(
        (N, Field("x", "str", "'x'"), Field("tags", "list[str]", factory="list")),
        name="Purchase",
        module="store",
    ),
    {"n": 1, "name": "a"},
    {"n": 1},
)


def make_order(code: Code) -> Defined:
    """Define a workflow that returns the value."""
    return code.workflow("make", code.make, **{"return": code.version.hint}), tuple


def application(durable: Durable, work: Any, model: Any) -> FastAPI:
    """Return an app that responds with stored results, and starts the workflow."""
    app = FastAPI()

    @app.get("/orders/{workflow_id}", response_model=model)
    async def read_order(workflow_id: str) -> Any:
        return await (await durable.retrieve_workflow(workflow_id)).get_result()

    @app.get("/orders/{workflow_id}/status", response_model=model)
    async def read_status(workflow_id: str) -> Any:
        return (await (await durable.retrieve_workflow(workflow_id)).get_status()).output

    @app.get("/orders/{workflow_id}/set", response_model=model, response_model_exclude_unset=True)
    async def read_what_was_set(workflow_id: str) -> Any:
        return await (await durable.retrieve_workflow(workflow_id)).get_result()

    @app.post("/orders", response_model=model)
    async def create_order() -> Any:
        return await durable.options(workflow_id="w").run_workflow(work)

    install(app, durable)
    return app


@pytest.mark.parametrize("kind", ["dataclass", "frozen", "model"])
async def test_a_get_sees_the_defaults_of_new_fields(url: str, kind: str) -> None:
    with CHANGE.made(KINDS[kind]) as (former, later):
        answers = {}
        for name, version in (("former", former), ("later", later)):
            code = Code(make_order, version, url)
            app = application(code.durable, code.work, version.hint)
            client = AsyncClient(transport=ASGITransport(app), base_url="http://testserver")
            async with code.durable, client:
                if name == "former":
                    assert (await client.post("/orders")).json() == {"n": 1, "name": "a"}
                paths = ("/orders/w", "/orders/w/status", "/orders/w/set")
                answers[name] = [(await client.get(path)).json() for path in paths]
            assert code.ran == (["make"] if name == "former" else [])

    whole = {"n": 1, "x": "x", "tags": []}
    # Only models know which fields were not set.
    set_alone = {"n": 1} if kind == "model" else whole
    assert answers["former"] == [{"n": 1, "name": "a"}] * 3
    assert answers["later"] == [whole, whole, set_alone]
