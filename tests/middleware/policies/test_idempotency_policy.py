"""Which requests need a key, and which keys are accepted."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import query
from support.interruption import Gate

from asgi_durable import Durable, DurableError, DurableUsageError, IdempotencyPolicy

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
async def test_a_key_of_another_request_is_refused_in_the_dialect(
    url: str, dialect: str, status: int
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(dialect=dialect))
    app = durable.wrap(serve)
    async with durable:
        await exchange(app, keyed(), b"{}")
        refused = await exchange(app, keyed(), b"other")

    assert (refused.status, json.loads(refused.body)["code"]) == (status, "KEY_REUSED")


@pytest.mark.parametrize("dialect", ["ietf", "stripe"])
async def test_a_duplicate_is_refused_at_once_in_the_dialects_that_have_it_so(
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
        duplicate = await exchange(app, keyed(), b"{}")
        gate.open()

        assert duplicate.status == 409
        assert (await first).status == 200


class Counting:
    """Counts its calls and responds with their number."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        await answer(send, f"call {self.calls}".encode())


async def test_each_endpoint_may_have_keys_of_its_own(url: str) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(scope="endpoint"))
    app = durable.wrap(Counting())
    scopes = [keyed(), keyed(path="/other"), keyed(method="PATCH"), keyed(path="/ü")]
    async with durable:
        first, again = [[await exchange(app, scope, b"{}") for scope in scopes] for _ in "ab"]
        other_query = await exchange(app, keyed(query_string=b"a=1"), b"{}")
        bob = await exchange(app, keyed(headers=[("authorization", "Bearer bob")]), b"{}")

    assert [one.body for one in first] == [b"call 1", b"call 2", b"call 3", b"call 4"]
    assert [one.body for one in again] == [one.body for one in first]
    assert len({one.headers("durable-id")[0] for one in first}) == 4
    assert (other_query.status, bob.body) == (422, b"call 5")


async def test_an_endpoints_request_has_a_status_of_its_own(url: str) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(scope="endpoint"))
    app = durable.wrap(Counting())
    async with durable:
        (request_id,) = (await exchange(app, keyed(), b"{}")).headers("durable-id")
        page = await exchange(app, http_scope("GET", f"/durable/requests/{request_id}/result"))

    assert page.body == b"call 1"


async def test_the_application_may_decide_which_requests_are_the_same(url: str) -> None:
    def order(scope, body: bytes) -> str:
        return f"{scope['path']} {json.loads(body)['order']}"

    durable = Durable(url, idempotency=IdempotencyPolicy(fingerprint=order))
    app = durable.wrap(Counting())
    async with durable:
        await exchange(app, keyed(), b'{"order": 1, "sent": "today"}')
        retry = await exchange(app, keyed(query_string=b"try=2"), b'{"order": 1, "sent": "later"}')
        other = await exchange(app, keyed(), b'{"order": 2, "sent": "today"}')

    assert (retry.status, retry.headers("idempotent-replayed")) == (200, ["true"])
    assert (other.status, json.loads(other.body)["code"]) == (422, "KEY_REUSED")


def fails(*_: object) -> str:
    raise LookupError("a secret")


@pytest.mark.parametrize("function", ["fingerprint", "validate_key", "principal"])
async def test_where_a_function_of_the_policy_fails_nothing_runs(
    url: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    counting, durable = Counting(), Durable(url, idempotency=IdempotencyPolicy(**{function: fails}))
    async with durable:
        refused = await exchange(durable.wrap(counting), keyed(), b"{}")
        rows = await query(url, "SELECT * FROM asgi_durable_workflows")

    problem = json.loads(refused.body)
    code = "PRINCIPAL_UNAVAILABLE" if function == "principal" else "POLICY_FAILED"
    assert (refused.status, problem["code"], problem["retryable"]) == (500, code, False)
    assert "secret" not in problem["detail"]
    assert "LookupError: a secret" in caplog.text
    assert (counting.calls, rows) == (0, [])


async def test_an_error_of_a_policys_function_is_the_response(url: str) -> None:
    def refuse(*_: object) -> str:
        raise DurableError("not on Sundays", code="SUNDAY", status_code=403)

    counting, durable = Counting(), Durable(url, idempotency=IdempotencyPolicy(fingerprint=refuse))
    async with durable:
        refused = await exchange(durable.wrap(counting), keyed(), b"{}")

    assert (refused.status, json.loads(refused.body)["code"]) == (403, "SUNDAY")
    assert counting.calls == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": {"POST", "GET"}},
        {"max_wait": -1},
        {"max_wait": float("nan")},
        {"max_wait": float("inf")},
        {"max_request_body": -1},
        {"max_response_body": -5},
        {"max_attempts": 0},
        {"max_attempts": float("nan")},
        {"max_lifetime": -1},
        {"async_after": -0.5},
        {"async_after": float("inf")},
        {"stream_after": float("nan")},
        {"retention": -1},
        {"tombstone_retention": float("inf")},
        {"dialect": "http"},
        {"scope": "application"},
        {"on_disconnect": "wait"},
        {"on_expired": None},
        {"on_store_error": "ignore"},
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(DurableUsageError, match="GET" if name == "methods" else name):
        IdempotencyPolicy(**settings)


def test_the_least_of_everything_can_be_meant() -> None:
    least = IdempotencyPolicy(max_attempts=1, async_after=0, stream_after=0, retention=0)

    assert (least.max_attempts, least.async_after) == (1, 0)
