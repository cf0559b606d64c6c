"""The FastAPI adapter: one ``install``, whatever the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient
from pydantic import BaseModel, HttpUrl
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.websockets import WebSocketDisconnect
from support.databases.statements import written_statements

from asgi_durable import Durable, DurableError, DurableUsageError, RequestContext
from asgi_durable_fastapi import current_durable, current_request_context, install

KEY = {"Idempotency-Key": "k"}


class Item(BaseModel):
    name: str
    price: float = 1.0


class Link(BaseModel):
    url: HttpUrl


class User(BaseModel):
    name: str


def current_user(request: Request) -> User:
    return User(name=request.headers.get("x-user", "nobody"))


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url)


@pytest.fixture
def app(durable: Durable) -> FastAPI:
    app = FastAPI()
    install(app, durable)
    return app


def test_a_workflow_under_a_route_binds_path_query_and_body(app: FastAPI, durable: Durable) -> None:
    @durable.step
    async def total(item: Item, quantity: int) -> float:
        return item.price * quantity

    @app.post("/shops/{shop}/items")
    @durable.workflow
    async def add(shop: str, item: Item, quantity: int = 1) -> dict[str, object]:
        return {"shop": shop, "item": item, "total": await total(item, quantity)}

    with TestClient(app) as client:
        body = {"name": "a", "price": 2.5}
        answers = [
            client.post("/shops/s1/items?quantity=2", json=body, headers=KEY) for _ in range(2)
        ]

    assert [a.json() for a in answers] == [{"shop": "s1", "item": body, "total": 5.0}] * 2
    assert answers[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("kind", ["workflow", "step", "transaction", "plain"])
@pytest.mark.parametrize("key", [{}, KEY], ids=["no key", "key"])
def test_every_kind_of_endpoint_answers_like_an_undecorated_one(
    app: FastAPI, durable: Durable, kind: str, key: dict[str, str]
) -> None:
    calls = []

    async def endpoint(item: Item) -> Item:
        calls.append(item)
        return item

    decorators: dict[str, Callable[..., Any]] = {
        "workflow": durable.workflow,
        "step": durable.step,
        "transaction": durable.transaction,
        "plain": lambda function: function,
    }
    app.post("/items")(decorators[kind](endpoint))

    with TestClient(app) as client:
        answers = [client.post("/items", json={"name": "a"}, headers=key) for _ in range(2)]
        invalid = client.post(
            "/items", json={}, headers={"Idempotency-Key": "other"} if key else {}
        )

    assert [(a.status_code, a.json()) for a in answers] == [(200, {"name": "a", "price": 1.0})] * 2
    assert len(calls) == (1 if key else 2)
    assert invalid.status_code == 422
    assert "durable-id" not in answers[0].headers or key


def test_dependencies_and_what_fastapi_fills_in_are_not_recorded(
    app: FastAPI, durable: Durable
) -> None:
    seen: list[object] = []

    @app.post("/orders")
    @durable.workflow
    async def order(
        item: Item,
        request: Request,
        response: Response,
        tasks: BackgroundTasks,
        user: Annotated[User, Depends(current_user)],
        again: User = Depends(current_user),  # noqa: B008, FAST002
    ) -> dict[str, str]:
        seen.append((user.name, again.name, request.url.path))
        response.headers["x-handled"] = "yes"
        tasks.add_task(seen.append, "task")
        return {"workflow_id": durable.workflow_id or ""}

    with TestClient(app) as client:
        answer = client.post("/orders", json={"name": "a"}, headers={**KEY, "x-user": "alice"})
        workflow_id = answer.json()["workflow_id"]

        async def recorded() -> object:
            return (await (await durable.retrieve_workflow(workflow_id)).get_status()).input

        assert client.portal is not None
        assert client.portal.call(recorded) == {"item": Item(name="a")}

    assert answer.headers["x-handled"] == "yes"
    assert seen == [("alice", "alice", "/orders"), "task"]


def test_a_workflow_that_needs_its_request_goes_on_with_the_next_try(
    app: FastAPI, durable: Durable
) -> None:
    runs: list[str] = []

    @durable.step
    async def charge() -> None:
        runs.append("charge")

    @app.post("/orders")
    @durable.workflow
    async def order(item: Item, user: Annotated[User, Depends(current_user)]) -> str:
        await charge()
        runs.append(user.name)
        if user.name == "first":
            raise HTTPException(503, "try again")
        return user.name

    with TestClient(app) as client:
        post = lambda user: client.post(  # noqa: E731
            "/orders", json={"name": "a"}, headers={**KEY, "x-user": user}
        )
        first, second = post("first"), post("second")

    assert (first.status_code, second.json()) == (503, "second")
    assert runs == ["charge", "first", "second"]


def test_a_workflow_that_needs_its_request_cannot_be_started_in_the_background(
    app: FastAPI, durable: Durable
) -> None:
    @durable.workflow
    async def order(user: Annotated[User, Depends(current_user)]) -> str:
        return user.name

    @app.post("/start")
    async def start() -> None:
        await durable.start_workflow(order, User(name="a"))

    with TestClient(app) as client:
        answer = client.post("/start")

    assert (answer.status_code, answer.json()["code"]) == (500, "USAGE")


def test_a_handler_is_given_the_instance_and_the_request_context(
    app: FastAPI, durable: Durable
) -> None:
    @app.post("/items")
    @durable.workflow
    async def add(
        given: Annotated[Durable, Depends(current_durable)],
        context: Annotated[RequestContext, Depends(current_request_context)],
    ) -> list[object]:
        return [given is durable, context.request_id]

    with TestClient(app) as client:
        answer = client.post("/items", headers={**KEY, "X-Request-ID": "r1"})

    assert answer.json() == [True, "r1"]


def test_an_http_exception_in_a_workflow_is_its_answer(app: FastAPI, durable: Durable) -> None:
    runs: list[int] = []

    @durable.step
    async def step() -> None:
        runs.append(1)

    @app.post("/items")
    @durable.workflow
    async def add() -> None:
        await step()
        raise HTTPException(409, "sold out", headers={"x-reason": "stock"})

    with TestClient(app) as client:
        answers = [client.post("/items", headers=KEY) for _ in range(2)]

    assert [(a.status_code, a.json()) for a in answers] == [(409, {"detail": "sold out"})] * 2
    assert [a.headers["x-reason"] for a in answers] == ["stock"] * 2
    assert runs == [1]


def test_an_error_of_the_library_is_a_problem_document(app: FastAPI, durable: Durable) -> None:
    @app.get("/data/{name}")
    @durable.workflow
    async def data(name: str) -> str:
        raise DurableError("Invalid ID format", code="INVALID_ID", status_code=400)

    @app.get("/jobs/{job}")
    async def job(job: str) -> str:
        return (await durable.retrieve_workflow(job)).workflow_id

    with TestClient(app) as client:
        bad, missing = client.get("/data/x"), client.get("/jobs/none")

    assert bad.headers["content-type"] == "application/problem+json"
    assert (bad.status_code, bad.json()["code"]) == (400, "INVALID_ID")
    assert bad.json()["detail"] == "Invalid ID format"
    assert (missing.status_code, missing.json()["code"]) == (404, "WORKFLOW_NOT_FOUND")


def test_an_unhandled_error_has_the_request_id_and_a_retry_goes_on(
    app: FastAPI, durable: Durable
) -> None:
    runs: list[str] = []

    @durable.step
    async def step() -> None:
        runs.append("step")

    @app.post("/items")
    async def add() -> str:
        await step()
        runs.append("handler")
        if runs.count("handler") == 1:
            raise ZeroDivisionError
        return "done"

    with TestClient(app, raise_server_exceptions=False) as client:
        headers = {**KEY, "X-Request-ID": "r1"}
        first, second = (client.post("/items", headers=headers) for _ in range(2))

    assert (first.status_code, first.headers["x-request-id"]) == (500, "r1")
    assert second.json() == "done"
    assert runs == ["step", "handler", "handler"]


@pytest.mark.parametrize("order", ["install first", "routes first", "middlewares last"])
def test_the_order_of_installation_does_not_matter(durable: Durable, order: str) -> None:
    app = FastAPI()

    class Customer(SimpleUser):
        @property
        def identity(self) -> str:
            return self.username

    class Backend(AuthenticationBackend):
        async def authenticate(self, conn):
            return AuthCredentials(), Customer(conn.headers["x-user"])

    def middlewares() -> None:
        app.add_middleware(AuthenticationMiddleware, backend=Backend())
        app.add_middleware(CORSMiddleware, allow_origins=["*"])

    def routes() -> None:
        @app.post("/items")
        @durable.workflow
        async def add(item: Item) -> dict[str, str | None]:
            return {"id": durable.workflow_id}

    steps = {
        "install first": [lambda: install(app, durable), middlewares, routes],
        "routes first": [routes, middlewares, lambda: install(app, durable)],
        "middlewares last": [routes, lambda: install(app, durable), middlewares],
    }
    for step in steps[order]:
        step()

    with TestClient(app) as client:
        post = lambda user: client.post(  # noqa: E731
            "/items",
            json={"name": "a"},
            headers={**KEY, "x-user": user, "origin": "https://shop.example"},
        )
        alice, again, bob = post("alice"), post("alice"), post("bob")

    # Authentication runs before idempotency, and CORS sees the replay.
    assert alice.json() == again.json() != bob.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["access-control-allow-origin"] == "*"


def test_the_applications_own_lifespan_runs_inside_the_engines_life(durable: Durable) -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opened.append(await greet("startup"))
        yield
        opened.append(await greet("shutdown"))

    app = FastAPI(lifespan=lifespan)

    @app.get("/opened")
    @durable.workflow
    async def read() -> list[str]:
        return list(opened)

    @durable.workflow
    async def greet(name: str) -> str:
        return name

    install(app, durable)
    with TestClient(app) as client:
        assert client.get("/opened").json() == ["startup"]

    assert opened == ["startup", "shutdown"]


def test_a_client_without_a_with_block_is_served(app: FastAPI, durable: Durable) -> None:
    @durable.step
    async def part(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @durable.workflow
    async def job(parts: int) -> list[int]:
        return [await part(number) for number in range(parts)]

    @app.post("/jobs")
    async def start() -> str:
        return (await durable.start_workflow(job, 3)).workflow_id

    @app.get("/jobs/{job_id}")
    async def status(job_id: str) -> object:
        return await (await durable.retrieve_workflow(job_id)).get_result(timeout=60)

    client = TestClient(app)
    first, again = (client.post("/jobs", headers=KEY) for _ in range(2))
    assert first.json() == again.json()
    assert client.get(f"/jobs/{first.json()}").json() == [0, 1, 2]
    asyncio.run(durable.engine.stop())


def test_a_mounted_application_is_served(durable: Durable, url: str) -> None:
    sub = FastAPI()
    calls: list[int] = []

    @sub.post("/items")
    @durable.workflow
    async def add() -> int:
        calls.append(1)
        return len(calls)

    main = FastAPI()
    install(main, durable)
    install(sub, durable)
    main.mount("/sub", sub)

    with TestClient(main) as client:
        answers = [client.post("/sub/items", headers=KEY) for _ in range(2)]

    assert [a.json() for a in answers] == [1, 1]


def test_an_error_in_a_websocket_closes_it(app: FastAPI) -> None:
    @app.websocket("/ws")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        raise DurableError("no")

    with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
        with pytest.raises(WebSocketDisconnect) as caught:
            websocket.receive_text()

    assert caught.value.code == 1011


def test_pydantic_urls_are_recorded(app: FastAPI, durable: Durable) -> None:
    @app.post("/links")
    @durable.workflow
    async def add(link: Link) -> Link:
        return link

    with TestClient(app) as client:
        answer = client.post("/links", json={"url": "https://example.org/"}, headers=KEY)

    assert answer.json() == {"url": "https://example.org/"}


def test_a_keyed_order_costs_three_commits_besides_its_transaction(
    app: FastAPI, durable: Durable
) -> None:
    @durable.transaction
    async def save() -> int:
        return 1

    @durable.step
    async def confirm() -> None: ...

    @app.post("/orders")
    @durable.workflow
    async def order(item: Item) -> int:
        number = await save()
        await confirm()
        return number

    with TestClient(app) as client:
        client.post("/orders", json={"name": "a"}, headers={"Idempotency-Key": "warm"})
        with written_statements(durable) as statements:
            client.post("/orders", json={"name": "a"}, headers=KEY)

    # The claim; the child's start; the last step, both ends and the response.
    assert statements.count("COMMIT") == 3


def test_install_comes_once_and_before_the_first_request(durable: Durable, url: str) -> None:
    app = FastAPI()
    install(app, durable)
    with pytest.raises(DurableUsageError, match="already"):
        install(app, durable)

    served = FastAPI()
    TestClient(served).get("/")
    with pytest.raises(DurableUsageError, match="first request"):
        install(served, durable)


def test_the_library_around_an_application_without_install(durable: Durable) -> None:
    app = FastAPI()

    @app.get("/missing")
    async def missing() -> None:
        raise DurableError("Order not found", status_code=404)

    with TestClient(durable.wrap(app)) as client:
        answer = client.get("/missing")

    assert (answer.status_code, answer.json()["detail"]) == (404, "Order not found")
