"""A line in the log tells of what belongs outside of the idempotency middleware and is inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from litestar import Litestar, Router, get, post
from litestar.config.app import AppConfig
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.middleware import (
    AbstractAuthenticationMiddleware,
    AuthenticationResult,
    DefineMiddleware,
)
from litestar.middleware.session.server_side import (
    ServerSideSessionBackend,
    ServerSideSessionConfig,
)
from litestar.security.session_auth import SessionAuth
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.routing import Router as StarletteRouter
from starlette.testclient import TestClient

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin
from asgi_durable_starlette import idempotent, install

pytestmark = pytest.mark.filterwarnings(r"ignore:\[paths=")

AUTHENTICATION, CORS = "authentication", "CORS"


class Backend(AuthenticationBackend):
    """Knows everybody."""

    async def authenticate(self, conn):
        return AuthCredentials(["authenticated"]), SimpleUser("ann")


class OwnAuthentication(AuthenticationMiddleware):
    """Of an application's own."""


AUTH = Middleware(AuthenticationMiddleware, backend=Backend())
OWN_AUTH = Middleware(OwnAuthentication, backend=Backend())
ALLOW_ALL = Middleware(CORSMiddleware, allow_origins=["*"])


class Lines(logging.Handler):
    """Keeps what is logged; Litestar sets up logging anew, and takes the handlers of the root."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told() -> Iterator[Callable[[], list[str]]]:
    """The log lines, in order."""
    logger, kept = logging.getLogger("asgi_durable.middleware.installing.placement"), Lines()
    logger.addHandler(kept)

    def told() -> list[str]:
        assert all("is inside of the idempotency middleware" in line for line in kept.lines)
        return [AUTHENTICATION if AUTHENTICATION in line else CORS for line in kept.lines]

    yield told
    logger.removeHandler(kept)


def start(app: Any) -> None:
    """Serve an application twice, as a restart does."""
    for _ in range(2):
        with TestClient(app) as client:
            client.get("/")


def page(_request: Any) -> PlainTextResponse:
    return PlainTextResponse("page")


def starlette(*middleware: Middleware, routes: Any = ()) -> Starlette:
    return Starlette(middleware=list(middleware), routes=[Route("/", page), *routes])


@pytest.mark.parametrize("make", [starlette, lambda *m: FastAPI(middleware=list(m))])
@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        ([], []),
        ([Middleware(GZipMiddleware)], []),
        ([AUTH], [AUTHENTICATION]),
        ([OWN_AUTH], [AUTHENTICATION]),
        ([ALLOW_ALL], [CORS]),
        ([ALLOW_ALL, AUTH], [AUTHENTICATION, CORS]),
    ],
)
def test_wrap_has_all_of_an_application_inside(url, told, make, middleware, expected) -> None:
    start(Durable(url).wrap(make(*middleware)))

    assert told() == expected


def test_what_is_added_after_wrap_counts(url, told) -> None:
    app = FastAPI()
    wrapped = Durable(url).wrap(app)
    app.add_middleware(AuthenticationMiddleware, backend=Backend())

    start(wrapped)

    assert told() == [AUTHENTICATION]


def test_what_is_around_wrap_is_outside(url, told) -> None:
    inner = Durable(url).wrap(starlette())

    start(AuthenticationMiddleware(CORSMiddleware(inner), backend=Backend()))

    assert told() == []


def test_middlewares_of_raw_applications_are_found_by_what_they_call(url, told) -> None:
    start(Durable(url).wrap(GZipMiddleware(AuthenticationMiddleware(starlette(), Backend()))))

    assert told() == [AUTHENTICATION]


def test_a_server_without_a_lifespan_tells_at_the_first_request(url, told) -> None:
    client = TestClient(Durable(url).wrap(starlette(AUTH)))

    client.get("/")
    client.get("/")

    assert told() == [AUTHENTICATION]


@pytest.mark.parametrize("adapter", [asgi_durable_starlette, asgi_durable_fastapi])
@pytest.mark.parametrize("is_first", [True, False])
def test_install_has_the_middlewares_of_the_application_outside(
    url, told, adapter, is_first
) -> None:
    app = FastAPI()

    def add() -> None:
        app.add_middleware(AuthenticationMiddleware, backend=Backend())
        app.add_middleware(CORSMiddleware)

    if is_first:
        add()
    adapter.install(app, Durable(url))
    if not is_first:
        add()
    start(app)

    assert told() == []


@pytest.mark.parametrize(
    "route",
    [
        Mount("/in", routes=[Route("/", page)], middleware=[AUTH]),
        Mount("/in", app=starlette(AUTH)),
        Mount("/in", app=FastAPI(middleware=[AUTH])),
        Mount("/in", app=Starlette(routes=[Mount("/more", app=starlette(AUTH))])),
        Mount("/in", app=StarletteRouter([Route("/", page)], middleware=[AUTH])),
        Host("api.example", app=starlette(AUTH)),
        Route("/in", page, middleware=[AUTH]),
    ],
)
def test_install_has_routes_and_what_is_mounted_inside(url, told, route) -> None:
    app = starlette(routes=[route])
    install(app, Durable(url))

    start(app)

    assert told() == [AUTHENTICATION]


def test_mounts_of_fastapi_are_inside(url, told) -> None:
    app = FastAPI()
    app.mount("/direct", starlette(ALLOW_ALL))
    asgi_durable_fastapi.install(app, Durable(url))

    start(app)

    assert told() == [CORS]


def test_mounts_of_routers_of_fastapi_are_inside(url, told) -> None:
    app, router = FastAPI(), APIRouter()
    router.routes.append(Mount("/in", app=starlette(AUTH)))
    app.include_router(router)
    if not any(hasattr(route, "original_router") for route in app.routes):
        pytest.skip("this FastAPI leaves the mounts of its routers out")
    asgi_durable_fastapi.install(app, Durable(url))

    start(app)

    assert told() == [AUTHENTICATION]


def test_what_is_put_behind_ours_by_hand_is_inside(url, told) -> None:
    app = starlette()
    install(app, Durable(url))
    app.user_middleware.append(AUTH)

    start(app)

    assert told() == [AUTHENTICATION]


def test_dependencies_of_fastapi_are_no_mistake(url, told) -> None:
    app = FastAPI(dependencies=[Depends(HTTPBearer(auto_error=False))])
    asgi_durable_fastapi.install(app, Durable(url))

    start(app)

    assert told() == []


NO_METHODS = IdempotencyPolicy(methods=frozenset())
BY_COOKIE = IdempotencyPolicy(session_cookie="session")


def of_header(scope) -> str | None:
    return None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"idempotency": IdempotencyPolicy(principal=of_header)}, [CORS]),
        ({"idempotency": BY_COOKIE}, [CORS]),
        ({"idempotency": NO_METHODS}, []),
        ({"idempotency": NO_METHODS, "idempotency_routes": {"/a": None}}, []),
        ({"idempotency": NO_METHODS, "idempotency_routes": {"/a": BY_COOKIE}}, [CORS]),
        (
            {"idempotency": BY_COOKIE, "idempotency_routes": {"/a": IdempotencyPolicy()}},
            [AUTHENTICATION, CORS],
        ),
    ],
)
def test_nothing_is_told_where_it_makes_no_difference(url, told, options, expected) -> None:
    start(Durable(url, **options).wrap(starlette(AUTH, ALLOW_ALL)))

    assert told() == expected


BY_HEADER = IdempotencyPolicy(principal=of_header)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(None, []), (IdempotencyPolicy(), [AUTHENTICATION]), (BY_HEADER, [])],
)
@pytest.mark.parametrize("makes_litestar", [True, False])
def test_policies_of_handlers_count(url, told, policy, expected, *, makes_litestar: bool) -> None:
    durable = Durable(url, idempotency=NO_METHODS)
    if makes_litestar:
        opt = {"idempotency": policy}
        guarded = post("/in", middleware=[LitestarAuthentication], opt=opt)(find_user)
        start_litestar(Litestar([home, guarded], plugins=[DurablePlugin(durable)]))
    else:
        guarded = Route("/in", idempotent(policy)(page), middleware=[AUTH])
        app = starlette(routes=[guarded])
        install(app, durable)
        start(app)

    assert told() == expected


class LitestarAuthentication(AbstractAuthenticationMiddleware):
    """Knows everybody."""

    async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:
        return AuthenticationResult(user="ann", auth=None)


async def find_user(*_args: Any) -> str:
    return "ann"


SESSIONS: Any = SessionAuth[str, ServerSideSessionBackend](
    retrieve_user_handler=find_user, session_backend_config=ServerSideSessionConfig()
)


def add_authentication(app_config: AppConfig) -> AppConfig:
    """Do as Litestar's own for tokens does."""
    app_config.middleware.insert(0, DefineMiddleware(LitestarAuthentication))
    return app_config


@get("/", opt={"exclude_from_auth": True})
async def home() -> None:
    """Be there."""


@post("/in", middleware=[LitestarAuthentication])
async def guarded() -> None:
    """Be guarded."""


def start_litestar(app: Any) -> None:
    for _ in range(2):
        with LitestarClient(app) as client:
            client.get("/")


@pytest.mark.parametrize(
    ("handler", "options", "expected"),
    [
        (home, {}, []),
        (home, {"middleware": [LitestarAuthentication]}, [AUTHENTICATION]),
        (home, {"on_app_init": [SESSIONS.on_app_init]}, [AUTHENTICATION]),
        (home, {"on_app_init": [add_authentication]}, [AUTHENTICATION]),
        (home, {"cors_config": CORSConfig()}, [CORS]),
        (guarded, {}, [AUTHENTICATION]),
    ],
)
def test_wrap_has_all_of_litestar_inside(url, told, handler, options, expected) -> None:
    start_litestar(Durable(url).wrap(Litestar([handler], **options)))

    assert told() == expected


@pytest.mark.parametrize(
    ("handlers", "expected"),
    [
        ([guarded], [AUTHENTICATION]),
        ([Router("/r", route_handlers=[guarded])], [AUTHENTICATION]),
        ([Router("/r", route_handlers=[home], middleware=[SESSIONS.middleware])], [AUTHENTICATION]),
        ([], []),
    ],
)
def test_the_plugin_has_the_middlewares_of_handlers_and_routers_inside(
    url, told, handlers, expected
) -> None:
    start_litestar(Litestar([home, *handlers], plugins=[DurablePlugin(Durable(url))]))

    assert told() == expected


@pytest.mark.parametrize(
    "options",
    [
        {"middleware": [LitestarAuthentication], "cors_config": CORSConfig()},
        {"on_app_init": [SESSIONS.on_app_init]},
        {"on_app_init": [add_authentication]},
    ],
)
def test_the_plugin_has_the_middlewares_of_the_application_outside(url, told, options) -> None:
    start_litestar(Litestar([home], plugins=[DurablePlugin(Durable(url))], **options))

    assert told() == []


def test_an_application_that_cannot_be_looked_into_starts_all_the_same(url, told) -> None:
    class Closed(Starlette):
        @property
        def user_middleware(self) -> Any:
            raise LookupError

        @user_middleware.setter
        def user_middleware(self, value: Any) -> None:
            """Take it."""

        def build_middleware_stack(self) -> Any:
            return self.router

    app = Durable(url).wrap(Closed(routes=[Route("/", page)]))

    with TestClient(app) as client:
        assert client.get("/").text == "page"
    assert told() == []


def test_an_application_without_an_end_is_looked_into_for_a_while(url, told) -> None:
    class Endless:
        @property
        def app(self) -> Endless:
            return Endless()

    inner = starlette()

    class Claiming:
        app = Endless()

        async def __call__(self, scope, receive, send) -> None:
            await inner(scope, receive, send)

    start(Durable(url).wrap(Claiming()))

    assert told() == []
