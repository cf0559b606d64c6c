"""The responses of a handler that are final."""

from __future__ import annotations

import json

import pytest
from fastapi import FastAPI
from support.asgi import answer, exchange, keyed

from asgi_durable import Durable, DurableError, FinalError, IdempotencyPolicy
from asgi_durable_fastapi import install

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [500, 503, 404, 403])
async def test_a_final_error_is_the_response_for_ever(url: str, status: int) -> None:
    durable = Durable(url)
    calls = []

    async def handle(scope, receive, send) -> None:
        calls.append(1)
        raise FinalError("the supplier is closed", code="CLOSED", status_code=status)

    app = durable.wrap(handle)
    async with durable:
        first, retry = [await exchange(app, keyed(), b"{}") for _ in range(2)]

    assert (first.status, first.body) == (retry.status, retry.body)
    assert (first.status, json.loads(first.body)["code"]) == (status, "CLOSED")
    assert retry.headers("idempotent-replayed") == ["true"]
    assert len(calls) == 1


async def test_a_final_error_of_a_workflow_behind_a_framework_is_final_too(url: str) -> None:
    durable = Durable(url)
    app, runs = FastAPI(), []

    @durable.step(retry=None)
    async def order() -> None:
        runs.append(1)
        raise FinalError("sold out for ever")

    @app.post("/")
    @durable.workflow
    async def buy() -> None:
        await order()

    install(app, durable)
    async with durable:
        first, retry = [await exchange(app, keyed(), b"{}") for _ in range(2)]

    assert (first.status, first.body) == (retry.status, retry.body)
    assert json.loads(first.body)["code"] == "FINAL_ERROR"
    assert runs == [1]


async def test_a_final_error_of_one_request_is_no_other_requests(url: str) -> None:
    durable = Durable(url)
    statuses = [500, 200]

    async def handle(scope, receive, send) -> None:
        if scope["path"] == "/final":
            raise FinalError
        await answer(send, status=statuses.pop(0))

    app = durable.wrap(handle)
    async with durable:
        await exchange(app, keyed("a", "/final"), b"{}")
        await exchange(app, keyed("b"), b"{}")

        assert (await exchange(app, keyed("b"), b"{}")).status == 200


@pytest.mark.parametrize(("status", "calls"), [(404, 1), (422, 1), (401, 2), (429, 2), (500, 2)])
async def test_a_refusal_may_be_stored_though_nothing_was_recorded(
    url: str, status: int, calls: int
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(store_4xx=True))
    called = []

    async def handle(scope, receive, send) -> None:
        called.append(1)
        await answer(send, b"no", status=status)

    app = durable.wrap(handle)
    async with durable:
        for _ in range(2):
            assert (await exchange(app, keyed(), b"{}")).status == status

    assert len(called) == calls


@pytest.mark.parametrize("base", [DurableError, FinalError])
async def test_an_error_that_cannot_be_rebuilt_has_the_response_of_the_original(
    url: str, base: type[DurableError]
) -> None:
    class NoMoneyError(base):  # type: ignore[valid-type,misc]
        title = "No money"

    durable, runs = Durable(url), []

    @durable.step(retry=None)
    async def charge() -> None:
        runs.append(1)
        raise NoMoneyError("card 7 is empty", code="CARD_EMPTY", status_code=502)

    async def handle(scope, receive, send) -> None:
        await charge()

    app = durable.wrap(handle)
    async with durable:
        first, retry = [await exchange(app, keyed(), b"{}") for _ in range(2)]

    for answered in (first, retry):
        said = json.loads(answered.body)
        assert (answered.status, said["code"], said["error"], said["title"], said["detail"]) == (
            502,
            "CARD_EMPTY",
            "NoMoneyError",
            "No money",
            "card 7 is empty",
        )
        assert said["retryable"] == (base is DurableError)
    # A failure is dropped and tried again by the retry; what is final is not.
    assert len(runs) == (2 if base is DurableError else 1)
