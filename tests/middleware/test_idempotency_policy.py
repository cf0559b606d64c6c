"""Which requests need a key, and which keys are accepted."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.asgi import answer, exchange, http_scope, keyed
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, IdempotencyPolicy

pytestmark = pytest.mark.anyio

DOCS = "https://shop.example/keys"


async def serve(scope, receive, send) -> None:
    await answer(send, b"served")


async def test_a_covered_request_may_need_a_key(url: str) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(required=True, docs_url=DOCS))
    app = durable.wrap(serve)
    async with durable:
        refused = await exchange(app, http_scope("POST", "/"))

        assert (refused.status, json.loads(refused.body)["code"]) == (400, "KEY_MISSING")
        assert json.loads(refused.body)["retryable"] is False
        assert refused.headers("link") == [f'<{DOCS}>; rel="describedby"']
        assert (await exchange(app, http_scope("GET", "/"))).body == b"served"
        assert (await exchange(app, keyed(), b"{}")).body == b"served"


async def test_a_key_may_have_to_be_of_some_form(url: str) -> None:
    policy = IdempotencyPolicy(validate_key=lambda key: key.startswith("order-"))
    durable = Durable(url, idempotency=policy)
    app = durable.wrap(serve)
    async with durable:
        refused = await exchange(app, keyed("other-1"), b"{}")

        assert (refused.status, json.loads(refused.body)["code"]) == (400, "KEY_MALFORMED")
        assert (await exchange(app, keyed('"order-1"'), b"{}")).body == b"served"
        assert (await exchange(app, http_scope("POST", "/"))).body == b"served"


@pytest.mark.parametrize(("dialect", "status"), [("default", 422), ("ietf", 422), ("stripe", 400)])
async def test_a_key_of_another_request_is_answered_in_the_dialect(
    url: str, dialect: str, status: int
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(dialect=dialect))
    app = durable.wrap(serve)
    async with durable:
        await exchange(app, keyed(), b"{}")
        refused = await exchange(app, keyed(), b"other")

    assert (refused.status, json.loads(refused.body)["code"]) == (status, "KEY_REUSED")


@pytest.mark.parametrize("dialect", ["ietf", "stripe"])
async def test_a_twin_is_refused_at_once_in_the_dialects_that_have_it_so(
    url: str, dialect: str
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(dialect=dialect, max_wait=60.0))
    gate = Gate()

    async def wait(scope, receive, send) -> None:
        await gate.wait()
        await answer(send, b"served")

    app = durable.wrap(wait)
    async with durable:
        first = asyncio.create_task(exchange(app, keyed(), b"{}"))
        await gate.reached.wait()
        twin = await exchange(app, keyed(), b"{}")
        gate.open()

        assert twin.status == 409
        assert (await first).status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": {"POST", "GET"}},
        {"max_wait": -1},
        {"max_wait": float("nan")},
        {"max_wait": float("inf")},
        {"max_request_body": -1},
        {"max_response_body": -5},
        {"dialect": "http"},
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(DurableUsageError, match=r"GET|max_|dialect"):
        IdempotencyPolicy(**settings)
