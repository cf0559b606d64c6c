"""The package's support for users' tests, used as they use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_durable import Durable
from asgi_durable.testing import fresh_database
from asgi_durable_starlette import install

CONFTEST = """
import pytest

pytest_plugins = ["asgi_durable.testing"]


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

TESTS = """
import pytest
from starlette.testclient import TestClient

KEY = {"Idempotency-Key": "k"}


def served(durable, calls):
    @durable.workflow
    async def count():
        calls.append(1)
        return len(calls)

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body = b"%d" % await count()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return durable.wrap(app)


@pytest.mark.parametrize("turn", [1, 2])
def test_with_a_client_that_is_not_entered(durable, turn):
    client = TestClient(served(durable, []))

    assert [client.post("/", headers=KEY).text for _ in range(2)] == ["1", "1"]


def test_with_a_client_that_is_entered(durable):
    with TestClient(served(durable, [])) as client:
        assert [client.post("/", headers=KEY).text for _ in range(2)] == ["1", "1"]


@pytest.mark.anyio
async def test_of_a_workflow(durable):
    @durable.workflow
    async def double(number):
        return 2 * number

    async with durable:
        assert await double(2) == 4


def test_that_starts_nothing(durable):
    assert durable.url == "sqlite://"
"""


def test_the_plugin_gives_each_test_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)

    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert "5 passed" in run.stdout, run.stdout + run.stderr
    assert list(tmp_path.glob("*.db*")) == []


def counting_app(durable: Durable, calls: list[str]) -> Starlette:
    async def handler(request: Request) -> Response:
        calls.append("call")
        return JSONResponse(len(calls))

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    install(app, durable)
    return app


def test_an_applications_instance_gets_a_fresh_database_and_its_own_back(tmp_path: Path) -> None:
    urls = f"sqlite:///{tmp_path}/own.db", f"sqlite:///{tmp_path}/application.db"
    durable = Durable(urls[0], application_url=urls[1], drain_timeout=0.0)
    client = TestClient(counting_app(durable, []))

    answers = []
    for _ in range(2):
        with fresh_database(durable):
            pair = [client.post("/", headers={"Idempotency-Key": "k"}) for _ in range(2)]
            answers.append([answer.json() for answer in pair])

    assert answers == [[1, 1], [2, 2]]
    assert (durable.url, durable.application_url) == urls
    assert list(tmp_path.iterdir()) == []


def test_an_instance_that_is_running_leaves_its_own_database_first(tmp_path: Path) -> None:
    durable = Durable(f"sqlite:///{tmp_path}/own.db", drain_timeout=0.0)
    client = TestClient(counting_app(durable, []))

    def post() -> int:
        number: int = client.post("/", headers={"Idempotency-Key": "k"}).json()
        return number

    answers = [post()]
    with fresh_database(durable):
        answers.append(post())
    answers.append(post())

    with fresh_database(durable):
        assert answers == [1, 2, 1]
