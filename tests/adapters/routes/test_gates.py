"""A replay passes the checks that a first request passes."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import pytest
from litestar import Litestar, get, post
from litestar.config.allowed_hosts import AllowedHostsConfig
from litestar.config.csrf import CSRFConfig
from litestar.enums import RequestEncodingType
from litestar.params import Body
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin
from asgi_durable_starlette import install

KEY = {"Idempotency-Key": "k"}
CSRF = CSRFConfig(secret="s" * 32)
# The cookie of a CSRF token is no credential.
POLICY = IdempotencyPolicy(principal=lambda scope: "ann")


Form = Annotated[dict[str, str], Body(media_type=RequestEncodingType.URL_ENCODED)]
Upload = Annotated[dict[str, Any], Body(media_type=RequestEncodingType.MULTI_PART)]


@get("/")
async def page() -> str:
    return "page"


def litestar(url: str, calls: list[Any], **settings: Any) -> Litestar:
    @post("/orders")
    async def order() -> str:
        calls.append(1)
        return "ordered"

    @post("/forms")
    async def form(data: Form) -> str:
        calls.append(data["item"])
        return data["item"]

    @post("/files")
    async def upload(data: Upload) -> str:
        content: bytes = await data["file"].read()
        return content.decode()

    plugin = DurablePlugin(Durable(url, idempotency=POLICY))
    return Litestar([page, order, form, upload], plugins=[plugin], **settings)


def test_a_replay_needs_an_allowed_host(url: str) -> None:
    calls: list[Any] = []
    hosts = AllowedHostsConfig(allowed_hosts=["testserver.local"])
    with LitestarClient(litestar(url, calls, allowed_hosts=hosts)) as client:
        first = client.post("/orders", headers=KEY)
        replay = client.post("/orders", headers=KEY)
        refused = client.post("/orders", headers=KEY | {"Host": "evil.example"})
        unkeyed = client.post("/orders", headers={"Host": "evil.example"})

    assert (first.status_code, replay.headers["idempotent-replayed"]) == (201, "true")
    assert (refused.status_code, refused.content) == (unkeyed.status_code, unkeyed.content)
    assert (refused.status_code, calls) == (400, [1])


def test_a_replay_needs_a_csrf_token(url: str) -> None:
    calls: list[Any] = []
    with LitestarClient(litestar(url, calls, csrf_config=CSRF)) as client:
        cookies = client.get("/").headers.get_list("set-cookie")
        token = {"x-csrftoken": client.cookies["csrftoken"]}
        first = client.post("/orders", headers=KEY | token)
        replay = client.post("/orders", headers=KEY | token)
        refused = client.post("/orders", headers=KEY)

    assert len(cookies) == 1
    assert (first.status_code, replay.headers["idempotent-replayed"]) == (201, "true")
    assert (refused.status_code, calls) == (403, [1])


@pytest.mark.parametrize("is_keyed", [True, False])
def test_a_form_with_its_token_reaches_the_handler(url: str, is_keyed: bool) -> None:
    calls: list[Any] = []
    headers = KEY if is_keyed else {}
    with LitestarClient(litestar(url, calls, csrf_config=CSRF)) as client:
        client.get("/")
        form = {"_csrf_token": client.cookies["csrftoken"], "item": "pen"}
        first = client.post("/forms", data=form, headers=headers)
        again = client.post("/forms", data=form, headers=headers)
        other = client.post("/forms", data=form | {"item": "ink"}, headers=headers)

    assert (first.text, again.text) == ("pen", "pen")
    assert other.status_code == (422 if is_keyed else 201)
    assert calls == (["pen"] if is_keyed else ["pen", "pen", "ink"])


def test_an_upload_with_its_token_reaches_the_handler(url: str) -> None:
    with LitestarClient(litestar(url, [], csrf_config=CSRF)) as client:
        client.get("/")
        token = {"_csrf_token": client.cookies["csrftoken"]}
        answer = client.post("/files", data=token, files={"file": b"picture"}, headers=KEY)

    assert (answer.status_code, answer.content) == (201, b"picture")


def starlette(calls: list[Any], middleware: Middleware) -> Starlette:
    def order(_request: Any) -> PlainTextResponse:
        calls.append(1)
        return PlainTextResponse("ordered")

    return Starlette(routes=[Route("/orders", order, methods=["POST"])], middleware=[middleware])


TRUSTED = Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"])
HTTPS = Middleware(HTTPSRedirectMiddleware)


@pytest.mark.parametrize(
    ("middleware", "other", "status"),
    [(TRUSTED, "http://evil.example", 400), (HTTPS, "http://testserver", 307)],
)
def test_install_is_inside_of_an_applications_checks(
    url: str, middleware: Middleware, other: str, status: int
) -> None:
    calls: list[Any] = []
    app = starlette(calls, middleware)
    install(app, Durable(url, idempotency=POLICY))
    with TestClient(app, base_url="https://testserver") as client:
        client.post("/orders", headers=KEY)
        replay = client.post("/orders", headers=KEY)
        refused = client.post(f"{other}/orders", headers=KEY, follow_redirects=False)

    assert replay.headers["idempotent-replayed"] == "true"
    assert (refused.status_code, calls) == (status, [1])


def warnings_of(caplog: pytest.LogCaptureFixture, app: Any) -> list[str]:
    with TestClient(app):
        return [r.getMessage() for r in caplog.records if "The check" in r.getMessage()]


@pytest.mark.parametrize("middleware", [TRUSTED, HTTPS])
def test_a_check_below_wrap_is_warned_of(
    url: str, caplog: pytest.LogCaptureFixture, middleware: Middleware
) -> None:
    caplog.set_level(logging.WARNING)

    (line,) = warnings_of(caplog, Durable(url).wrap(starlette([], middleware)))

    assert middleware.cls.__name__ in line
    assert "put it around durable.wrap(app)" in line


def test_litestars_checks_below_wrap_are_warned_of(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Litestar([page], csrf_config=CSRF, allowed_hosts=["testserver"], logging_config=None)
    caplog.set_level(logging.WARNING)

    lines = warnings_of(caplog, Durable(url).wrap(app))

    assert sorted(line.split()[2] for line in lines) == ["AllowedHostsConfig", "CSRFConfig"]
