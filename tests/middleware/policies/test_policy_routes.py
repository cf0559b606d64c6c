"""Which policy a request has: its route's, its handler's, or the application's."""

from __future__ import annotations

import json

import pytest
from support.asgi import answer, exchange, http_scope, keyed

from asgi_durable import Durable, DurableUsageError, IdempotencyMiddleware, IdempotencyPolicy

pytestmark = pytest.mark.anyio

NEEDS_KEY = IdempotencyPolicy(required=True)
NEEDS_KEY_TO_PUT = IdempotencyPolicy(required=True, methods=frozenset({"PUT"}))


class App:
    """Counts its calls and responds with their number."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        await answer(send, f"call {self.calls}".encode())


def is_missing(refused) -> bool:
    return (refused.status, json.loads(refused.body)["code"]) == (400, "KEY_MISSING")


@pytest.mark.parametrize(
    ("route", "path", "is_found"),
    [
        ("/orders", "/orders", True),
        ("POST  /orders", "/orders", True),
        ("PUT /orders", "/orders", False),
        ("/orders", "/orders/", False),
        ("/orders", "/orders\n", False),
        ("/orders/{id}", "/orders/7", True),
        ("/orders/{id}", "/orders/7/items", False),
        ("/orders/{id}", "/orders/", False),
        ("/orders/{id}/items/{n}", "/orders/a b/items/ü", True),
        ("/hooks/{rest:path}", "/hooks/a/b\n", True),
        ("/hooks/{rest:path}", "/hooks/", True),
        ("/hooks/{rest:path}", "/hooks", False),
        ("/v1.0/{id}", "/v1x0/7", False),
        ("/a+b", "/a+b", True),
    ],
)
async def test_a_route_is_for_the_paths_that_it_reads_like(
    url: str, route: str, path: str, is_found: bool
) -> None:
    durable, app = Durable(url, idempotency_routes={route: NEEDS_KEY}), App()
    async with durable:
        result = await exchange(durable.wrap(app), http_scope("POST", path))

    assert app.calls == (0 if is_found else 1)
    assert not is_found or is_missing(result)


async def test_a_path_is_compared_as_the_app_gets_it_decoded(url: str) -> None:
    durable, app = Durable(url, idempotency_routes={"/orders/{id}": NEEDS_KEY}), App()
    wrapped = durable.wrap(app)
    async with durable:
        encoded = await exchange(wrapped, http_scope("POST", "/orders/a b", raw_path=b"/%6Frders"))
        slash = http_scope("POST", "/orders/a/b", raw_path=b"/orders/a%2Fb")

        assert is_missing(encoded)
        assert (await exchange(wrapped, slash)).body == b"call 1"


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("", "/orders"),
        ("/", "/orders"),
        ("/api", "/api/orders"),
        ("/api", "/orders"),
        ("/ord", "/orders"),
        ("/orders", "/orders/orders"),
    ],
)
async def test_a_route_is_below_where_the_application_is_mounted(
    url: str, root_path: str, path: str
) -> None:
    durable, app = Durable(url, idempotency_routes={"/orders": NEEDS_KEY}), App()
    async with durable:
        scope = http_scope("POST", path, root_path=root_path)

        assert is_missing(await exchange(durable.wrap(app), scope))


async def test_the_first_route_that_fits_counts(url: str) -> None:
    routes = {"/orders/free": None, "/orders/{id}": NEEDS_KEY}
    durable, app = Durable(url, idempotency_routes=routes), App()
    wrapped = durable.wrap(app)
    async with durable:
        for number in (1, 2):
            free = await exchange(wrapped, keyed(path="/orders/free"))
            assert free.body == f"call {number}".encode()
            assert free.headers("durable-id") == []
        assert is_missing(await exchange(wrapped, http_scope("POST", "/orders/7")))
        # No route is for it: the application's policy.
        others = [await exchange(wrapped, keyed(path="/other")) for _ in range(2)]

    assert [other.body for other in others] == [b"call 3"] * 2


async def test_a_route_may_cover_a_method_that_the_default_does_not(url: str) -> None:
    routes = {"PUT /orders/{id}": IdempotencyPolicy(), "/carts": NEEDS_KEY_TO_PUT}
    durable, app = Durable(url, idempotency_routes=routes), App()
    wrapped = durable.wrap(app)
    async with durable:
        puts = [await exchange(wrapped, keyed(method="PUT", path="/orders/7")) for _ in range(2)]
        elsewhere = [await exchange(wrapped, keyed(method="PUT", path="/x")) for _ in range(2)]

        assert is_missing(await exchange(wrapped, http_scope("PUT", "/carts")))
        assert (await exchange(wrapped, http_scope("POST", "/carts"))).body == b"call 4"
    assert [put.body for put in puts] == [b"call 1"] * 2
    assert [put.body for put in elsewhere] == [b"call 2", b"call 3"]


async def test_a_method_that_its_route_does_not_cover_is_the_apps(url: str) -> None:
    routes = {"/carts": NEEDS_KEY_TO_PUT, "DELETE /carts": NEEDS_KEY}
    durable, app = Durable(url, idempotency_routes=routes), App()
    async with durable:
        posts = [await exchange(durable.wrap(app), keyed(path="/carts")) for _ in range(2)]
        assert is_missing(await exchange(durable.wrap(app), http_scope("DELETE", "/carts")))

    assert [post.body for post in posts] == [b"call 1", b"call 2"]


async def test_a_handler_has_its_policy_where_no_route_fits(durable: Durable) -> None:
    asked, app = [], App()

    def find(scope) -> IdempotencyPolicy | None:
        asked.append((scope["method"], scope["path"]))
        return NEEDS_KEY_TO_PUT if scope["path"] == "/own" else None

    wrapped = IdempotencyMiddleware(app, durable.engine, routes={"/a": None}, find_policy=find)

    assert is_missing(await exchange(wrapped, http_scope("PUT", "/own")))
    assert (await exchange(wrapped, keyed(path="/own"))).body == b"call 1"
    assert (await exchange(wrapped, keyed(path="/a"))).body == b"call 2"
    assert (await exchange(wrapped, keyed(method="PUT"))).body == b"call 3"
    assert [(await exchange(wrapped, keyed())).body for _ in "ab"] == [b"call 4"] * 2
    await exchange(wrapped, keyed(method="GET", path="/own"))
    assert asked == [("PUT", "/own"), ("POST", "/own"), ("PUT", "/"), ("POST", "/"), ("POST", "/")]


async def test_where_the_policy_cannot_be_found_nothing_runs(durable: Durable) -> None:
    app = App()

    def find(scope) -> IdempotencyPolicy | None:
        raise LookupError(scope["path"])

    wrapped = IdempotencyMiddleware(app, durable.engine, find_policy=find)
    refused = await exchange(wrapped, keyed())
    read = await exchange(wrapped, http_scope("GET"))

    assert (refused.status, json.loads(refused.body)["code"]) == (500, "POLICY_FAILED")
    assert (read.body, app.calls) == (b"call 1", 1)


async def test_the_status_of_a_routes_request_is_where_the_applications_are(url: str) -> None:
    routes = {"/orders": IdempotencyPolicy(status_prefix="/elsewhere", async_after=0.0)}
    durable = Durable(url, idempotency_routes=routes)
    wrapped = durable.wrap(App())
    async with durable:
        accepted = await exchange(wrapped, keyed(path="/orders"))
        (location,) = accepted.headers("location")
        page = await exchange(wrapped, http_scope("GET", location))

    assert location.startswith("/durable/requests/")
    assert page.status in (200, 303)


@pytest.mark.parametrize(
    "route",
    ["", "orders", "post /orders", "POST orders", "POST/orders", "/a b", "POST /a POST /b"],
)
def test_a_route_that_is_no_path_is_refused(url: str, route: str) -> None:
    durable = Durable(url, idempotency_routes={route: None})
    with pytest.raises(DurableUsageError, match="a route is a path"):
        durable.wrap(App())


@pytest.mark.parametrize("path", ["/{}", "/{a", "/a}", "/a}/{b}", "/{id:int}", "/{1}", "/{{a}}"])
def test_a_parameter_that_cannot_be_read_is_refused(url: str, path: str) -> None:
    durable = Durable(url, idempotency_routes={path: NEEDS_KEY})
    with pytest.raises(DurableUsageError, match="parameter"):
        durable.wrap(App())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_a_route_of_a_method_that_changes_nothing_is_refused(url: str, method: str) -> None:
    durable = Durable(url, idempotency_routes={f"{method} /orders": IdempotencyPolicy()})
    with pytest.raises(DurableUsageError, match=method):
        durable.wrap(App())
