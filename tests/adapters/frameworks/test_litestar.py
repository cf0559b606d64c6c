"""The Litestar adapter: one plugin, and Litestar's own argument binding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import litestar.di
import pytest
from litestar import (
    Controller,
    Litestar,
    Request,
    Response,
    WebSocket,
    get,
    params,
    post,
    websocket,
)
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.testing import TestClient

from asgi_durable import Durable, DurableError, DurableUsageError, IdempotencyPolicy, RequestContext
from asgi_durable_litestar import DurablePlugin, idempotent

KEY = {"Idempotency-Key": "k"}

# Most applications let Litestar infer path parameters from their names.
pytestmark = pytest.mark.filterwarnings(r"ignore:\[paths=")


@dataclass
class Item:
    name: str
    price: float = 1.0


@dataclass
class User:
    name: str


@dataclass
class Customer:
    identity: str


async def current_user(request: Request[Any, Any, State]) -> User:
    return User(name=request.headers.get("x-user", "nobody"))


class Authentication(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection: Any) -> AuthenticationResult:
        name = connection.headers.get("x-user")
        return AuthenticationResult(user=name and Customer(name), auth=None)


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url)


def application(durable: Durable, *handlers: Any, **options: Any) -> Litestar:
    return Litestar(handlers, plugins=[DurablePlugin(durable)], **options)


def test_a_workflow_under_a_route_binds_path_query_and_body(durable: Durable) -> None:
    @durable.step
    async def total(item: Item, quantity: int) -> float:
        return item.price * quantity

    @post("/shops/{shop:str}/items")
    @durable.workflow
    async def add(shop: str, data: Item, quantity: int = 1) -> dict[str, Any]:
        return {"shop": shop, "item": data, "total": await total(data, quantity)}

    with TestClient(application(durable, add)) as client:
        body = {"name": "a", "price": 2.5}
        answers = [
            client.post("/shops/s1/items?quantity=2", json=body, headers=KEY) for _ in range(2)
        ]

    assert [a.json() for a in answers] == [{"shop": "s1", "item": body, "total": 5.0}] * 2
    assert [a.headers.get("idempotent-replayed") for a in answers] == [None, "true"]


@pytest.mark.parametrize("kind", ["workflow", "step", "transaction", "plain"])
@pytest.mark.parametrize("key", [{}, KEY], ids=["no key", "key"])
def test_every_kind_of_handler_answers_like_an_undecorated_one(
    durable: Durable, kind: str, key: dict[str, str]
) -> None:
    calls = []

    async def handler(data: Item) -> Item:
        calls.append(data)
        return data

    decorated = handler if kind == "plain" else getattr(durable, kind)(handler)

    with TestClient(application(durable, post("/items")(decorated))) as client:
        body = {"name": "a", "price": 1.0}
        answers = [client.post("/items", json=body, headers=key) for _ in range(2)]
        invalid = client.post("/items", json={})

    assert [(a.status_code, a.json()) for a in answers] == [(201, {"name": "a", "price": 1.0})] * 2
    assert len(calls) == (1 if key else 2)
    assert invalid.status_code == 400


def test_what_litestar_fills_in_is_not_recorded(durable: Durable) -> None:
    seen: list[object] = []

    @post("/orders", dependencies={"user": Provide(current_user)})
    @durable.workflow
    async def order(
        data: Item,
        request: Request[Any, Any, State],
        state: State,
        headers: dict[str, str],
        cookies: dict[str, str],
        user: User,
        limit: int = 1,
    ) -> dict[str, str]:
        seen.append((user.name, request.url.path, state.shop, headers["x-user"], cookies))
        return {"workflow_id": durable.workflow_id or ""}

    @get("/inputs/{workflow_id:str}")
    async def recorded(workflow_id: str) -> list[str]:
        return sorted((await (await durable.retrieve_workflow(workflow_id)).get_status()).input)

    app = application(durable, order, recorded, state=State({"shop": "s1"}))
    with TestClient(app) as client:
        headers = {**KEY, "x-user": "alice"}
        answer = client.post("/orders", json={"name": "a"}, headers=headers)
        names = client.get(f"/inputs/{answer.json()['workflow_id']}").json()

    assert seen == [("alice", "/orders", "s1", "alice", {})]
    assert names == ["data", "limit"]


def test_an_equal_parameter_of_another_function_is_recorded(durable: Durable) -> None:
    @durable.workflow
    async def greet(headers: dict[str, str]) -> dict[str, str]:
        return headers

    @post("/greet")
    @durable.workflow
    async def handler(headers: dict[str, str]) -> dict[str, str]:
        job = await durable.start_workflow(greet, {"a": headers["x-user"]})
        return await job.get_result(timeout=60)

    with TestClient(application(durable, handler)) as client:
        assert client.post("/greet", headers={"x-user": "ada"}).json() == {"a": "ada"}


def test_a_handler_of_a_controller_is_a_workflow(durable: Durable) -> None:
    class Orders(Controller):
        path = "/orders"
        prefix = "order"

        @post()
        @durable.workflow
        async def add(self, data: Item) -> str:
            return f"{self.prefix} {data.name}"

    with TestClient(application(durable, Orders)) as client:
        answers = [client.post("/orders", json={"name": "a"}, headers=KEY) for _ in range(2)]

    assert [a.text for a in answers] == ["order a"] * 2


def test_a_workflow_that_needs_its_request_goes_on_with_the_next_try(durable: Durable) -> None:
    runs: list[str] = []

    @durable.step
    async def charge() -> None:
        runs.append("charge")

    @post("/orders", dependencies={"user": Provide(current_user)})
    @durable.workflow
    async def order(user: User) -> str:
        await charge()
        runs.append(user.name)
        if user.name == "first":
            raise HTTPException("try again", status_code=503)
        return user.name

    with TestClient(application(durable, order)) as client:
        first, second = (
            client.post("/orders", headers={**KEY, "x-user": user}) for user in ("first", "second")
        )

    assert (first.status_code, second.text) == (503, "second")
    assert runs == ["charge", "first", "second"]


def test_a_workflow_that_needs_its_request_cannot_be_started_in_the_background(
    durable: Durable,
) -> None:
    @durable.workflow
    async def order(request: Request[Any, Any, State]) -> None: ...

    @post("/start")
    async def start(request: Request[Any, Any, State]) -> None:
        await durable.start_workflow(order, request)

    with TestClient(application(durable, start)) as client:
        problem = client.post("/start").json()

    assert (problem["status"], problem["code"]) == (500, "USAGE")


def test_an_error_of_the_library_is_a_problem_document(durable: Durable) -> None:
    @get("/data/{name:str}")
    @durable.workflow
    async def data(name: str) -> str:
        raise DurableError("Invalid ID format", code="INVALID_ID", status_code=400)

    with TestClient(application(durable, data)) as client:
        answer = client.get("/data/x", headers={"X-Request-ID": "r1"})

    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "r1"
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ID")


def test_an_error_of_a_handler_is_retried_after_the_last_step(durable: Durable) -> None:
    runs: list[str] = []

    @durable.step
    async def step() -> None:
        runs.append("step")

    @post("/items")
    async def add() -> str:
        await step()
        runs.append("handler")
        if runs.count("handler") == 1:
            raise ZeroDivisionError
        return "done"

    with TestClient(application(durable, add), raise_server_exceptions=False) as client:
        first, second = (client.post("/items", headers=KEY) for _ in range(2))

    assert (first.status_code, second.text) == (500, "done")
    assert runs == ["step", "handler", "handler"]


@pytest.mark.parametrize("client_is_entered", [True, False])
def test_a_path_without_a_route_has_a_request_id(durable: Durable, client_is_entered: bool) -> None:
    @get("/")
    async def home() -> str:
        return "home"

    client = TestClient(application(durable, home))
    if client_is_entered:
        with client:
            answer = client.get("/missing", headers={"X-Request-ID": "r1"})
    else:
        answer = client.get("/missing", headers={"X-Request-ID": "r1"})
        asyncio.run(durable.engine.stop())

    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "r1")


def test_the_applications_lifespan_runs_inside_the_engines_life(durable: Durable) -> None:
    said: list[str] = []

    @durable.workflow
    async def greet(name: str) -> str:
        return name

    async def note(name: str) -> None:
        said.append(await greet(name))

    async def on_startup() -> None:
        await note("hook up")

    async def on_shutdown() -> None:
        await note("hook down")

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await note("manager up")
        yield
        await note("manager down")

    @get("/")
    async def home() -> list[str]:
        return said

    hooks = {"on_startup": [on_startup], "on_shutdown": [on_shutdown], "lifespan": [lifespan]}
    with TestClient(application(durable, home, **hooks)) as client:
        assert client.get("/").json() == ["manager up", "hook up"]

    assert said[2:] == ["manager down", "hook down"]


def test_authentication_and_cors_are_outside_and_keys_of_users_apart(durable: Durable) -> None:
    @post("/items")
    @durable.workflow
    async def add() -> dict[str, str | None]:
        return {"id": durable.workflow_id}

    app = application(
        durable,
        add,
        middleware=[Authentication],
        cors_config=CORSConfig(allow_origins=["https://shop.example"]),
        compression_config=CompressionConfig("gzip", minimum_size=1),
    )
    with TestClient(app) as client:
        origin = {"origin": "https://shop.example"}
        alice, again, bob = (
            client.post("/items", headers={**KEY, **origin, "x-user": user})
            for user in ("alice", "alice", "bob")
        )

    assert alice.json() == again.json() != bob.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["access-control-allow-origin"] == "https://shop.example"


def test_users_that_cannot_be_told_apart_share_no_keys(durable: Durable) -> None:
    class Session(AbstractAuthenticationMiddleware):
        async def authenticate_request(self, connection: Any) -> AuthenticationResult:
            return AuthenticationResult(user=User(connection.headers["x-user"]), auth=None)

    @post("/items")
    async def add() -> str:
        return "done"

    with TestClient(application(durable, add, middleware=[Session])) as client:
        refused = client.post("/items", headers={**KEY, "x-user": "ada"})
        told_apart = client.post("/items", headers={**KEY, "x-user": "ada", "Authorization": "a"})

    assert refused.json()["code"] == "PRINCIPAL_UNAVAILABLE"
    assert told_apart.text == "done"


@pytest.mark.parametrize("path", ["/", "/api/"])
def test_the_status_of_a_request_is_served_to_its_user_alone(durable: Durable, path: str) -> None:
    @post("/items")
    async def add() -> str:
        return "done"

    app = application(durable, add, middleware=[Authentication], path=path)
    with TestClient(app) as client:
        headers = {**KEY, "x-user": "alice", "Prefer": "respond-async, wait=0"}
        accepted = client.post(f"{path}items", headers=headers)
        page = accepted.headers["location"]
        own = client.get(page, headers={"x-user": "alice"}, follow_redirects=False)
        foreign, nobodys = (client.get(page, headers=h) for h in ({"x-user": "bob"}, {}))

    assert accepted.status_code == 202
    assert own.status_code in (200, 303)
    assert [a.json()["code"] for a in (foreign, nobodys)] == ["WORKFLOW_NOT_FOUND"] * 2


def test_a_handler_has_the_policy_of_its_option_or_its_decorator(durable: Durable) -> None:
    needs_key = IdempotencyPolicy(required=True)

    @post("/option", opt={"idempotency": needs_key})
    @durable.workflow
    async def option() -> str:
        return "done"

    @post("/decorator")
    @idempotent(needs_key)
    async def decorator() -> str:
        return "done"

    class Hooks(Controller):
        path = "/hooks"
        opt = {"idempotency": None}  # noqa: RUF012

        @post()
        async def hook(self) -> str:
            return "done"

    with TestClient(application(durable, option, decorator, Hooks)) as client:
        missing = [client.post(path) for path in ("/option", "/decorator")]
        given = [client.post("/option", headers=KEY) for _ in range(2)]
        hook = client.post("/hooks", headers=KEY)

    assert [answer.json()["code"] for answer in missing] == ["KEY_MISSING"] * 2
    assert [answer.text for answer in given] == ["done"] * 2
    assert (hook.status_code, "durable-id" in hook.headers) == (201, False)


def test_handlers_are_given_the_instance_and_the_request_context(durable: Durable) -> None:
    @post("/items")
    @durable.workflow
    async def add(durable: Durable, request_context: RequestContext) -> list[str]:
        return [durable.url, request_context.request_id]

    with TestClient(application(durable, add)) as client:
        answer = client.post("/items", headers={**KEY, "X-Request-ID": "r1"})

    assert answer.json() == [durable.url, "r1"]


def test_a_websocket_is_served_with_a_request_context(durable: Durable) -> None:
    @websocket("/ws")
    async def talk(socket: WebSocket[Any, Any, State]) -> None:
        await socket.accept()
        assert durable.request is not None
        await socket.send_text(durable.request.method)
        await socket.close()

    with TestClient(application(durable, talk)) as client, client.websocket_connect("/ws") as ws:
        assert ws.receive_text() == "WEBSOCKET"


def test_a_response_with_a_status_of_its_own_is_replayed(durable: Durable) -> None:
    @post("/items")
    async def add() -> Response[dict[str, int]]:
        return Response({"n": 1}, status_code=202, headers={"x-handled": "yes"})

    with TestClient(application(durable, add)) as client:
        answers = [client.post("/items", headers=KEY) for _ in range(2)]

    assert [(a.status_code, a.json(), a.headers["x-handled"]) for a in answers] == [
        (202, {"n": 1}, "yes")
    ] * 2


def test_a_handler_that_is_registered_later_is_served(durable: Durable) -> None:
    @post("/late")
    async def late() -> str:
        return "done"

    app = application(durable)
    app.register(late)
    with TestClient(app) as client:
        answers = [client.post("/late", headers=KEY) for _ in range(2)]

    assert answers[1].headers["idempotent-replayed"] == "true"


def test_the_application_stays_what_it_is(durable: Durable) -> None:
    class Shop(Litestar):
        pass

    app = Shop(plugins=[DurablePlugin(durable)])

    assert isinstance(app, Shop)
    assert type(app).__name__ == "Shop"


def test_an_application_has_one_instance(durable: Durable, url: str) -> None:
    with pytest.raises(DurableUsageError, match="already"):
        Litestar(plugins=[DurablePlugin(durable), DurablePlugin(Durable(url))])


@pytest.mark.skipif(not hasattr(params, "JSONBody"), reason="this Litestar has no such markers")
def test_parameters_with_markers_of_litestar_are_bound_and_told_apart(durable: Durable) -> None:
    @post("/shops/{shop:str}", dependencies={"user": Provide(current_user)})
    @durable.workflow
    async def add(
        shop: params.FromPath[str],
        data: params.JSONBody[Item],
        user: litestar.di.NamedDependency[User],
    ) -> dict[str, Any]:
        handle = await durable.retrieve_workflow(durable.workflow_id or "")
        return {"names": sorted((await handle.get_status()).input), "user": user.name}

    with TestClient(application(durable, add)) as client:
        answer = client.post("/shops/s1", json={"name": "a"}, headers={**KEY, "x-user": "ada"})

    assert answer.json() == {"names": ["data", "shop"], "user": "ada"}
