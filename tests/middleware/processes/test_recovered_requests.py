"""Requests with ``recover="server"``: they are resumed without their client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.asgi import Exchange, answer, exchange, keyed, read_all
from support.executors import beats, query, until
from support.interruption import Gate
from support.lifespan import lifespan
from support.telemetry.spans import Spans, links_by_kind, span_id

from asgi_durable import Durable, IdempotencyPolicy, ResumedRequest
from asgi_durable_starlette import install

pytestmark = pytest.mark.anyio

ON_SERVER = IdempotencyPolicy(recover="server")
REQUESTS = (
    "SELECT state, attempts, executor_id FROM asgi_durable_workflows WHERE fingerprint IS NOT NULL"
)
HEADERS = [
    ("Authorization", "Bearer secret"),
    ("Cookie", "session=secret"),
    ("Proxy-Authorization", "Basic secret"),
    ("Connection", "X-Hop, close"),
    ("X-Hop", "secret"),
    ("X-Kept", "one"),
    ("X-Kept", "two"),
]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Process:
    """A process that serves an app; it waits at a gate between its two steps.

    Attributes:
        seen: The scopes and bodies that the app was called with.
        steps: Which steps ran here.
    """

    def __init__(
        self,
        url: str,
        policy: IdempotencyPolicy = ON_SERVER,
        *,
        waits: bool = False,
        **options: Any,
    ) -> None:
        self.durable = Durable(url, idempotency=policy, drain_timeout=0.0, **options)
        self.url = url
        self.seen: list[tuple[dict[str, object], bytes]] = []
        self.steps: list[int] = []
        self.status = 201
        self.gate = Gate()
        if not waits:
            self.gate.open()

        @self.durable.step(name="step")
        async def step(number: int) -> int:
            self.steps.append(number)
            return number

        async def serve(scope, receive, send) -> None:
            if scope["type"] == "lifespan":
                scope["state"]["opened"] = "in the lifespan"
                await _live(receive, send)
                return
            self.seen.append((dict(scope), await read_all(receive)))
            scope["path"] = "/changed"
            await step(0)
            await step(1)
            # Whatever a stop does, both are recorded.
            await self.gate.wait()
            await answer(send, b"done", status=self.status)

        self.serve = serve
        self.app = self.durable.wrap(serve)

    def living(self) -> contextlib.AbstractAsyncContextManager[None]:
        return lifespan(self.app)

    async def is_answered(self) -> None:
        async def is_done() -> bool:
            return [state for state, *_ in await query(self.url, REQUESTS)] == ["SUCCESS"]

        await until(is_done)


async def _live(receive, send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _is_left(url: str) -> bool:
    return [owner for *_, owner in await query(url, REQUESTS)] == [None]


async def interrupted(process: Process, headers: object = HEADERS, **more: object) -> Exchange:
    """Send a request to a process that stops in the midst of it."""
    async with process.living():
        request = keyed("k", "/orders/book", headers, query_string=b"a=%20", **more)
        call = asyncio.create_task(exchange(process.app, request, b'{"a": 1}'))
        await process.gate.reached.wait()
    return await call


def retry(headers: object = HEADERS, **more: object) -> object:
    return keyed("k", "/orders/book", headers, query_string=b"a=%20", **more)


async def test_another_process_responds_without_the_client(url: str) -> None:
    here, there = Process(url, waits=True), Process(url)

    gone = await interrupted(here)
    async with there.living():
        await there.is_answered()
        again = await exchange(there.app, retry(), b'{"a": 1}')

    assert gone.status == 503
    assert (here.steps, there.steps) == ([0, 1], [])
    assert (again.status, again.body) == (201, b"done")
    assert again.headers("idempotent-replayed") == ["true"]
    assert len(there.seen) == 1


async def test_its_span_is_linked_to_the_request_that_its_client_has_sent(url: str) -> None:
    first, second = Spans(), Spans(summary_span=True)
    here = Process(url, waits=True, telemetry=first.telemetry)
    there = Process(url, telemetry=second.telemetry)

    await interrupted(here)
    async with there.living():
        await until(lambda: any(span.name.startswith("durable.run ") for span in second.ended))

    (run,) = [span for span in second.ended if span.name.startswith("durable.run ")]
    (summary,) = [span for span in second.ended if span.name.startswith("durable.workflow ")]
    sent = span_id(first.take("POST"))
    assert links_by_kind(run) == {"origin": sent, "previous": sent}
    for span in (run, summary):
        assert (span.attributes or {})["durable.outcome"] == "SUCCESS"


async def test_the_app_gets_the_request_as_it_was_but_for_who_sent_it(url: str) -> None:
    here, there = Process(url, waits=True), Process(url)

    await interrupted(here, raw_path=b"/orders%2Fbook", root_path="")
    async with there.living():
        await there.is_answered()

    (first, first_body), (scope, body) = *here.seen, *there.seen
    same = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path")
    for name in (*same, "query_string", "client", "server"):
        assert scope[name] == first[name], name
    assert body == first_body == b'{"a": 1}'
    assert scope["headers"] == [
        (b"idempotency-key", b"k"),
        (b"x-kept", b"one"),
        (b"x-kept", b"two"),
        (b"x-request-id", first["asgi_durable.request"].request_id.encode()),
    ]
    assert scope["state"] == {"opened": "in the lifespan"}
    assert scope["asgi_durable"] == ResumedRequest(principal=None)
    assert "asgi_durable" not in first


async def test_credentials_are_not_in_the_database(url: str) -> None:
    here = Process(url, waits=True)

    await interrupted(here)

    ((kept,),) = await query(
        url, "SELECT input FROM asgi_durable_workflows WHERE fingerprint IS NOT NULL"
    )
    assert b"X-Kept".lower() in kept
    for name in (b"secret", b"authorization", b"cookie", b"x-hop"):
        assert name not in bytes(kept).lower()


async def test_the_app_gets_the_requests_principal(url: str) -> None:
    policy = replace(ON_SERVER, principal=lambda scope: "ann")
    here, there = Process(url, policy, waits=True), Process(url, policy)

    await interrupted(here)
    async with there.living():
        await there.is_answered()

    assert there.seen[0][0]["asgi_durable"] == ResumedRequest(principal="ann")


async def test_by_default_it_waits_for_its_client(url: str) -> None:
    here, there = Process(url, IdempotencyPolicy(), waits=True), Process(url)

    await interrupted(here)
    assert await query(url, "SELECT count(input) FROM asgi_durable_workflows") == [(0,)]
    async with there.living():
        await beats(there.durable, 3)
        assert there.seen == []
        own = await exchange(there.app, retry(), b'{"a": 1}')

    assert (own.status, own.headers("idempotent-replayed")) == (201, [])


async def test_a_route_of_its_own_may_continue(url: str) -> None:
    here, there = Process(url, IdempotencyPolicy(), waits=True), Process(url, IdempotencyPolicy())
    for process in (here, there):
        process.durable.idempotency_routes = {"POST /orders/{name}": ON_SERVER}
        process.app = process.durable.wrap(process.serve)

    await interrupted(here)
    async with there.living():
        await there.is_answered()

    assert len(there.seen) == 1


async def test_one_that_fails_waits_for_its_client_without_another_attempt(url: str) -> None:
    here, there = Process(url, waits=True), Process(url)
    there.status = 503

    await interrupted(here)
    async with there.living():
        await until(lambda: _is_left(url))
        await beats(there.durable, 3)
    later = Process(url)
    async with later.living():
        await beats(later.durable, 3)
        assert later.seen == []
        own = await exchange(later.app, retry(), b'{"a": 1}')

    assert len(there.seen) == 1
    assert (own.status, own.headers("idempotent-replayed")) == (201, [])


async def test_one_that_is_the_clients_by_now_is_left_to_it(url: str) -> None:
    here, there = Process(url, waits=True), Process(url, IdempotencyPolicy())

    await interrupted(here)
    async with there.living():
        await until(lambda: _is_left(url))

    assert there.seen == []


async def test_an_app_without_a_lifespan_continues_with_it_too(url: str) -> None:
    here, there = Process(url, waits=True), Process(url)

    async def serve(scope, receive, send) -> None:
        assert scope["type"] == "http"
        await there.serve(scope, receive, send)

    await interrupted(here)
    async with lifespan(there.durable.wrap(serve)):
        await there.is_answered()

    assert there.seen[0][0]["state"] == {}


async def test_an_app_that_cannot_start_gets_nothing(url: str) -> None:
    there, servers = Process(url), []

    async def serve(scope, receive, send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})
        servers.append(there.durable.engine.request_servers.only)

    with pytest.raises(AssertionError, match=r"startup\.failed"):
        async with lifespan(there.durable.wrap(serve)):
            pass
    await until(lambda: servers)

    assert servers == [None]


async def test_what_is_sent_before_the_app_has_started_waits_for_its_client(url: str) -> None:
    here = Process(url, waits=True)

    async with here.durable:
        call = asyncio.create_task(exchange(here.app, retry(), b'{"a": 1}'))
        await here.gate.reached.wait()
        assert await query(url, "SELECT count(input) FROM asgi_durable_workflows") == [(0,)]
    await call


async def test_a_process_that_serves_no_app_leaves_it(url: str) -> None:
    here, worker, there = Process(url, waits=True), Process(url), Process(url)

    await interrupted(here)
    async with worker.durable:
        await beats(worker.durable, 3)
        assert worker.seen == []
        async with there.living():
            await there.is_answered()

    assert (len(worker.seen), len(there.seen)) == (0, 1)


async def test_a_process_with_two_apps_leaves_it_to_its_client(url: str) -> None:
    here, there = Process(url, waits=True), Process(url)
    other = there.durable.wrap(there.serve)

    await interrupted(here)
    async with there.living(), lifespan(other):
        await beats(there.durable, 3)
        assert there.seen == []


async def test_what_kills_its_processes_is_left_to_its_client(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Process(url, waits=True), Process(url)

    await interrupted(here)
    monkeypatch.setattr("asgi_durable.engine.requests.server_recovery.MAX_CRASHES", -1)
    async with there.living():
        await until(lambda: _is_left(url))
        own = await exchange(there.app, retry(), b'{"a": 1}')

    assert (len(there.seen), own.status) == (1, 201)


async def test_attempts_count_as_those_of_the_client_do(url: str) -> None:
    policy = replace(ON_SERVER, max_attempts=1)
    here, there = Process(url, policy, waits=True), Process(url, policy)

    await interrupted(here)
    async with there.living():
        await there.is_answered()
        again = await exchange(there.app, retry(), b'{"a": 1}')

    assert there.seen == []
    assert (again.status, b"ATTEMPTS_EXHAUSTED" in again.body) == (500, True)


async def test_behind_starlette_a_request_has_its_app_and_what_the_lifespan_opened(
    url: str,
) -> None:
    here, there = Shop(url, waits=True), Shop(url)

    await interrupted(here)
    async with there.living():
        await there.is_answered()
        again = await exchange(there.app, retry(), b'{"a": 1}')

    assert again.status == 200
    assert again.body == b'{"name":"book","app":true,"opened":"by the app","resumed":true}'


class Shop(Process):
    """A Starlette application with the adapter."""

    def __init__(self, url: str, *, waits: bool = False) -> None:
        super().__init__(url, waits=waits)

        async def order(request: Request) -> JSONResponse:
            await request.json()
            await self.gate.wait()
            return JSONResponse(
                {
                    "name": request.path_params["name"],
                    "app": request.app is app,
                    "opened": request.state.opened,
                    "resumed": request.scope["asgi_durable"].resumed,
                }
            )

        @asynccontextmanager
        async def opening(_: Starlette) -> AsyncIterator[dict[str, str]]:
            yield {"opened": "by the app"}

        app = Starlette(routes=[Route("/orders/{name}", order, methods=["POST"])], lifespan=opening)
        install(app, self.durable)
        self.app = app
