"""Requests with a key, and without one, on every server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support.processes.asgi_servers import ALL_SERVERS, ASGI_SERVERS, ASGIServer, skip_without
from support.websocket_client import WebSocketClient

TIMEOUT_SECONDS = 60.0
ID = {"X-Request-ID": "r1"}
KEY = {"Idempotency-Key": "k"}
ON_ASYNCIO = [name for name in ALL_SERVERS if name != "hypercorn_on_trio"]
# uvicorn ends itself with the signal that stopped it.
CLEAN_ENDS = {0, -signal.SIGTERM}


def serve(name: str, folder: Path, url: str, *, app: str = "wrapped") -> ASGIServer:
    """Return a server of the application; skips the test where it is not installed."""
    skip_without(name)
    return ASGIServer(
        name,
        folder,
        f"serving_program:{app}",
        app_dir=Path(__file__).parent,
        environment={"ASGI_DURABLE_URL": url},
    )


@pytest.fixture(scope="module", params=ALL_SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ASGIServer]:
    """Each server, with all of the stack that works on its event loop."""
    folder = tmp_path_factory.mktemp(request.param)
    app = "wrapped" if request.param in ON_ASYNCIO else "toolkit"
    with serve(request.param, folder, f"sqlite:///{folder}/test.db", app=app) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ASGIServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_SECONDS) as client:
        yield client


def test_a_request_has_its_id(client: httpx.Client) -> None:
    given, made = client.get("/a", headers=ID), client.get("/b")

    assert given.json() == ["r1", "/a"]
    assert given.headers["x-request-id"] == "r1"
    assert made.json() == [made.headers["x-request-id"], "/b"]


def test_a_request_has_a_span(client: httpx.Client) -> None:
    client.request("OPTIONS", "/traced")

    assert "OPTIONS" in client.get("/spans").json()


def test_an_error_is_answered_as_a_problem(client: httpx.Client) -> None:
    answer = client.get("/refused", headers=ID)

    problem = answer.json()
    assert answer.status_code == problem["status"] == 403
    assert (problem["code"], problem["request_id"]) == ("NOT_HERE", "r1")


def test_a_websocket_passes(server: ASGIServer) -> None:
    with WebSocketClient(server.port, "/ws", ID.items()) as websocket:
        answers = [websocket.ask(text) for text in ("one", "two")]

    assert answers == ["r1 one", "r1 two"]


def test_a_step_outside_of_a_workflow_is_a_plain_call(client: httpx.Client) -> None:
    numbers = [client.post("/orders", content="pen").json()[1] for _ in range(2)]

    assert numbers[1] == numbers[0] + 1


@pytest.mark.parametrize("name", ON_ASYNCIO)
def test_a_request_with_a_key_is_carried_out_once_across_a_restart(
    name: str, tmp_path: Path, database_url: str
) -> None:
    server, answers = serve(name, tmp_path, database_url), []
    ends = []
    for _ in range(2):
        with server:
            for _ in range(2):
                post = f"{server.url}/orders"
                answers.append(
                    httpx.post(post, content="pen", headers=KEY, timeout=TIMEOUT_SECONDS)
                )
            ends.append(server.terminate())

    assert {answer.content for answer in answers} == {answers[0].content}
    assert [a.headers.get("idempotent-replayed") for a in answers] == [None, *["true"] * 3]
    assert set(ends) <= CLEAN_ENDS
    assert "Traceback" not in server.log


@pytest.mark.parametrize("name", [*ASGI_SERVERS, "hypercorn_on_trio"])
def test_the_lifespan_reaches_the_app(name: str, tmp_path: Path, sqlite_url: str) -> None:
    app = "wrapped" if name in ON_ASYNCIO else "toolkit"
    with serve(name, tmp_path, sqlite_url, app=app) as server:
        # Some take connections before they start the application, but serve none.
        httpx.get(server.url, timeout=TIMEOUT_SECONDS)
        end = server.terminate()

    events = [line for line in server.log.splitlines() if line.startswith("lifespan.")]
    assert events == ["lifespan.startup", "lifespan.shutdown"]
    assert end in CLEAN_ENDS


def test_a_request_with_a_key_needs_asyncio(tmp_path: Path, sqlite_url: str) -> None:
    with serve("hypercorn_on_trio", tmp_path, sqlite_url, app="toolkit") as server:
        answer = httpx.post(f"{server.url}/orders", headers=KEY | ID, timeout=TIMEOUT_SECONDS)

    problem = answer.json()
    assert answer.status_code == problem["status"] == 500
    assert (problem["error"], problem["request_id"]) == ("DurableUsageError", "r1")
    assert "need asyncio" in server.log


def test_a_start_needs_asyncio(tmp_path: Path, sqlite_url: str) -> None:
    server = serve("hypercorn_on_trio", tmp_path, sqlite_url)

    with suppress(AssertionError):
        # It takes connections, and then starts the application.
        server.start()

    server.wait()
    assert "DurableUsageError: durable functions and requests with a key need asyncio" in server.log
