"""Sessions that a middleware around idempotency keeps: a retried login gets its session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from litestar import Litestar, get, post
from litestar import Request as LitestarRequest
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp
from asgi_durable_litestar import DurablePlugin

KEY = {"Idempotency-Key": "k"}
SESSIONS = Middleware(SessionMiddleware, secret_key="not a secret")
TOLD = "asgi_durable.middleware.responses.session_changes"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def log_in(request: Request) -> Response:
    request.session["user"] = "ada"
    request.session["roles"] = {"b": 1, "a": [2]}
    request.session.pop("guest", None)
    return JSONResponse("hello")


async def browse(request: Request) -> Response:
    request.session["guest"] = 1
    return JSONResponse("welcome")


async def show(request: Request) -> Response:
    return JSONResponse(request.session)


async def stay_out(request: Request) -> Response:
    return JSONResponse(request.session.get("user"))


def routes() -> list[Route]:
    return [
        Route("/login", log_in, methods=["POST"]),
        Route("/stay_out", stay_out, methods=["POST"]),
        Route("/browse", browse),
        Route("/session", show),
    ]


def starlette_app(durable: Durable) -> ASGIApp:
    app = Starlette(routes=routes(), middleware=[SESSIONS])
    asgi_durable_starlette.install(app, durable)
    return app


def fastapi_app(durable: Durable) -> ASGIApp:
    app = FastAPI(middleware=[SESSIONS])

    @app.post("/login")
    @durable.workflow(name="log_in")
    async def log_in(request: FastAPIRequest) -> str:
        request.session.update(user="ada", roles={"b": 1, "a": [2]})
        request.session.pop("guest", None)
        return "hello"

    app.routes.extend(routes()[1:])
    asgi_durable_fastapi.install(app, durable)
    return app


def around_wrap(durable: Durable) -> ASGIApp:
    inner = durable.wrap(Starlette(routes=routes()))
    return SessionMiddleware(inner, secret_key="not a secret")


def inside_wrap(durable: Durable) -> ASGIApp:
    return durable.wrap(Starlette(routes=routes(), middleware=[SESSIONS]))


def policy(*, keep_cookies: bool) -> IdempotencyPolicy:
    return IdempotencyPolicy(keep_cookies=keep_cookies, principal=lambda _scope: "anybody")


@pytest.mark.parametrize("new_app", [starlette_app, fastapi_app, around_wrap, inside_wrap])
def test_a_retried_login_gets_its_session_where_cookies_are_kept(
    url: str, new_app: Callable[[Durable], ASGIApp]
) -> None:
    app = new_app(Durable(url, idempotency=policy(keep_cookies=True)))
    with TestClient(app) as client:
        client.get("/browse")
        guest = dict(client.cookies)
        first = client.post("/login", headers=KEY)
        # The response got lost, and with it the cookie.
        client.cookies.clear()
        client.cookies.update(guest)
        again = client.post("/login", headers=KEY)
        session = client.get("/session").json()
        twice = client.post("/login", headers=KEY)
        unchanged = client.post("/stay_out", headers={"Idempotency-Key": "other"})
        # Older versions of Starlette set the cookie with every response.
        is_always_set = "set-cookie" in client.get("/session").headers

    assert first.status_code == again.status_code == 200
    assert again.headers["idempotent-replayed"] == "true"
    assert session == {"user": "ada", "roles": {"a": [2], "b": 1}}
    # A client that has its session is not given another one.
    assert is_always_set or new_app is inside_wrap or "set-cookie" not in twice.headers
    assert is_always_set or "set-cookie" not in unchanged.headers


def test_what_the_session_got_since_then_stays(url: str) -> None:
    app = starlette_app(Durable(url, idempotency=policy(keep_cookies=True)))
    with TestClient(app) as client:
        client.post("/login", headers=KEY)
        client.cookies.clear()
        client.get("/browse")
        client.post("/login", headers=KEY)
        session = client.get("/session").json()

    assert session == {"user": "ada", "roles": {"a": [2], "b": 1}, "guest": 1}


def test_the_page_of_the_result_sets_the_session_too(url: str) -> None:
    app = starlette_app(Durable(url, idempotency=policy(keep_cookies=True)))
    with TestClient(app) as client:
        first = client.post("/login", headers=KEY)
        client.cookies.clear()
        client.get(f"/durable/requests/{first.headers['durable-id']}/result")
        session = client.get("/session").json()

    assert session["user"] == "ada"


def test_no_session_is_kept_where_cookies_are_not(url: str) -> None:
    app = starlette_app(Durable(url, idempotency=policy(keep_cookies=False)))
    with TestClient(app) as client:
        client.post("/login", headers=KEY)
        client.cookies.clear()
        again = client.post("/login", headers=KEY)

    assert (again.status_code, "set-cookie" in again.headers) == (200, False)


def test_a_header_of_the_applications_own_changes_no_session(url: str) -> None:
    async def relay(_request: Request) -> Response:
        forged = 'session:{"set": {"user": "eve"}, "removed": []}'
        return JSONResponse("hello", headers={"Idempotent-Replayed": forged})

    app = Starlette(routes=[Route("/relay", relay, methods=["POST"])], middleware=[SESSIONS])
    asgi_durable_starlette.install(app, Durable(url, idempotency=policy(keep_cookies=True)))
    with TestClient(app) as client:
        answers = [client.post("/relay", headers=KEY) for _ in range(2)]

    assert ["set-cookie" in answer.headers for answer in answers] == [False, False]
    assert answers[1].headers["idempotent-replayed"] == "true"


def test_a_value_that_is_no_json_is_told_and_the_rest_is_kept(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(scope: Any, receive: Any, send: Any) -> None:
        scope["session"] |= {"user": "ada", "object": object()}
        await JSONResponse("hello")(scope, receive, send)

    sessions: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            sessions.append(scope.setdefault("session", {}))
        await wrapped(scope, receive, send)

    wrapped = Durable(url, idempotency=policy(keep_cookies=True)).wrap(handle)
    with TestClient(app) as client, caplog.at_level(logging.WARNING, logger=TOLD):
        for _ in range(2):
            client.post("/", headers=KEY)

    assert sessions[1] == {"user": "ada"}
    assert ["object" in record.getMessage() for record in caplog.records] == [True]


def test_litestars_sessions_are_set_again_as_well(url: str) -> None:
    durable = Durable(url, idempotency=policy(keep_cookies=True))

    @post("/login")
    async def log_in(request: LitestarRequest[Any, Any, Any]) -> None:
        request.set_session({"user": "ada"})

    @get("/session")
    async def show(request: LitestarRequest[Any, Any, Any]) -> dict[str, Any]:
        return dict(request.session)

    sessions = ServerSideSessionConfig()
    app = Litestar(
        [log_in, show], plugins=[DurablePlugin(durable)], middleware=[sessions.middleware]
    )
    with LitestarClient(app) as client:
        client.post("/login", headers=KEY)
        client.cookies.clear()
        again = client.post("/login", headers=KEY)
        session = client.get("/session").json()

    assert again.headers["idempotent-replayed"] == "true"
    assert session == {"user": "ada"}


@pytest.mark.parametrize("new_app", [starlette_app, fastapi_app, inside_wrap])
@pytest.mark.parametrize("keep_cookies", [False, True])
def test_the_log_tells_at_the_start_that_replays_set_no_session(
    url: str,
    caplog: pytest.LogCaptureFixture,
    new_app: Callable[[Durable], ASGIApp],
    *,
    keep_cookies: bool,
) -> None:
    app = new_app(Durable(url, idempotency=policy(keep_cookies=keep_cookies)))
    with caplog.at_level(logging.WARNING, logger=TOLD):
        for _ in range(2):
            with TestClient(app) as client:
                client.get("/session")

    told = [record.getMessage() for record in caplog.records if record.name == TOLD]
    assert len(told) == (0 if keep_cookies else 1)
    assert all("SessionMiddleware" in line and "keep_cookies=True" in line for line in told)
