"""Each client gets its own response, behind the frameworks' sessions and authentication."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBasic, HTTPBearer
from litestar import Litestar, Request, post
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.testclient import TestClient

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin

KEY = {"Idempotency-Key": "k"}
WATCHED = "asgi_durable.middleware.installing.session_cookies"
BY_SESSION = IdempotencyPolicy(session_cookie="session")


class Lines(logging.Handler):
    """Keeps what is logged; Litestar sets up logging anew, and takes the handlers of the root."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The log lines about sessions."""
    logger, kept = logging.getLogger(WATCHED), Lines()
    logger.addHandler(kept)
    yield kept.lines
    logger.removeHandler(kept)


def refused(response: Any) -> bool:
    if response.status_code != 500:
        return False
    problem = response.json()
    assert problem["code"] == "PRINCIPAL_UNAVAILABLE"
    for setting in ("session_cookie=", "principal=", 'anonymous="share"'):
        assert setting in problem["detail"]
    return True


# Declared API keys


SCHEMES: list[tuple[Any, dict[str, Any]]] = [
    (APIKeyHeader(name="X-API-Key"), {"headers": {"x-api-key": "ada"}}),
    (APIKeyQuery(name="api_key"), {"params": {"api_key": "ada"}}),
    (APIKeyCookie(name="api_key"), {"headers": {"cookie": "api_key=ada"}}),
]


def on_the_route(scheme: Any) -> FastAPI:
    app = FastAPI()

    def handler(key: str = Security(scheme)) -> str:
        return f"paid by {key}"

    app.post("/pay")(handler)
    return app


def below_a_dependency(scheme: Any) -> FastAPI:
    app = FastAPI()

    def user(key: str = Depends(scheme)) -> str:
        return key

    def handler(name: str = Depends(user)) -> str:
        return f"paid by {name}"

    app.post("/pay")(handler)
    return app


def of_a_router(scheme: Any) -> FastAPI:
    app, router = FastAPI(), APIRouter(dependencies=[Depends(scheme)])

    @router.post("/pay")
    def handler() -> str:
        return "paid"

    app.include_router(router)
    return app


def of_the_application(scheme: Any) -> FastAPI:
    app = FastAPI(dependencies=[Depends(scheme)])

    @app.post("/pay")
    def handler() -> str:
        return "paid"

    return app


def where_it_is_included(scheme: Any) -> FastAPI:
    app, router = FastAPI(), APIRouter()

    @router.post("/pay")
    def handler() -> str:
        return "paid"

    app.include_router(router, dependencies=[Depends(scheme)])
    return app


def of_a_mounted_one(scheme: Any) -> FastAPI:
    app = FastAPI()
    app.mount("/sub", on_the_route(scheme))
    return app


def of_a_mounted_one_in_starlette(scheme: Any) -> Starlette:
    return Starlette(routes=[Mount("/sub", on_the_route(scheme))])


def has_mounts(app: FastAPI) -> bool:
    return any(isinstance(route, Mount) for route in app.routes)


def wrap(app: Any, durable: Durable) -> Any:
    return durable.wrap(app)


@pytest.mark.parametrize(("scheme", "sent"), SCHEMES)
@pytest.mark.parametrize("install", [asgi_durable_fastapi.install, wrap])
@pytest.mark.parametrize(
    "make",
    [
        on_the_route,
        below_a_dependency,
        of_a_router,
        of_the_application,
        where_it_is_included,
        of_a_mounted_one,
        of_a_mounted_one_in_starlette,
    ],
)
def test_an_api_key_that_is_declared_and_not_looked_at_is_refused(
    url: str,
    make: Callable[[Any], Any],
    install: Callable[[Any, Durable], Any],
    scheme: Any,
    sent: dict[str, Any],
) -> None:
    app = make(scheme)
    path = "/pay" if isinstance(app, FastAPI) and not has_mounts(app) else "/sub/pay"
    if isinstance(app, FastAPI) or install is wrap:
        app = install(app, Durable(url)) or app
    else:
        asgi_durable_starlette.install(app, Durable(url))
    headers = {**KEY, **sent.get("headers", {})}
    with TestClient(app) as client:
        by_ada = client.post(path, headers=headers, params=sent.get("params"))
        without = client.post(path, headers=KEY)

    assert refused(by_ada)
    # The app's own response, not that of another client.
    assert without.status_code == 401


def test_an_api_key_counts_where_a_function_looks_at_it(url: str) -> None:
    def by_api_key(scope) -> str | None:
        return dict(scope["headers"]).get(b"x-api-key", b"").decode() or None

    app = on_the_route(SCHEMES[0][0])
    policy = IdempotencyPolicy(principal=by_api_key)
    asgi_durable_fastapi.install(app, Durable(url, idempotency=policy))
    with TestClient(app) as client:
        answers = [client.post("/pay", headers={**KEY, "x-api-key": u}) for u in ("ada", "bob")]

    assert [one.json() for one in answers] == ["paid by ada", "paid by bob"]


def test_other_schemes_are_looked_at(url: str) -> None:
    app = FastAPI()

    @app.post("/basic")
    def basic(user: Annotated[Any, Depends(HTTPBasic())]) -> str:
        return user.username

    @app.post("/bearer")
    def bearer(token: Annotated[Any, Depends(HTTPBearer())]) -> str:
        return token.credentials

    asgi_durable_fastapi.install(app, Durable(url))
    with TestClient(app) as client:
        basics = [client.post("/basic", headers=KEY, auth=(u, "x")).json() for u in ("ada", "bob")]
        tokens = [
            client.post("/bearer", headers={**KEY, "Authorization": f"Bearer {u}"}).json()
            for u in ("ada", "bob")
        ]

    assert basics == tokens == ["ada", "bob"]


def test_litestars_api_keys_are_those_of_its_openapi_configuration(url: str) -> None:
    @post("/pay")
    async def handler() -> str:
        return "paid"

    scheme = SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header")
    components = Components(security_schemes={"key": scheme})
    app = Litestar(
        [handler],
        plugins=[DurablePlugin(Durable(url))],
        openapi_config=OpenAPIConfig(title="Shop", version="1", components=components),
    )
    with LitestarClient(app) as client:
        assert refused(client.post("/pay", headers={**KEY, "X-API-Key": "ada"}))
        assert client.post("/pay", headers=KEY).text == "paid"


# Sessions

SERVER_SIDE = ServerSideSessionConfig()
CLIENT_SIDE = CookieBackendConfig(secret=b"s" * 16)


def starlette_with_sessions(durable: Durable, *more: Middleware) -> Starlette:
    async def handler(request) -> PlainTextResponse:
        if "login" in request.query_params:
            request.session["user"] = request.query_params["login"]
        elif "user" not in request.session:
            return PlainTextResponse("log in", status_code=401)
        return PlainTextResponse(f"paid by {request.session['user']}")

    sessions = Middleware(SessionMiddleware, secret_key="s")
    app = Starlette(routes=[Route("/pay", handler, methods=["POST"])], middleware=[sessions, *more])
    asgi_durable_starlette.install(app, durable)
    return app


def litestar_with_sessions(durable: Durable, config: Any, cart: str = "") -> Litestar:
    @post("/pay")
    async def handler(request: Request[Any, Any, Any]) -> str:
        if "login" in request.query_params:
            request.set_session({"user": request.query_params["login"], "cart": cart})
        return f"paid by {request.session.get('user')}"

    return Litestar([handler], middleware=[config.middleware], plugins=[DurablePlugin(durable)])


def test_behind_starlettes_sessions_nobody_gets_anothers_answer(url: str) -> None:
    with TestClient(starlette_with_sessions(Durable(url))) as client:
        login = client.post("/pay?login=ada", headers=KEY)
        by_ada = client.post("/pay", headers={"Idempotency-Key": "k2"})
        client.cookies.clear()
        stranger = client.post("/pay", headers={"Idempotency-Key": "k2"})

    assert login.text == "paid by ada"
    assert refused(by_ada)
    assert stranger.status_code == 401


def test_two_sessions_are_two_principals_where_their_cookie_is_named(url: str) -> None:
    durable = Durable(url, idempotency=BY_SESSION)
    with TestClient(starlette_with_sessions(durable)) as client:
        cookies = [client.post(f"/pay?login={user}").cookies["session"] for user in ("ada", "bob")]
        client.cookies.clear()

        def pay(cookie: str) -> str:
            return client.post("/pay", headers={**KEY, "cookie": cookie}).text

        answers = [pay(f"session=gone; session={cookie}") for cookie in cookies]
        again = pay(f"session=gone; session={cookies[0]}")

    assert answers == ["paid by ada", "paid by bob"]
    assert again == "paid by ada"


def test_parts_of_litestars_long_sessions_tell_them_apart(url: str) -> None:
    durable = Durable(url, idempotency=BY_SESSION)
    app = litestar_with_sessions(durable, CLIENT_SIDE, cart="x" * 5000)
    with LitestarClient(app) as client:
        sent = []
        for user in ("ada", "bob"):
            client.cookies.clear()
            cookies = client.post(f"/pay?login={user}").cookies
            assert sorted(cookies) == ["session-0", "session-1"]
            sent.append("; ".join(f"{name}={value}" for name, value in cookies.items()))
        client.cookies.clear()
        answers = [client.post("/pay", headers={**KEY, "cookie": one}).text for one in sent]

    assert answers == ["paid by ada", "paid by bob"]


# Log lines


class Customer(SimpleUser):
    """A user with an identity, which older Starlettes leave to applications."""

    @property
    def identity(self) -> str:
        return self.username


class EverybodyIsAda(AuthenticationBackend):
    async def authenticate(self, conn):
        return AuthCredentials(["authenticated"]), Customer("ada")


AUTHENTICATION = Middleware(AuthenticationMiddleware, backend=EverybodyIsAda())


def wrapped(durable: Durable) -> Any:
    sessions = Middleware(SessionMiddleware, secret_key="s")
    return durable.wrap(Starlette(middleware=[sessions]))


def in_a_mounted_application(durable: Durable) -> Any:
    inner = Starlette(middleware=[Middleware(SessionMiddleware, secret_key="s")])
    app = Starlette(routes=[Mount("/sub", inner)])
    asgi_durable_starlette.install(app, durable)
    return app


def of_a_litestar_handler(durable: Durable) -> Litestar:
    @post("/pay", middleware=[SERVER_SIDE.middleware])
    async def handler() -> str:
        return "paid"

    return Litestar([handler], plugins=[DurablePlugin(durable)])


WITH_SESSIONS: list[Callable[[Durable], Any]] = [
    starlette_with_sessions,
    wrapped,
    in_a_mounted_application,
    of_a_litestar_handler,
    lambda durable: litestar_with_sessions(durable, SERVER_SIDE),
    lambda durable: litestar_with_sessions(durable, CLIENT_SIDE),
]


@pytest.mark.parametrize("make", WITH_SESSIONS)
def test_sessions_of_which_no_setting_speaks_are_told_of_at_the_start(url, told, make) -> None:
    app = make(Durable(url))
    for _ in range(2):
        with TestClient(app):
            pass

    (line, *more) = told
    assert not more
    for setting in ("SessionMiddleware", "session_cookie=", "principal=", 'anonymous="share"'):
        assert setting in line


@pytest.mark.parametrize(
    "policy",
    [
        BY_SESSION,
        IdempotencyPolicy(principal=lambda _: None),
        IdempotencyPolicy(anonymous="share"),
        IdempotencyPolicy(methods=frozenset()),
    ],
)
@pytest.mark.parametrize("make", WITH_SESSIONS)
def test_nothing_is_said_where_one_does(url, told, make, policy) -> None:
    with TestClient(make(Durable(url, idempotency=policy))):
        pass

    assert told == []


def test_nothing_is_said_where_authentication_tells_whose_a_request_is(url, told) -> None:
    with TestClient(starlette_with_sessions(Durable(url), AUTHENTICATION)) as client:
        client.post("/pay?login=ada")
        answer = client.post("/pay", headers=KEY)

    assert answer.text == "paid by ada"
    assert told == []


def test_an_answer_that_renews_the_cookie_of_the_session_is_told_of_once(url, told) -> None:
    app = litestar_with_sessions(Durable(url, idempotency=BY_SESSION), CLIENT_SIDE)
    with LitestarClient(app) as client:
        client.post("/pay?login=ada", headers=KEY)
        assert told == []
        for number in range(3):
            client.post("/pay", headers={"Idempotency-Key": f"k{number}"})

    (line,) = told
    assert "'session'" in line
    assert "principal=" in line


@pytest.mark.parametrize(
    ("config", "policy"),
    [(SERVER_SIDE, BY_SESSION), (CLIENT_SIDE, IdempotencyPolicy(session_cookie="other"))],
)
def test_a_session_that_keeps_its_cookie_is_not_told_of(url, told, config, policy) -> None:
    app = litestar_with_sessions(Durable(url, idempotency=policy), config)
    with LitestarClient(app) as client:
        client.post("/pay?login=ada")
        for _ in range(3):
            client.post("/pay")

    assert told == []


def test_a_login_and_a_logout_are_no_renewal(url, told) -> None:
    async def handler(request) -> PlainTextResponse:
        if request.query_params.get("go") == "in":
            request.session["user"] = "ada"
        else:
            request.session.clear()
        return PlainTextResponse("done")

    sessions = Middleware(SessionMiddleware, secret_key="s")
    app = Starlette(routes=[Route("/", handler, methods=["POST"])], middleware=[sessions])
    asgi_durable_starlette.install(app, Durable(url, idempotency=BY_SESSION))
    with TestClient(app) as client:
        assert "session" in client.post("/?go=in").cookies
        assert "set-cookie" in client.post("/?go=out").headers

    assert told == []


# Hosts


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_each_host_has_keys_of_its_own(url: str, *, is_wrapped: bool) -> None:
    def shop(name: str) -> Starlette:
        async def handler(request) -> PlainTextResponse:
            return PlainTextResponse(name)

        return Starlette(routes=[Route("/pay", handler, methods=["POST"])])

    durable = Durable(url)
    app: Any = Starlette(routes=[Host("a.example", shop("a")), Host("b.example", shop("b"))])
    if is_wrapped:
        app = durable.wrap(app)
    else:
        asgi_durable_starlette.install(app, durable)
    with TestClient(app) as client:

        def pay(host: str) -> Any:
            return client.post("/pay", headers={**KEY, "host": host})

        answers = [pay(host) for host in ("a.example", "b.example", "A.example:80", "b.example.")]
        page = f"/durable/requests/{answers[0].headers['durable-id']}"
        pages = [
            client.get(page, headers={"host": host}, follow_redirects=False).status_code
            for host in ("a.example", "b.example")
        ]

    assert [one.text for one in answers[:3]] == ["a", "b", "a"]
    assert answers[2].headers["idempotent-replayed"] == "true"
    assert pages == [303, 404]


def test_a_service_with_several_names_may_have_one(url: str) -> None:
    app = FastAPI()

    @app.post("/pay")
    def handler() -> str:
        return "paid"

    policy = IdempotencyPolicy(authority="shop.example", vary=["X-Tenant"])
    asgi_durable_fastapi.install(app, Durable(url, idempotency=policy))
    with TestClient(app) as client:

        def is_replayed(host: str, tenant: str) -> bool:
            headers = {**KEY, "host": host, "x-tenant": tenant}
            return "idempotent-replayed" in client.post("/pay", headers=headers).headers

        replayed = [is_replayed(*of) for of in (("a", "1"), ("b", "1"), ("b", "2"), ("a", "2"))]

    assert replayed == [False, True, False, True]
