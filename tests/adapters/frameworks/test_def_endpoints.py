"""``def`` endpoints: in the framework's thread pool, durable as the others are."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_durable import Durable
from asgi_durable_fastapi import install

KEY = {"Idempotency-Key": "k"}


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url, drain_timeout=0.0)


@pytest.fixture
def app(durable: Durable) -> FastAPI:
    app = FastAPI()
    install(app, durable)
    return app


@pytest.mark.parametrize("kind", ["workflow", "step", "transaction", "plain"])
@pytest.mark.parametrize("key", [{}, KEY], ids=["no key", "key"])
def test_every_kind_of_endpoint_runs_in_the_frameworks_pool(
    app: FastAPI, durable: Durable, kind: str, key: dict[str, str]
) -> None:
    calls: list[str] = []

    def endpoint(number: int) -> int:
        calls.append(threading.current_thread().name)
        return number + 1

    decorate = getattr(durable, kind, lambda function: function)
    app.post("/numbers/{number}")(decorate(endpoint))

    with TestClient(app) as client:
        answers = [client.post("/numbers/1", headers=key) for _ in range(2)]

    assert [answer.json() for answer in answers] == [2, 2]
    assert calls == ["AnyIO worker thread"] * (1 if key else 2)


def test_a_retry_goes_on_after_the_last_recorded_step(app: FastAPI, durable: Durable) -> None:
    runs: list[str] = []

    @durable.step
    def charge() -> str:
        runs.append("charge")
        return "charged"

    @durable.workflow
    def ship() -> str:
        runs.append("ship")
        return charge()

    @app.post("/orders")
    def order() -> list[str]:
        result = [charge(), ship()]
        runs.append("handler")
        if runs.count("handler") == 1:
            raise ZeroDivisionError
        return result

    with TestClient(app, raise_server_exceptions=False) as client:
        statuses = [client.post("/orders", headers=KEY).status_code for _ in range(3)]

    assert statuses == [500, 200, 200]
    assert runs == ["charge", "ship", "charge", "handler", "handler"]


@pytest.mark.anyio
@pytest.mark.parametrize("key", [False, True], ids=["no key", "key"])
async def test_many_endpoints_at_once_do_not_use_up_the_pool(
    app: FastAPI, durable: Durable, key: bool
) -> None:
    requests = 200

    @durable.step
    def first(number: int) -> int:
        return number + 1

    @durable.step
    def second(number: int) -> int:
        return number * 2

    @app.post("/numbers/{number}")
    @durable.workflow
    def endpoint(number: int) -> int:
        return second(first(number))

    assert anyio.to_thread.current_default_thread_limiter().total_tokens < requests
    transport = httpx.ASGITransport(app)
    async with durable, httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        posts = [
            client.post(f"/numbers/{n}", headers={"Idempotency-Key": f"k{n}"} if key else {})
            for n in range(requests)
        ]
        async with asyncio.timeout(90):
            answers = await asyncio.gather(*posts)

    assert [answer.json() for answer in answers] == [(n + 1) * 2 for n in range(requests)]


@pytest.mark.anyio
async def test_transactions_of_endpoints_hold_up_no_event_loop(
    app: FastAPI, durable: Durable, tmp_path: Path
) -> None:
    opened, go_on = threading.Event(), threading.Event()

    @durable.transaction
    def insert(name: str) -> str:
        session = durable.blocking.session
        session.execute(sa.text("CREATE TABLE effects (name TEXT)"))
        session.execute(sa.text("INSERT INTO effects VALUES (:name)"), {"name": name})
        opened.set()
        assert go_on.wait(60)
        return name

    @app.post("/effects/{name}")
    @durable.workflow
    def endpoint(name: str) -> str:
        return insert(name)

    @app.get("/alive")
    async def alive() -> bool:
        return True

    transport = httpx.ASGITransport(app)
    async with durable, httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        posting = asyncio.ensure_future(client.post("/effects/a", headers=KEY))
        assert await asyncio.to_thread(opened.wait, 60)
        assert (await client.get("/alive")).json() is True
        go_on.set()
        assert (await posting).json() == "a"

    connection = sqlite3.connect(tmp_path / "test.db")
    assert connection.execute("SELECT name FROM effects").fetchall() == [("a",)]
    connection.close()


def test_a_client_without_a_lifespan_is_served(app: FastAPI, durable: Durable) -> None:
    @durable.step
    def part(number: int) -> int:
        return number

    @durable.workflow
    def job(parts: int) -> list[int]:
        return [part(number) for number in range(parts)]

    @app.post("/jobs")
    def start() -> str:
        return durable.blocking.start_workflow(job, 3).workflow_id

    @app.get("/jobs/{job_id}")
    def status(job_id: str) -> object:
        return durable.blocking.retrieve_workflow(job_id).get_result(timeout=60)

    @app.post("/work")
    @durable.workflow
    def work() -> list[int]:
        return job(2)

    client = TestClient(app)
    try:
        first, again = (client.post("/jobs", headers=KEY) for _ in range(2))
        assert first.json() == again.json()
        assert client.get(f"/jobs/{first.json()}").json() == [0, 1, 2]
        assert client.post("/work").json() == [0, 1]
        # A thread that belongs to no request.
        assert durable.blocking.run_workflow(job, 1) == [0]
    finally:
        asyncio.run(durable.engine.stop())
    assert not any(thread.name == "asgi-durable-calls" for thread in threading.enumerate())


def test_a_stop_waits_for_what_threads_have_started_without_a_lifespan(url: str) -> None:
    durable = Durable(url, drain_timeout=60.0)
    app = FastAPI()
    install(app, durable)
    reached, opened = threading.Event(), threading.Event()

    @durable.step
    def step() -> str:
        reached.set()
        assert opened.wait(60)
        return "done"

    @durable.workflow
    def job() -> str:
        return step()

    async def stop() -> None:
        asyncio.get_running_loop().call_soon(opened.set)
        await durable.engine.stop()

    TestClient(app).get("/none")
    durable.blocking.options(workflow_id="w").start_workflow(job)
    assert reached.wait(60)
    asyncio.run(stop())

    with durable:
        status = durable.blocking.retrieve_workflow("w").get_status()
    assert (status.status, status.attempts) == ("SUCCESS", 1)
