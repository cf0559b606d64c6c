"""Testing: an application under a test client, with and without its lifespan."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()
durable = Durable()
install(app, durable)


@durable.step
async def make(name: str, number: int) -> str:
    """Make something."""
    return f"{name}{number}data"


@app.get("/workflow/{name}/data")
@durable.workflow
async def workflow_data(name: str) -> dict[str, str]:
    """Respond with what a step has made."""
    return {"result": await make(name, 1)}


def test_endpoint() -> None:
    """A client without `with` runs no lifespan: the first request starts the engine."""
    client = TestClient(app)
    response = client.get("/workflow/test/data")
    assert response.status_code == 200
    assert response.json() == {"result": "test1data"}


def test_endpoint_with_lifespan() -> None:
    """One with `with` starts it, and stops it at the end."""
    with TestClient(app) as client:
        assert client.get("/workflow/test/data").json() == {"result": "test1data"}
