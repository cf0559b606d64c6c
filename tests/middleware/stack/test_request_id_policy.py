"""Which request ids are accepted, where they come from, and what becomes of the others."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from support.asgi import Exchange, answer, exchange, http_scope

from asgi_durable import (
    Durable,
    DurableError,
    DurableUsageError,
    RequestContextMiddleware,
    RequestIdPolicy,
)
from asgi_durable.context import current_request
from asgi_durable_starlette import install

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
REJECT = RequestIdPolicy(on_invalid="reject")


class App:
    """Counts its requests and responds to them."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        if scope["type"] == "http":
            await answer(send)


async def send(
    policy: RequestIdPolicy, *headers: tuple[str, str], app: App | None = None
) -> Exchange:
    """Send a request through a middleware with a policy."""
    middleware = RequestContextMiddleware(app or App(), policy=policy)
    return await exchange(middleware, http_scope(headers=headers))


def problem_of(result: Exchange) -> dict[str, Any]:
    assert result.headers("content-type") == ["application/problem+json"]
    return json.loads(result.body)


def is_new(request_id: str) -> bool:
    return uuid.UUID(request_id).version == 7


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "é"])
async def test_a_request_whose_id_is_not_valid_is_refused_with_a_new_one(sent: str) -> None:
    app = App()

    result = await send(REJECT, ("X-Request-ID", sent), app=app)

    assert (result.status, app.calls) == (400, 0)
    problem = problem_of(result)
    assert (problem["code"], problem["retryable"]) == ("REQUEST_ID_INVALID", False)
    assert result.headers("x-request-id") == [problem["request_id"]]
    assert is_new(problem["request_id"])
    assert current_request.get() is None


async def test_valid_ids_and_none_are_served_where_others_are_refused() -> None:
    assert (await send(REJECT, ("X-Request-ID", "a"))).headers("x-request-id") == ["a"]
    assert (await send(REJECT)).status == 200
    assert (await send(REJECT, ("X-Request-ID", "?"), ("X-Request-ID", "a"))).status == 200


async def test_a_validator_decides_which_ids_are_accepted() -> None:
    policy = RequestIdPolicy(validator=lambda sent: sent.startswith("{"), on_invalid="reject")

    assert (await send(policy, ("X-Request-ID", "{a}"))).headers("x-request-id") == ["{a}"]
    assert (await send(policy, ("X-Request-ID", "a"))).status == 400


@pytest.mark.parametrize("sent", ["", "a\r\nb", "a\x1b", "x" * 129, "é"])
async def test_no_validator_can_let_through_what_breaks_a_header_or_a_line(sent: str) -> None:
    result = await send(RequestIdPolicy(validator=lambda _sent: True), ("X-Request-ID", sent))

    assert is_new(result.headers("x-request-id")[0])


def broken(*_args: object) -> Any:
    raise LookupError("the list of ids is gone")


async def test_a_validator_that_fails_is_an_error_with_an_id_and_a_line_in_the_log(caplog) -> None:
    app = App()

    result = await send(RequestIdPolicy(validator=broken), ("X-Request-ID", "a"), app=app)

    assert (result.status, app.calls) == (500, 0)
    problem = problem_of(result)
    assert problem["code"] == "POLICY_FAILED"
    assert "list of ids" not in result.body.decode()
    assert result.headers("x-request-id") == [problem["request_id"]]
    assert "validator raised LookupError: the list of ids is gone" in caplog.text


async def test_an_error_of_the_library_that_a_function_raises_is_the_response() -> None:
    def refuse(*_args: object) -> Any:
        raise DurableError("no", code="NO_ID", status_code=403)

    validated = await send(RequestIdPolicy(validator=refuse), ("X-Request-ID", "a"))
    made = await send(RequestIdPolicy(generator=refuse))

    assert [r.status for r in (validated, made)] == [403, 403]
    assert [problem_of(r)["code"] for r in (validated, made)] == ["NO_ID", "NO_ID"]


async def test_a_generator_makes_the_ids_of_refusals_too() -> None:
    policy = RequestIdPolicy(generator=lambda: "mine", on_invalid="reject")

    assert (await send(policy)).headers("x-request-id") == ["mine"]
    refused = await send(policy, ("X-Request-ID", "a b"))
    assert (refused.status, refused.headers("x-request-id")) == (400, ["mine"])


@pytest.mark.parametrize("made", ["", "a b", "a\r\nb", "é", "x" * 129, None, b"a"])
async def test_a_generator_whose_ids_cannot_be_sent_is_an_error(made, caplog) -> None:
    result = await send(RequestIdPolicy(generator=lambda: made))

    assert (result.status, problem_of(result)["code"]) == (500, "POLICY_FAILED")
    assert is_new(result.headers("x-request-id")[0])
    assert "generator" in caplog.text


async def test_a_generator_that_fails_is_an_error_of_a_request_that_needs_it_alone(caplog) -> None:
    caplog.set_level(logging.ERROR)
    policy = RequestIdPolicy(generator=broken)

    assert (await send(policy, ("X-Request-ID", "a"))).status == 200
    assert (await send(policy)).status == 500


async def test_the_id_may_be_that_of_the_trace() -> None:
    policy = RequestIdPolicy(source="trace", on_invalid="reject")

    both = await send(policy, TRACEPARENT, ("X-Request-ID", "a"))
    without_trace = await send(policy, ("X-Request-ID", "a"))
    malformed = await send(policy, ("traceparent", "?"))

    assert both.headers("x-request-id") == [TRACE]
    assert without_trace.headers("x-request-id") == ["a"]
    assert is_new(malformed.headers("x-request-id")[0])
    assert (await send(policy, TRACEPARENT, ("X-Request-ID", "?"))).status == 200


@pytest.mark.parametrize(
    "options",
    [
        {"source": "traceparent"},
        {"on_invalid": "refuse"},
        {"validator": "[a-z]+"},
        {"generator": None},
        {"generator": "uuid4"},
    ],
)
def test_options_without_a_meaning_are_refused(options) -> None:
    (name,) = options

    with pytest.raises(DurableUsageError, match=name):
        RequestIdPolicy(**options)


def test_functions_that_would_have_to_be_awaited_are_refused() -> None:
    class Validator:
        async def __call__(self, sent: str) -> bool:
            return True

    async def validate(sent: str) -> bool:
        return True

    for validator in (validate, Validator()):
        with pytest.raises(DurableUsageError, match="validator"):
            RequestIdPolicy(validator=validator)  # type: ignore[arg-type]


def websocket(**more: Any) -> dict[str, Any]:
    headers = [(b"x-request-id", b"a b")]
    return {"type": "websocket", "path": "/ws", "headers": headers, **more}


async def refused_socket(scope: dict[str, Any], first: str = "websocket.connect") -> list[Any]:
    """Connect to an app that refuses; return its messages."""
    app, sent = App(), []

    async def receive() -> dict[str, str]:
        return {"type": first}

    async def keep(message) -> None:
        sent.append(message)

    await RequestContextMiddleware(app, policy=REJECT)(scope, receive, keep)
    assert app.calls == 0
    return sent


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {}}])
async def test_a_websocket_is_closed_before_it_is_accepted(extensions) -> None:
    sent = await refused_socket(websocket(**extensions))

    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_server_that_can_refuse_a_websocket_sends_the_problem() -> None:
    sent = await refused_socket(websocket(extensions={"websocket.http.response": {}}))

    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert body["type"] == "websocket.http.response.body"
    problem = json.loads(body["body"])
    assert problem["code"] == "REQUEST_ID_INVALID"
    assert (b"x-request-id", problem["request_id"].encode()) in start["headers"]


async def test_a_disconnected_websocket_gets_no_message() -> None:
    assert await refused_socket(websocket(), "websocket.disconnect") == []


@pytest.mark.parametrize("installs", [True, False])
def test_a_durable_hands_the_policy_on(url: str, *, installs: bool) -> None:
    durable = Durable(url, request_ids=REJECT)
    app = Starlette()
    if installs:
        install(app, durable)

    with TestClient(app if installs else durable.wrap(app)) as client:
        assert client.get("/", headers={"X-Request-ID": "a b"}).status_code == 400
        assert client.get("/", headers={"X-Request-ID": "a"}).status_code == 404
