"""Problem responses to keyed requests: their request, and whether to send it again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from support.asgi import Exchange, answer, exchange, http_scope, keyed
from support.interruption import Gate

from asgi_durable import (
    Durable,
    DurableError,
    FinalError,
    IdempotencyPolicy,
    NonDeterministicWorkflowError,
    RecoveryAttemptsExceededError,
    StorageUnavailableError,
)
from asgi_durable_starlette import install

pytestmark = pytest.mark.anyio

DOCS = "https://shop.example/keys"
LINK = f'<{DOCS}>; rel="describedby"'


def durable_with(url: str, **policy: object) -> Durable:
    return Durable(url, idempotency=IdempotencyPolicy(docs_url=DOCS, **policy), drain_timeout=0.0)


def is_about_key(result: Exchange, code: str, *, run: int | None = 1) -> dict[str, Any]:
    """Check that a problem response has all members of one about a key, and return them."""
    problem: dict[str, Any] = json.loads(result.body)
    (durable_id,) = result.headers("durable-id")
    assert problem["code"] == code
    assert {"type", "title", "status", "detail", "retryable"} <= problem.keys()
    assert [problem["idempotency_key"]] == result.headers("idempotency-key")
    assert problem.get("run") == run
    assert problem["instance"] == f"/durable/requests/{durable_id}"
    seconds = [str(problem["retry_after"])] if problem["retryable"] else []
    assert seconds == result.headers("retry-after")
    return problem


# Whether to come back


async def raised(url: str, error: Exception, *, key: bool = True) -> Exchange:
    """Return the response where a handler raises."""
    durable, exchanged = durable_with(url), Exchange(b"")

    async def serve(scope, receive, send) -> None:
        raise error

    async with durable:
        try:
            scope = keyed() if key else http_scope("POST")
            await durable.wrap(serve)(scope, exchanged.receive, exchanged.send)
        except LookupError:
            # As the server is to log it.
            assert error.__class__ is LookupError
    return exchanged


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (LookupError("a defect"), True),
        (DurableError("a defect"), True),
        (DurableError("the supplier is closed", status_code=502), True),
        (DurableError("no such order", status_code=404), False),
        (FinalError("sold out"), False),
        (NonDeterministicWorkflowError("w", 1, recorded="a", called="b"), False),
        (RecoveryAttemptsExceededError("w", 3), False),
    ],
)
async def test_a_failure_that_a_retry_continues_says_so(
    url: str, error: Exception, *, retryable: bool
) -> None:
    problem = json.loads((await raised(url, error)).body)

    assert (problem["retryable"], "retry_after" in problem) == (retryable, retryable)


async def test_without_a_key_no_retry_continues(url: str) -> None:
    result = await raised(url, LookupError(), key=False)

    assert json.loads(result.body)["retryable"] is False
    assert result.headers("retry-after") == []


async def test_a_frameworks_error_handler_says_so_as_well(url: str) -> None:
    async def order(request: Request) -> None:
        raise DurableError("the supplier is closed", code="CLOSED", status_code=503)

    durable, app = durable_with(url), Starlette(routes=[Route("/", order, methods=["POST"])])
    install(app, durable)
    async with durable:
        result = await exchange(app, keyed())

    assert is_about_key(result, "CLOSED")["retryable"] is True


# The request of a response


async def test_responses_to_a_duplicate_a_misuse_and_a_lost_response(database_url: str) -> None:
    durable, gate = durable_with(database_url, max_wait=0.0, max_response_body=1), Gate()

    async def serve(scope, receive, send) -> None:
        await gate.wait()
        await answer(send, b"too long")

    app = durable.wrap(serve)
    async with durable:
        running = asyncio.create_task(exchange(app, keyed()))
        await gate.reached.wait()
        duplicate, misuse = await exchange(app, keyed()), await exchange(app, keyed(), b"other")
        gate.open()
        await running
        lost = await exchange(app, keyed())

    is_about_key(duplicate, "IN_PROGRESS")
    is_about_key(misuse, "KEY_REUSED", run=None)
    is_about_key(lost, "RESPONSE_NOT_KEPT")
    assert [one.headers("link") for one in (duplicate, misuse, lost)] == [[LINK]] * 3


async def test_the_response_to_a_request_with_too_many_attempts(url: str) -> None:
    durable = durable_with(url, max_attempts=1)

    async def serve(scope, receive, send) -> None:
        await answer(send, status=503)

    app = durable.wrap(serve)
    async with durable:
        await exchange(app, keyed())
        dead, again = [await exchange(app, keyed()) for _ in range(2)]

    is_about_key(dead, "ATTEMPTS_EXHAUSTED", run=2)
    assert dead.headers("link") == again.headers("link") == [LINK]
    assert dead.headers("idempotent-replayed") == again.headers("idempotent-replayed") == ["true"]
    assert dead.body == again.body


async def test_responses_where_the_storage_failed_and_where_the_engine_stopped(url: str) -> None:
    durable, gate = durable_with(url), Gate()

    async def serve(scope, receive, send) -> None:
        if scope["path"] == "/waits":
            await gate.wait()
        running = durable.engine._running
        assert running is not None
        running.services.storage.commit = fails  # type: ignore[method-assign]
        await answer(send)

    async def fails(batch: object) -> Any:
        raise StorageUnavailableError

    app = durable.wrap(serve)
    async with durable:
        stopped = asyncio.create_task(exchange(app, keyed(path="/waits")))
        await gate.reached.wait()
    is_about_key(await stopped, "WORKFLOW_INTERRUPTED")

    durable = Durable(url, idempotency=IdempotencyPolicy(docs_url=DOCS), storage_patience=0.0)
    app = durable.wrap(serve)
    async with durable:
        unknown = await exchange(app, keyed("k2"))
        refused = await exchange(app, keyed("other"))

    is_about_key(unknown, "OUTCOME_UNKNOWN")
    assert json.loads(refused.body)["instance"].endswith(refused.headers("durable-id")[0])
    assert [one.headers("link") for one in (unknown, refused)] == [[LINK]] * 2


async def test_the_page_of_a_response_that_is_not_there_yet(url: str) -> None:
    durable, gate = durable_with(url, async_after=0.0), Gate()

    async def serve(scope, receive, send) -> None:
        await gate.wait()
        await answer(send)

    app = durable.wrap(serve)
    async with durable:
        accepted = await exchange(app, keyed())
        await gate.reached.wait()
        (location,) = accepted.headers("location")
        early = await exchange(app, http_scope("GET", f"{location}/result"))
        gate.open()

    problem = json.loads(early.body)
    assert (problem["code"], problem["instance"], problem["run"]) == ("IN_PROGRESS", location, 1)
