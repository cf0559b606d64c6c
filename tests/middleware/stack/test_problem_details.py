"""Errors as problem details."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from support.asgi import Exchange, answer, exchange, http_scope, keyed

from asgi_durable import (
    Durable,
    DurableError,
    ProblemDetailsMiddleware,
    RequestContextMiddleware,
    StorageError,
    StorageUnavailableError,
)

pytestmark = pytest.mark.anyio


def app_raising(error: Exception):
    async def app(scope, receive, send) -> None:
        raise error

    return RequestContextMiddleware(ProblemDetailsMiddleware(app))


async def test_an_error_is_a_problem_document() -> None:
    error = DurableError("Invalid ID format", code="INVALID_ID", status_code=400)

    result = await exchange(app_raising(error), http_scope(headers=[("x-request-id", "r1")]))

    assert (result.status, result.headers("content-type")) == (400, ["application/problem+json"])
    assert result.headers("content-length") == [str(len(result.body))]
    assert json.loads(result.body) == {
        "type": "urn:asgi-durable:problem:invalid-id",
        "title": "Bad Request",
        "status": 400,
        "detail": "Invalid ID format",
        "code": "INVALID_ID",
        "error": "DurableError",
        "request_id": "r1",
        "retryable": False,
    }


async def test_a_technical_error_shows_nothing_of_the_inside() -> None:
    result = await exchange(app_raising(StorageError("/data/a.db: SELECT secret")), http_scope())

    assert result.status == 500
    assert b"secret" not in result.body
    assert b"a.db" not in result.body


async def test_a_temporary_error_has_a_retry_time() -> None:
    result = await exchange(app_raising(StorageUnavailableError("locked")), http_scope())

    assert (result.status, result.headers("retry-after")) == (503, ["1"])
    assert json.loads(result.body)["retryable"] is True


async def test_any_other_error_is_a_bare_500_with_the_request_id_and_is_raised_again() -> None:
    exchanged = Exchange()
    scope = http_scope(headers=[("x-request-id", "r1")])

    with pytest.raises(ZeroDivisionError):
        await app_raising(ZeroDivisionError("secret"))(scope, exchanged.receive, exchanged.send)

    assert exchanged.status == 500
    assert exchanged.headers("x-request-id") == ["r1"]
    assert b"secret" not in exchanged.body


async def test_a_frameworks_500_for_an_error_of_the_library_is_replaced() -> None:
    async def app(scope, receive, send) -> None:
        try:
            raise DurableError("Order not found", status_code=404)
        except DurableError:
            await answer(send, b"Internal Server Error", status=500)
            raise

    result = await exchange(ProblemDetailsMiddleware(app), http_scope())

    assert (result.status, json.loads(result.body)["detail"]) == (404, "Order not found")
    assert result.is_complete


async def test_a_frameworks_500_for_any_other_error_is_stored() -> None:
    async def app(scope, receive, send) -> None:
        await answer(send, b"Internal Server Error", status=500)
        raise ZeroDivisionError

    exchanged = Exchange()
    with pytest.raises(ZeroDivisionError):
        await ProblemDetailsMiddleware(app)(http_scope(), exchanged.receive, exchanged.send)

    assert (exchanged.status, exchanged.body) == (500, b"Internal Server Error")
    assert exchanged.is_complete


async def test_an_apps_own_500_is_sent_before_what_follows_it() -> None:
    exchanged, sent = Exchange(), []

    async def app(scope, receive, send) -> None:
        try:
            raise LookupError
        except LookupError:
            await answer(send, b"no", status=500)
            sent.extend(exchanged.sent)
            raise

    # The caller of the app may be handling an error of the library.
    with pytest.raises(LookupError):
        try:
            raise DurableError("outside")
        except DurableError:
            await ProblemDetailsMiddleware(app)(http_scope(), exchanged.receive, exchanged.send)

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert exchanged.body == b"no"


@pytest.mark.parametrize("path", ["/keyed", "/unkeyed"])
async def test_an_apps_own_500_does_not_wait_for_its_background_task(url: str, path: str) -> None:
    durable, exchanged = Durable(url), Exchange()

    async def follow() -> None:
        await exchanged.answer_began.wait()

    app = durable.wrap(PlainTextResponse("no", status_code=500, background=BackgroundTask(follow)))
    scope = keyed() if path == "/keyed" else http_scope("POST")
    async with durable, asyncio.timeout(60):
        await app(scope, exchanged.receive, exchanged.send)

    assert (exchanged.status, exchanged.body) == (500, b"no")


@pytest.mark.parametrize("error", [ZeroDivisionError(), DurableError("no", status_code=409)])
async def test_a_500_that_is_only_begun_is_replaced_by_a_whole_response(error: Exception) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise error

    exchanged = Exchange()
    with suppress(ZeroDivisionError):
        await ProblemDetailsMiddleware(app)(http_scope(), exchanged.receive, exchanged.send)

    assert exchanged.is_complete
    assert exchanged.status == (409 if isinstance(error, DurableError) else 500)


async def test_an_apps_own_500_passes_as_it_is_produced() -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    result = await exchange(ProblemDetailsMiddleware(app), http_scope())

    assert (result.status, result.body, result.is_complete) == (500, b"ab", True)


async def test_a_500_is_sent_before_its_app_waits_for_the_client() -> None:
    exchanged = Exchange()

    async def app(scope, receive, send) -> None:
        await receive()
        await answer(send, b"no", status=500)
        await receive()

    async def send(message) -> None:
        await exchanged.send(message)
        if message["type"] == "http.response.body":
            exchanged.disconnected.set()

    async with asyncio.timeout(60):
        await ProblemDetailsMiddleware(app)(http_scope(), exchanged.receive, send)

    assert (exchanged.status, exchanged.body, exchanged.is_complete) == (500, b"no", True)


async def test_an_error_after_the_start_of_a_response_is_only_raised() -> None:
    async def app(scope, receive, send) -> None:
        await answer(send)
        raise DurableError("too late")

    exchanged = Exchange()
    with pytest.raises(DurableError, match="too late"):
        await ProblemDetailsMiddleware(app)(http_scope(), exchanged.receive, exchanged.send)

    assert exchanged.is_complete
    assert exchanged.status == 200
