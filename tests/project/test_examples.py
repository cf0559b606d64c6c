"""The examples beside the reference page do what the page says."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from fastapi.testclient import TestClient
from support.paths import EXAMPLES, REPOSITORY
from support.telemetry.otlp import otlp_receiver

FROM_DBOS = EXAMPLES / "from_dbos"
PAGE = REPOSITORY / "docs" / "from-dbos.md"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what imports an example anew, with a database of its own."""

    def load(name: str) -> ModuleType:
        monkeypatch.setenv("ASGI_DURABLE_URL", f"sqlite:///{tmp_path / name}.db")
        monkeypatch.setenv("JOB_SECONDS", "0")
        module_name = f"example_{name}"
        spec = importlib.util.spec_from_file_location(module_name, FROM_DBOS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Annotations are found there.
        monkeypatch.setitem(sys.modules, module_name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_page_shows_every_example_and_no_other() -> None:
    shown = re.findall(r"\(\.\./examples/from_dbos/(\w+)\.py\)", PAGE.read_text())

    assert sorted(shown) == sorted(path.stem for path in FROM_DBOS.glob("*.py"))


def test_quick_start(load: Load) -> None:
    with TestClient(load("quick_start").app) as client:
        assert client.get("/user/ada").json() == {"user": "User ada"}


def test_stacked_decorators(load: Load) -> None:
    key = {"Idempotency-Key": "k"}
    with TestClient(load("stacked_decorators").app) as client:
        assert client.get("/process/a").json() == {"item_id": "a", "result": "A"}
        steps = [client.post("/convert/a", headers=key) for _ in range(2)]
        counts = [
            client.post("/visits/home", headers={"Idempotency-Key": "v"}).json() for _ in range(2)
        ]
        without_key = client.post("/visits/home").json()

    assert [step.json() for step in steps] == ["A", "A"]
    assert steps[1].headers["idempotent-replayed"] == "true"
    assert (counts, without_key) == ([1, 1], 2)


def test_jobs(load: Load) -> None:
    module = load("jobs")
    with TestClient(module.app) as client:
        started = client.post("/jobs", json={"a": 1}).json()
        workflow_id = started["workflow_id"]
        handle = client.portal.call(module.durable.retrieve_workflow, workflow_id)
        client.portal.call(handle.get_result)
        finished = client.get(f"/jobs/{workflow_id}").json()
        missing = client.get("/jobs/none")

    assert started["status"] == "started"
    assert finished == {
        "workflow_id": workflow_id,
        "status": "SUCCESS",
        "result": {"processed": {"a": 1}},
    }
    assert (missing.status_code, missing.json()["code"]) == (404, "WORKFLOW_NOT_FOUND")


def test_idempotency(load: Load) -> None:
    module = load("idempotency")

    async def pay_twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(module.app)
        async with (
            module.durable,
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return [await module.send_payment(client) for _ in range(2)]

    first, second = asyncio.run(pay_twice())
    assert first.status_code == 200
    assert first.json()["charge"].startswith("charge-123-100-")
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"


def test_custom_lifespan(load: Load) -> None:
    module = load("custom_lifespan")
    with TestClient(module.app) as client:
        assert client.get("/resource").json() == {"resource": "open"}
    assert module.resources == {}


def test_error_handling(load: Load) -> None:
    with TestClient(load("error_handling").app) as client:
        refused, answered = client.get("/data/x"), client.get("/data/1")

    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert problem["detail"] == "Invalid ID format"
    assert (problem["code"], problem["error"]) == ("INVALID_ID", "DurableError")
    assert answered.json() == {"id": "1"}


def test_complete_example(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    order = {"user_id": "ada", "item_id": "book", "quantity": 1}
    with TestClient(load("complete_example").app) as client:
        answers = [
            client.post("/orders", json=order, headers={"Idempotency-Key": "o"}) for _ in range(2)
        ]
        found, missing = client.get("/orders/1"), client.get("/orders/2")

    assert [answer.json() for answer in answers] == [{"order_id": "1", "status": "confirmed"}] * 2
    assert capsys.readouterr().out == "Sending confirmation to ada for order 1\n"
    assert found.json() == {"order_id": "1", "user_id": "ada"}
    assert (missing.status_code, missing.json()["detail"]) == (404, "Order not found")


@pytest.mark.parametrize("header", ["X-Request-ID", "dbos-request-id"])
def test_request_id(load: Load, header: str) -> None:
    with TestClient(load("request_id").app) as client:
        answer = client.get("/endpoint", headers={header: "custom-request-123"})
        other = client.get("/endpoint")

    assert answer.json()["request_id"] == "custom-request-123"
    assert answer.headers["x-request-id"] == "custom-request-123"
    assert other.json()["request_id"] == other.headers["x-request-id"]
    assert other.json()["method"] == "GET"


def test_telemetry(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTLP_URL", receiver.url)
        with TestClient(load("telemetry").app) as client:
            assert client.post("/parcels/book").json() == {"parcel": "packed book"}

    traces = b"".join(receiver.bodies["/v1/traces"])
    for name in (b"POST /parcels/{item}", b"durable.run send_parcel", b"durable.step pack"):
        assert name in traces
    assert b"packing book" in b"".join(receiver.bodies["/v1/logs"])


def test_testing(load: Load) -> None:
    module = load("testing")

    module.test_endpoint()
    module.test_endpoint_with_lifespan()
