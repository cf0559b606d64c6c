"""Requests that are legal and rare, and responses whose rows are damaged."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import query
from support.telemetry.spans import Spans

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import Scope
from asgi_durable_starlette import install

pytestmark = pytest.mark.anyio

ON_SERVER = IdempotencyPolicy(recover="server")
OPTIONS: list[dict[str, Any]] = [
    {"recover": "server"},
    {"stream": "record"},
    {"oversize": "hash", "max_request_body": 1},
    {"scope": "endpoint"},
    {"on_disconnect": "cancel"},
]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def sparse(scope: Scope) -> Scope:
    """Return a scope without anything that may be missing in it."""
    needed = ("type", "method", "path", "headers")
    return {name: scope[name] for name in needed}


def test_a_request_of_starlettes_test_client_can_continue_without_its_client(url: str) -> None:
    async def handle(_request: Request) -> Response:
        return JSONResponse("ok")

    app = Starlette(routes=[Route("/", handle, methods=["POST"])])
    install(app, Durable(url, idempotency=ON_SERVER))
    with TestClient(app) as client:
        answers = [client.post("/", headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [a.status_code for a in answers] == [200, 200]
    assert answers[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("options", OPTIONS, ids=[next(iter(options)) for options in OPTIONS])
async def test_what_may_be_missing_in_a_scope_is_not_needed(
    url: str, options: dict[str, Any]
) -> None:
    policy = IdempotencyPolicy(**options)
    durable = Durable(url, idempotency=policy, telemetry=Spans().telemetry, drain_timeout=0.0)

    async def handle(scope, receive, send) -> None:
        assert (await receive())["type"] == "http.request"
        await answer(send, json.dumps(durable.request_id).encode())

    app = durable.wrap(handle)
    async with durable:
        unkeyed = await exchange(app, sparse(http_scope("POST")), b"{}")
        first, again = [await exchange(app, sparse(keyed()), b"{}") for _ in range(2)]
        path = f"/durable/requests/{first.headers('durable-id')[0]}"
        pages = [
            await exchange(app, sparse(http_scope("GET", path + end))) for end in ("", "/result")
        ]

    assert [a.status for a in (unkeyed, first, again)] == [200] * 3
    assert again.body == first.body
    assert again.headers("idempotent-replayed") == ["true"]
    assert [page.status for page in pages] == [303, 200]


@pytest.mark.parametrize("path", ["/a\x00b", "/a\ud800", "/a\r\nb", "/ü"])
@pytest.mark.parametrize("policy", [IdempotencyPolicy(), ON_SERVER], ids=["client", "server"])
async def test_any_path_can_be_called_with_a_key(
    url: str, path: str, policy: IdempotencyPolicy
) -> None:
    durable = Durable(url, idempotency=policy, drain_timeout=0.0)
    seen: list[str] = []

    @durable.step
    async def note(path: str) -> None:
        seen.append(path)

    async def handle(scope, receive, send) -> None:
        await note(scope["path"])
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        answers = [await exchange(app, keyed() | {"path": path, "raw_path": b"/a"}) for _ in "12"]
    ((name,),) = await query(
        url, "SELECT name FROM asgi_durable_workflows WHERE fingerprint IS NOT NULL"
    )

    assert [a.status for a in answers] == [200, 200]
    assert seen == [path]
    # Names for people have no characters that end a line, or that no text can have.
    assert name.isprintable()
    assert name.startswith("POST /")


DAMAGES: dict[str, tuple[int, bytes]] = {
    "no JSON": (200, b"[["),
    "no pairs": (200, b"[1]"),
    "no texts": (200, b"[[1, 2]]"),
    "no status": (7, b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("keep_cookies", [False, True])
async def test_a_damaged_response_is_a_problem_and_a_line_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture, damage: str, *, keep_cookies: bool
) -> None:
    policy = IdempotencyPolicy(keep_cookies=keep_cookies)
    durable = Durable(url, idempotency=policy, drain_timeout=0.0)
    calls: list[int] = []

    @durable.transaction
    async def damage_it(status: int, headers: bytes) -> None:
        update = "UPDATE asgi_durable_responses SET status_code = :status, headers = :headers"
        await durable.session.execute(sa.text(update), {"status": status, "headers": headers})

    async def handle(scope, receive, send) -> None:
        calls.append(1)
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        first = await exchange(app, keyed(session={}))
        request_id = first.headers("durable-id")[0]
        await damage_it(*DAMAGES[damage])
        with caplog.at_level(logging.ERROR, logger="asgi_durable"):
            again = await exchange(app, keyed(session={}))
            page = await exchange(
                app, http_scope("GET", f"/durable/requests/{request_id}/result", session={})
            )

    for result in (again, page):
        problem = json.loads(result.body)
        assert (result.status, problem["code"]) == (500, "RESPONSE_DAMAGED")
        assert problem["retryable"] is False
    assert calls == [1]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(request_id in line for line in told)
