"""A route that is a workflow, and whose request fails after the workflow has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.testclient import TestClient
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import post as litestar_post
from litestar.testing import TestClient as LitestarClient

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_fastapi import install
from asgi_durable_litestar import DurablePlugin

KEY = {"Idempotency-Key": "k"}
KEEPS_COOKIES = IdempotencyPolicy(keep_cookies=True, anonymous="share")


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Shop:
    """A shop whose requests fail, so often, in the exit of a dependency.

    Args:
        url: Of the database; another shop with the same one is the same after a restart.
        failures: How many requests fail.
    """

    def __init__(self, url: str, failures: int = 0) -> None:
        self.durable = Durable(url, idempotency=KEEPS_COOKIES, drain_timeout=0.0)
        self.app = FastAPI()
        install(self.app, self.durable)
        self.failures = failures
        self.charged: list[int] = []
        self.receipts: list[int] = []
        self.committed: list[list[int]] = []
        self.bodies = 0

        @self.durable.step(name="charge")
        async def charge(order_id: int) -> int:
            self.charged.append(order_id)
            return order_id

        @self.durable.transaction(name="save")
        async def save(order_id: int) -> int:
            return order_id

        @self.durable.workflow(name="receipt")
        async def receipt(order_id: int) -> None:
            self.receipts.append(order_id)

        self.charge, self.save, self.receipt = charge, save, receipt

    def fail(self) -> Iterator[None]:
        yield
        if self.failures:
            self.failures -= 1
            raise ConnectionError

    def commit(self, rows: list[int]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        self.committed.append(rows)

    @property
    def fails(self) -> list[Any]:
        return [Depends(self.fail, scope="function")]

    @contextmanager
    def client(self) -> Iterator[TestClient]:
        with TestClient(self.app, raise_server_exceptions=False) as client:
            yield client


def unit_of_work(request: Request) -> Iterator[list[int]]:
    """Give a list of rows, and commit it."""
    rows: list[int] = []
    yield rows
    request.app.state.shop.commit(rows)


Rows = Annotated[list[int], Depends(unit_of_work, scope="function")]


def shop_of(url: str, kind: str, failures: int = 0) -> Shop:
    """Return a shop with ``POST /orders``, a workflow that uses all that FastAPI fills in."""
    shop = Shop(url, failures)
    durable = shop.durable

    def describe(order_id: int, response: Response, tasks: BackgroundTasks) -> dict[str, int]:
        shop.bodies += 1
        response.status_code = 201
        response.headers["Location"] = f"/orders/{order_id}"
        response.set_cookie("last_order", str(order_id))
        tasks.add_task(shop.receipts.append, -order_id)
        return {"order_id": order_id}

    if kind == "async def":

        @shop.app.post("/orders", dependencies=shop.fails)
        @durable.workflow(name="create")
        async def create(
            order_id: int, response: Response, tasks: BackgroundTasks
        ) -> dict[str, int]:
            await durable.sleep(0.001)
            number = await shop.charge(await shop.save(order_id))
            await durable.background(shop.receipt, order_id)
            return describe(number, response, tasks)

    else:

        @shop.app.post("/orders", dependencies=shop.fails)
        @durable.workflow(name="create")
        def create_in_thread(
            order_id: int, response: Response, tasks: BackgroundTasks
        ) -> dict[str, int]:
            durable.blocking.sleep(0.001)
            number = durable.blocking.run_step(shop.charge, order_id)
            durable.blocking.background(shop.receipt, order_id)
            return describe(number, response, tasks)

    return shop


def said(answer: httpx.Response) -> tuple[Any, ...]:
    names = ("location", "set-cookie", "content-type")
    return (answer.status_code, answer.json(), *(answer.headers.get(name) for name in names))


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("restarts", [False, True], ids=["same process", "after a restart"])
def test_the_retry_is_answered_as_the_first_try_would_have_been(
    url: str, tmp_path, kind: str, restarts: bool
) -> None:
    undisturbed = shop_of(f"sqlite:///{tmp_path}/undisturbed.db", kind)
    with undisturbed.client() as client:
        expected = said(client.post("/orders?order_id=7", headers=KEY))
    shop = shop_of(url, kind, failures=2)
    with shop.client() as client:
        failed = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]
        if not restarts:
            answers = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]
    last = shop
    if restarts:
        last = shop_of(url, kind)
        with last.client() as client:
            answers = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]

    assert expected[0] == 201
    assert [a.status_code for a in failed] == [500, 500]
    assert [said(answer) for answer in answers] == [expected] * 2
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert shop.charged == [7]
    assert last is shop or last.charged == []
    # The framework's background task of the successful attempt; and the durable one, once.
    assert last.receipts.count(-7) == 1
    assert (shop.receipts + (last.receipts if restarts else [])).count(7) == 1


def test_a_workflow_below_the_routes_own_does_the_same_again(url: str) -> None:
    shop = Shop(url, failures=1)
    durable = shop.durable

    @durable.workflow(name="outer")
    async def outer(order_id: int, response: Response) -> int:
        number = await inner(order_id, response)
        await durable.options(workflow_id="given").run_workflow(given, response)
        return number

    @durable.workflow(name="inner")
    async def inner(order_id: int, response: Response) -> int:
        response.status_code = 202
        return await shop.charge(order_id)

    @durable.workflow(name="given")
    async def given(response: Response) -> None:
        response.headers["X-Given"] = "1"

    @shop.app.post("/orders", dependencies=shop.fails)
    async def create(order_id: int, response: Response) -> int:
        return await outer(order_id, response)

    with shop.client() as client:
        failed, done = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]
        other = client.post("/orders?order_id=7", headers={"Idempotency-Key": "other"})

    assert failed.status_code == 500
    assert (done.status_code, done.json(), done.headers.get("x-given")) == (202, 7, "1")
    # A request that attaches to a workflow by its id only gets its result.
    assert (other.status_code, other.headers.get("x-given")) == (202, None)
    assert shop.charged == [7, 7]


def test_code_that_does_not_fit_the_log_runs_nothing_and_is_told(url: str, tmp_path) -> None:
    shop = shop_of(url, "async def", failures=1)
    with shop.client() as client:
        client.post("/orders?order_id=7", headers=KEY)
    changed = Shop(url)

    @changed.app.post("/orders")
    @changed.durable.workflow(name="create")
    async def create(order_id: int, response: Response, tasks: BackgroundTasks) -> int:
        await changed.durable.sleep(0.001)
        number = await changed.charge(await changed.save(order_id))
        return await changed.charge(number + 1)

    with changed.client() as client:
        refused = client.post("/orders?order_id=7", headers=KEY)
    back = shop_of(url, "async def")
    with back.client() as client:
        done = client.post("/orders?order_id=7", headers=KEY)

    assert (refused.status_code, refused.json()["code"]) == (500, "NON_DETERMINISTIC_WORKFLOW")
    assert changed.charged == back.charged == []
    assert done.status_code == 201


def test_code_that_raises_where_it_had_succeeded_is_no_answer(url: str) -> None:
    shop = Shop(url, failures=1)
    raising: list[Exception] = []

    @shop.app.post("/orders", dependencies=shop.fails)
    @shop.durable.workflow(name="create")
    async def create(order_id: int, response: Response) -> int:
        number = await shop.charge(order_id)
        if raising:
            raise raising.pop()
        response.status_code = 201
        return number

    with shop.client() as client:
        client.post("/orders?order_id=7", headers=KEY)
        raising.append(KeyError("gone"))
        refused = client.post("/orders?order_id=7", headers=KEY)
        done = client.post("/orders?order_id=7", headers=KEY)

    assert (refused.status_code, refused.json()["code"]) == (500, "NON_DETERMINISTIC_WORKFLOW")
    assert (done.status_code, done.json()) == (201, 7)
    assert shop.charged == [7]


def test_another_result_does_not_count_and_is_told_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(url, failures=1)

    @shop.app.post("/orders", dependencies=shop.fails)
    @shop.durable.workflow(name="create")
    async def create(response: Response) -> int:
        response.status_code = 201
        shop.bodies += 1
        return shop.bodies

    with shop.client() as client, caplog.at_level(logging.WARNING, logger="asgi_durable"):
        client.post("/orders", headers=KEY)
        done = client.post("/orders", headers=KEY)

    assert (done.status_code, done.json()) == (201, 1)
    (told,) = [r for r in caplog.records if r.name == "asgi_durable.engine.workflows.rerun"]
    assert "(create) came to another result" in told.getMessage()


def test_a_workflow_that_takes_nothing_of_its_request_is_not_run_again(url: str) -> None:
    shop = Shop(url, failures=1)

    @shop.app.post("/orders", dependencies=shop.fails)
    @shop.durable.workflow(name="create")
    async def create(order_id: int) -> int:
        shop.bodies += 1
        return order_id

    with shop.client() as client:
        answers = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 200]
    assert shop.bodies == 1


@pytest.mark.parametrize("kind", ["step", "transaction"])
def test_the_log_tells_what_the_replay_of_a_step_leaves_out(
    url: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    shop = Shop(url, failures=1)
    decorator: Any = getattr(shop.durable, kind)

    @shop.app.post("/orders", dependencies=shop.fails)
    @decorator(name="create")
    async def create(request: Request, response: Response) -> str:
        shop.bodies += 1
        response.status_code = 201
        return request.method

    with shop.client() as client, caplog.at_level(logging.WARNING, logger="asgi_durable"):
        answers = [client.post("/orders", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 200]
    assert shop.bodies == 1
    told = [
        r.getMessage()
        for r in caplog.records
        if r.name == "asgi_durable.engine.steps.recorded_result"
    ]
    assert len(told) == 1
    assert "'create'" in told[0]
    assert "to response is missing in the response" in told[0]


def test_what_a_dependency_gives_gets_the_same_again(url: str) -> None:
    shop = Shop(url, failures=1)
    shop.app.state.shop = shop

    @shop.app.post("/orders")
    @shop.durable.workflow(name="create")
    async def create(order_id: int, rows: Rows) -> int:
        rows.append(await shop.charge(order_id))
        return order_id

    with shop.client() as client:
        answers = [client.post("/orders?order_id=7", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 200]
    assert (shop.committed, shop.charged) == ([[7]], [7])


@pytest.mark.anyio
async def test_a_retry_that_joins_the_running_workflow_is_answered_in_full(url: str) -> None:
    shop = Shop(url)
    gate, has_begun = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Future[int]] = []

    @shop.durable.workflow(name="create")
    async def create(order_id: int, response: Response) -> int:
        has_begun.set()
        await gate.wait()
        response.status_code = 201
        return await shop.charge(order_id)

    @shop.app.post("/orders")
    async def create_order(order_id: int, response: Response) -> int:
        working = asyncio.ensure_future(create(order_id, response))
        if not left:
            left.append(working)
            await has_begun.wait()
            raise ConnectionError
        gate.set()
        return await working

    transport = httpx.ASGITransport(shop.app, raise_app_exceptions=False)
    async with (
        shop.durable,
        httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client,
    ):
        failed = await client.post("/orders?order_id=7", headers=KEY)
        done = await client.post("/orders?order_id=7", headers=KEY)
        await asyncio.gather(*left, return_exceptions=True)

    assert (failed.status_code, done.status_code, done.json()) == (500, 201, 7)
    assert shop.charged == [7]


def test_the_session_that_a_request_brings_is_filled_again(url: str) -> None:
    shop = Shop(url, failures=1)
    states: list[str | None] = []

    @shop.app.post("/login", dependencies=shop.fails)
    @shop.durable.workflow(name="log_in")
    async def log_in(request: Request) -> str:
        request.state.user = "ada"
        return "ada"

    @shop.app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        states.append(getattr(request.state, "user", None))
        return response

    with shop.client() as client:
        answers = [client.post("/login", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 200]
    assert states[-1] == "ada"


def test_a_litestar_handler_does_the_same_to_its_request_again(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    failures = [1]
    seen: list[Any] = []

    async def fail(response: Any) -> Any:
        if failures:
            failures.pop()
            raise ConnectionError
        return response

    async def note(request: LitestarRequest[Any, Any, Any]) -> None:
        seen.append(request.state.get("order_id"))

    @litestar_post("/orders", after_request=fail, after_response=note)
    @durable.workflow(name="create")
    async def create(request: LitestarRequest[Any, Any, Any]) -> int:
        request.state["order_id"] = 7
        return 7

    app = Litestar([create], plugins=[DurablePlugin(durable)])
    with LitestarClient(app, raise_server_exceptions=False) as client:
        answers = [client.post("/orders", headers=KEY) for _ in range(2)]

    assert [a.status_code for a in answers] == [500, 201]
    assert seen[-1] == 7
