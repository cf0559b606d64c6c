"""Requests that a handler sends to an application in its own process: as from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from support.asgi import answer, exchange, http_scope, keyed
from support.telemetry.spans import Spans, span_id

from asgi_durable import (
    Durable,
    DurableError,
    DurableUsageError,
    FinalError,
    IdempotencyMiddleware,
    IdempotencyPolicy,
    RequestContextMiddleware,
)
from asgi_durable.middleware.asgi import ASGIApp

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "k"}


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://shop.example")


def session_of(durable: Durable) -> object:
    """Return the session of the transaction that runs, ``None`` if there is none."""
    try:
        return durable.session
    except DurableUsageError:
        return None


class Shop:
    """An application that counts what is paid, and calls itself as a test wants it."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.paid: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.inner_answers: list[httpx.Response] = []
        self.fail_times = 0
        self.send_all: Callable[[], Awaitable[None]] = self.send_items
        routes = [
            Route("/pay/{item}", self.pay, methods=["POST"]),
            Route("/refuse", self.refuse, methods=["POST"]),
            Route("/batch/{place}", self.batch, methods=["POST"]),
        ]
        self.app = durable.wrap(Starlette(routes=routes))

        @durable.step(name="charge")
        async def charge(item: str) -> None:
            self.paid.append(item)

        @durable.step(name="in_step")
        async def in_step() -> None:
            await self.send_all()

        @durable.workflow(name="in_workflow")
        async def in_workflow() -> None:
            await self.send_all()

        @durable.transaction(name="in_transaction")
        async def in_transaction() -> None:
            await self.send("/pay/a")

        self.charge = charge
        self.places: dict[str, Callable[[], Awaitable[Any]]] = {
            "step": in_step,
            "workflow": in_workflow,
            "transaction": in_transaction,
        }

    async def send(self, path: str, **headers: str) -> httpx.Response:
        async with client_of(self.app) as client:
            self.inner_answers.append(await client.post(path, headers=headers))
        return self.inner_answers[-1]

    async def send_items(self) -> None:
        for item in ("a", "b"):
            await self.send(f"/pay/{item}", **{"Idempotency-Key": f"pay-{item}"})

    async def pay(self, request: Request) -> Response:
        durable = self.durable
        self.seen.append(
            {
                "workflow_id": durable.workflow_id,
                "step_id": durable.step_id,
                "session": session_of(durable),
                "request_id": durable.request_id,
                "path": durable.request.url if durable.request else None,
            }
        )
        await self.charge(request.path_params["item"])
        return Response(status_code=201)

    async def refuse(self, _request: Request) -> Response:
        msg = "refused for ever"
        raise FinalError(msg, status_code=500)

    async def batch(self, request: Request) -> Response:
        place = request.path_params["place"]
        if place == "task":
            return JSONResponse({}, background=BackgroundTask(self.send_all))
        await self.places.get(place, self.send_all)()
        if self.fail_times:
            self.fail_times -= 1
            raise ConnectionError
        return JSONResponse({})


@pytest.fixture
def shop(durable: Durable) -> Shop:
    return Shop(durable)


@pytest.mark.parametrize("place", ["handler", "step", "workflow"])
async def test_keys_of_inner_requests_keep_a_failed_batch_from_paying_twice(
    shop: Shop, place: str
) -> None:
    shop.fail_times = 1
    async with client_of(shop.app) as client:
        answers = [await client.post(f"/batch/{place}", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 200]
    assert shop.paid == ["a", "b"]
    assert {a.status_code for a in shop.inner_answers} == {201}
    assert all("durable-id" in a.headers for a in shop.inner_answers)


async def test_keys_of_inner_requests_count_in_background_tasks(shop: Shop) -> None:
    async with client_of(shop.app) as client:
        for key in ("k1", "k2"):
            await client.post("/batch/task", headers={"Idempotency-Key": key})

    assert shop.paid == ["a", "b"]
    assert [a.headers.get("idempotent-replayed") for a in shop.inner_answers[2:]] == ["true"] * 2


@pytest.mark.parametrize("place", ["handler", "step", "workflow", "task"])
async def test_an_inner_request_without_a_key_is_one_of_its_own(
    shop: Shop, durable: Durable, place: str
) -> None:
    async def send_one() -> None:
        await shop.send("/pay/a", **{"X-Request-ID": "inner"})

    shop.send_all = send_one
    async with client_of(shop.app) as client:
        outer = await client.post(f"/batch/{place}", headers=KEY | {"X-Request-ID": "outer"})

    assert outer.headers["x-request-id"] == "outer"
    (inner,) = shop.inner_answers
    assert inner.headers["x-request-id"] == "inner"
    assert shop.seen == [
        {
            "workflow_id": None,
            "step_id": None,
            "session": None,
            "request_id": "inner",
            "path": "http://shop.example/pay/a",
        }
    ]
    # The step was a plain call: the log of the outer request has what it called itself.
    stored = await durable.engine.running().services.storage.load_runs(
        [outer.headers["durable-id"]]
    )
    names = [entry.name for run in stored for entry in (*run.steps, *run.children)]
    assert names == [f"in_{place}"] * (place in ("step", "workflow"))


async def test_an_inner_request_in_a_transaction_does_not_see_its_session(shop: Shop) -> None:
    async with client_of(shop.app) as client:
        assert (await client.post("/batch/transaction", headers=KEY)).status_code == 200

    assert [seen["session"] for seen in shop.seen] == [None]


async def test_a_problem_of_an_inner_request_does_not_mention_the_outer_one(shop: Shop) -> None:
    async def refused() -> None:
        await shop.send("/refuse")

    shop.send_all, shop.fail_times = refused, 1
    async with client_of(shop.app) as client:
        failed, again = [await client.post("/batch/handler", headers=KEY) for _ in range(2)]

    problem = shop.inner_answers[0].json()
    assert problem["code"] == "FINAL_ERROR"
    assert problem.keys().isdisjoint({"idempotency_key", "instance", "run"})
    # It was not the outer one that is final.
    assert (failed.status_code, again.status_code) == (500, 200)


async def test_an_inner_request_with_the_outer_ones_key_gets_a_409(url: str) -> None:
    policy = IdempotencyPolicy(max_wait=0.05)
    durable = Durable(url, idempotency=policy, drain_timeout=0.0)
    inner: list[int] = []

    async def call_itself(scope, receive, send) -> None:
        if not inner:
            inner.append(0)
            async with client_of(app) as client:
                bodies = (b"outer", b"other")
                answers = [await client.post("/", headers=KEY, content=body) for body in bodies]
            inner.extend(answer.status_code for answer in answers)
        await answer(send)

    app = durable.wrap(call_itself)
    async with durable, client_of(app) as client:
        outer = await client.post("/", headers=KEY, content=b"outer")

    assert outer.status_code == 200
    assert inner == [0, 409, 422]


async def test_an_inner_request_of_another_instance_is_its_own(
    shop: Shop, tmp_path, url: str
) -> None:
    other = Durable(f"sqlite:///{tmp_path}/other.db", drain_timeout=0.0)
    calls: list[int] = []

    async def handle(scope, receive, send) -> None:
        calls.append(len(calls))
        assert shop.durable.workflow_id is None
        assert other.workflow_id is not None
        await answer(send)

    app = other.wrap(handle)

    async def send_to_other() -> None:
        async with client_of(app) as client:
            for _ in range(2):
                assert (await client.post("/", headers=KEY)).status_code == 200

    shop.send_all = send_to_other
    async with other, client_of(shop.app) as client:
        assert (await client.post("/batch/handler", headers=KEY)).status_code == 200

    assert calls == [0]


async def test_a_stack_that_is_mounted_twice_leaves_a_request_to_the_one_outside(
    durable: Durable,
) -> None:
    seen: list[str | None] = []

    async def handle(scope, receive, send) -> None:
        seen.append(durable.workflow_id)
        await answer(send)

    part = durable.wrap(handle)
    app = durable.wrap(Starlette(routes=[Mount("/a", part), Mount("/b", part)]))
    answers = [await exchange(app, keyed(key, f"/{key}/x")) for key in ("a", "b", "a")]

    assert [a.status for a in answers] == [200] * 3
    assert seen == [a.headers("durable-id")[0] for a in answers[:2]]


async def test_stacks_of_two_instances_in_one_request_both_keep_it(
    durable: Durable, tmp_path
) -> None:
    other = Durable(f"sqlite:///{tmp_path}/other.db", drain_timeout=0.0)
    calls: list[str | None] = []

    async def handle(scope, receive, send) -> None:
        calls.append(other.workflow_id)
        await answer(send)

    app = durable.wrap(other.wrap(durable.wrap(handle)))
    async with other:
        first, again = [await exchange(app, keyed()) for _ in range(2)]

    assert first.status == again.status == 200
    assert len(calls) == 1
    assert calls[0] is not None


async def test_a_scope_may_be_used_for_several_requests(durable: Durable) -> None:
    calls: list[int] = []

    async def handle(scope, receive, send) -> None:
        calls.append(1)
        await answer(send)

    app, scope = durable.wrap(handle), keyed()
    answers = [await exchange(app, scope) for _ in range(2)]

    assert len(calls) == 1
    assert answers[1].headers("idempotent-replayed") == ["true"]


async def test_the_middleware_alone_recognises_an_inner_request_as_well(durable: Durable) -> None:
    calls: list[str | None] = []

    async def handle(scope, receive, send) -> None:
        calls.append(durable.request_id)
        if scope["path"] == "/outer":
            for _ in range(2):
                await exchange(inner, keyed("i", "/inner"))
        await answer(send)

    inner = IdempotencyMiddleware(handle, durable.engine)
    outer = RequestContextMiddleware(inner)
    await exchange(outer, keyed("k", "/outer", [("X-Request-ID", "outer")]))
    await exchange(outer, keyed("k2", "/outer", [("X-Request-ID", "outer")]))

    assert calls[0] == calls[2] == "outer"
    assert calls[1] != "outer"
    assert len(calls) == 3


def test_an_inner_request_of_a_def_handler_is_its_own(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    paid: list[str | None] = []

    async def pay(request: Request) -> Response:
        paid.append(durable.workflow_id)
        return Response()

    def batch(request: Request) -> Response:
        client = TestClient(app)
        for _ in range(2):
            assert client.post("/pay", headers=KEY).status_code == 200
        if len(paid) == 1 and "retry" not in request.headers:
            raise DurableError("failed", code="FAILED")
        return Response()

    routes = [Route("/pay", pay, methods=["POST"]), Route("/batch", batch, methods=["POST"])]
    app = durable.wrap(Starlette(routes=routes))
    with TestClient(app, raise_server_exceptions=False) as client:
        failed = client.post("/batch", headers={"Idempotency-Key": "b"})
        done = client.post("/batch", headers={"Idempotency-Key": "b", "retry": "1"})

    assert (failed.status_code, done.status_code) == (500, 200)
    assert len(paid) == 1
    assert paid[0] not in (None, failed.headers["durable-id"])


async def test_an_inner_request_has_a_server_span_of_its_own(url: str) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry, drain_timeout=0.0)

    async def handle(scope, receive, send) -> None:
        if scope["path"] == "/outer":
            await exchange(app, http_scope("POST", "/inner", [("X-Request-ID", "inner")]))
            trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            await exchange(app, http_scope("PUT", "/inner", [("traceparent", trace)]))
        await answer(send)

    app = durable.wrap(durable.wrap(handle))
    async with durable:
        await exchange(app, keyed("k", "/outer", [("X-Request-ID", "outer")]))

    servers = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    paths = [(span.attributes or {})["url.path"] for span in servers]
    assert paths == ["/outer", "/inner", "/inner"]
    outer, inner, traced = servers
    assert (outer.attributes or {})["durable.request.id"] == "outer"
    assert (inner.attributes or {})["durable.request.id"] == "inner"
    assert inner.parent is not None
    assert inner.parent.span_id == span_id(outer)
    assert traced.parent is not None
    assert f"{traced.parent.span_id:x}" == "b7ad6b7169203331"
