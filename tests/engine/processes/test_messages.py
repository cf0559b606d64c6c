"""Messages about mistakes name the function that made it, and the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Response as LitestarResponse
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from asgi_durable import Durable, DurableUsageError, EncodeError, IdempotencyPolicy, RetryPolicy
from asgi_durable_fastapi import idempotent, install

pytestmark = pytest.mark.anyio

NOT_A_RESPONSE = "return data, not a Response"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def nothing() -> None: ...


async def numbers() -> Any:
    yield 1


UNENCODABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "starlette": (lambda: JSONResponse({}), f"JSONResponse at the value.*{NOT_A_RESPONSE}"),
    "litestar": (lambda: {"a": LitestarResponse({})}, rf"\['a'\].*{NOT_A_RESPONSE}"),
    "coroutine": (nothing, "a coroutine was not awaited"),
    "generator": (numbers, "a generator is no data"),
    "task": (lambda: [asyncio.ensure_future(asyncio.sleep(0))], r"\[0\].*a task was not awaited"),
    "other": (object, r"register_type\(\)"),
}


@pytest.mark.parametrize("result", UNENCODABLE)
async def test_a_result_that_cannot_be_recorded_names_its_function(
    durable: Durable, result: str
) -> None:
    make, message = UNENCODABLE[result]
    attempts: list[str] = []

    @durable.step(retry=RetryPolicy(max_attempts=3, initial_interval=0.0))
    async def stepped() -> Any:
        attempts.append("step")
        return make()

    @durable.transaction
    async def transacted() -> Any:
        return make()

    @durable.workflow
    async def worked() -> Any:
        return make()

    @durable.workflow
    async def calls(*, transaction: bool) -> Any:
        return await (transacted() if transaction else stepped())

    with pytest.raises(EncodeError, match=rf"result of step '.*stepped' cannot.*{message}"):
        await calls(transaction=False)
    with pytest.raises(EncodeError, match=rf"result of transaction '.*transacted'.*{message}"):
        await calls(transaction=True)
    with pytest.raises(EncodeError, match=rf"result of workflow '.*worked'.*{message}"):
        await worked()
    assert attempts == ["step"]


async def test_an_input_that_cannot_be_recorded_says_the_same(durable: Durable) -> None:
    @durable.workflow
    async def work(value: object) -> None: ...

    waiting = nothing()
    with pytest.raises(EncodeError, match=r"input of workflow.*\['value'\].*was not awaited"):
        await work(waiting)
    waiting.close()


async def test_a_session_outside_of_a_transaction_says_where_the_code_runs(
    durable: Durable,
) -> None:
    def refusal() -> str:
        with pytest.raises(DurableUsageError, match=r"@durable\.transaction") as caught:
            _ = durable.session
        return str(caught.value)

    def blocking_refusal() -> str:
        with pytest.raises(DurableUsageError) as caught:
            _ = durable.blocking.session
        return str(caught.value)

    @durable.step(name="plain")
    async def step() -> list[str]:
        return [refusal(), blocking_refusal()]

    @durable.workflow(name="job")
    async def work() -> list[str]:
        return [refusal(), *await step()]

    between, *inside = await work()
    assert "between the steps of 'job'" in between
    assert all("in step 'plain'" in text for text in inside)
    assert "outside of any workflow" in refusal()


async def test_a_usage_error_is_not_tried_again_by_a_step(durable: Durable) -> None:
    attempts: list[int] = []

    @durable.step(retry=RetryPolicy(max_attempts=3, initial_interval=0.0))
    async def misuse() -> None:
        attempts.append(1)
        _ = durable.session

    @durable.workflow
    async def work() -> None:
        await misuse()

    with pytest.raises(DurableUsageError, match="session"):
        await work()
    assert len(attempts) == 1


@pytest.mark.parametrize(
    "policy", [IdempotencyPolicy(), IdempotencyPolicy(single_transaction=True)]
)
def test_clients_are_not_told_to_retry_what_the_code_does_wrong(
    url: str, policy: IdempotencyPolicy
) -> None:
    app, durable = FastAPI(), Durable(url)
    install(app, durable)

    @app.post("/response")
    @idempotent(policy)
    @durable.transaction
    async def respond() -> Any:
        return JSONResponse({})

    @app.post("/session")
    @idempotent(policy)
    async def misuse() -> None:
        _ = durable.session

    with TestClient(app, raise_server_exceptions=False) as client:
        for path, code in (("/response", "ENCODE_ERROR"), ("/session", "USAGE")):
            answer = client.post(path, headers={"Idempotency-Key": path})
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (500, code)
            assert problem["retryable"] is False
            assert "retry-after" not in answer.headers
