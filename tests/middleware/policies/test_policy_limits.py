"""How often, how long, and with what storage a request is served at all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from support.asgi import Exchange, answer, exchange, http_scope, keyed, read_all
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy

pytestmark = pytest.mark.anyio

ALLOWED = 2


def durable_with(url: str, **policy: object) -> Durable:
    return Durable(url, idempotency=IdempotencyPolicy(**policy), drain_timeout=0.0)


def problem(result: Exchange) -> dict[str, object]:
    assert result.headers("content-type") == ["application/problem+json"]
    return json.loads(result.body)


# How often


async def test_a_request_that_fails_too_often_has_a_final_response(database_url: str) -> None:
    durable, ran = durable_with(database_url, max_attempts=ALLOWED), []

    @durable.step
    async def step() -> None:
        ran.append("step")

    async def serve(scope, receive, send) -> None:
        ran.append("try")
        await step()
        await answer(send, b"busy", status=503)

    wrapped = durable.wrap(serve)
    async with durable:
        tries = [await exchange(wrapped, keyed()) for _ in range(ALLOWED)]
        last, again = [await exchange(wrapped, keyed()) for _ in range(2)]

    assert [(one.status, one.body) for one in tries] == [(503, b"busy")] * ALLOWED
    assert ran == ["try", "step", "try"]
    assert (last.status, problem(last)["code"]) == (500, "ATTEMPTS_EXHAUSTED")
    assert (problem(last)["retryable"], last.headers("retry-after")) == (False, [])
    assert (again.status, again.body) == (last.status, last.body)
    assert last.headers("idempotent-replayed") == ["true"]
    assert again.headers("idempotent-replayed") == ["true"]


async def test_an_interruption_is_an_attempt_as_well(url: str) -> None:
    durable, gate, ran = durable_with(url, max_attempts=1), Gate(), []

    async def serve(scope, receive, send) -> None:
        ran.append("try")
        await gate.wait()

    wrapped = durable.wrap(serve)
    async with durable:
        cut_off = asyncio.create_task(exchange(wrapped, keyed()))
        await gate.reached.wait()
    assert (await cut_off).status == 503
    async with durable:
        last = await exchange(wrapped, keyed())

    assert (problem(last)["code"], ran) == ("ATTEMPTS_EXHAUSTED", ["try"])


async def test_the_last_attempt_may_succeed(url: str) -> None:
    durable, statuses = durable_with(url, max_attempts=ALLOWED), [500, 201]

    async def serve(scope, receive, send) -> None:
        await answer(send, b"served", status=statuses.pop(0))

    wrapped = durable.wrap(serve)
    async with durable:
        results = [await exchange(wrapped, keyed()) for _ in range(3)]

    assert [result.status for result in results] == [500, 201, 201]


async def test_a_refusal_that_leaves_nothing_is_no_attempt(url: str) -> None:
    durable = durable_with(url, max_attempts=1)

    async def serve(scope, receive, send) -> None:
        await answer(send, b"no", status=404)

    wrapped = durable.wrap(serve)
    async with durable:
        assert [(await exchange(wrapped, keyed())).status for _ in range(3)] == [404] * 3


# How long


class Desk:
    """An application that waits at a gate."""

    def __init__(self, url: str, **policy: object) -> None:
        self.durable = durable_with(url, **policy)
        self.app = self.durable.wrap(self._serve)
        self.gate = Gate()
        self.calls = 0

    async def _serve(self, scope, receive, send) -> None:
        self.calls += 1
        await self.gate.wait()
        await answer(send, b"served", status=201)


async def get_until(status: int, desk: Desk, path: str) -> Exchange:
    async with asyncio.timeout(60):
        while (page := await exchange(desk.app, http_scope("GET", path))).status != status:
            await asyncio.sleep(0.01)
        return page


async def test_a_client_gets_a_location_without_asking_for_it(database_url: str) -> None:
    desk = Desk(database_url, async_after=0.05)
    async with desk.durable:
        accepted, duplicate = [await exchange(desk.app, keyed()) for _ in range(2)]
        (path,) = accepted.headers("location")
        desk.gate.open()
        done = await get_until(303, desk, path)
        result = await exchange(desk.app, http_scope("GET", done.headers("location")[0]))

    assert (accepted.status, duplicate.status, desk.calls) == (202, 202, 1)
    assert duplicate.headers("location") == [path]
    assert accepted.headers("preference-applied") == []
    assert accepted.is_complete
    assert (result.status, result.body) == (201, b"served")


async def test_a_response_in_time_is_sent_at_once(url: str) -> None:
    desk = Desk(url, async_after=60.0)
    desk.gate.open()
    async with desk.durable:
        assert (await exchange(desk.app, keyed())).status == 201


async def test_who_has_nowhere_to_look_waits(url: str) -> None:
    desk = Desk(url, async_after=0.0, status_prefix=None)
    async with desk.durable:
        call = asyncio.create_task(exchange(desk.app, keyed()))
        await desk.gate.reached.wait()
        desk.gate.open()

        assert (await call).status == 201


async def test_a_router_inside_does_not_change_where_to_look(url: str) -> None:
    durable, gate = durable_with(url, async_after=0.05), Gate()

    async def order(request: Request) -> Response:
        await gate.wait()
        return PlainTextResponse("ordered")

    routes = [Mount("/api", routes=[Route("/orders", order, methods=["POST"])])]
    wrapped = durable.wrap(Starlette(routes=routes))
    async with durable:
        accepted = await exchange(wrapped, keyed(path="/api/orders"))
        await gate.reached.wait()
        page = await exchange(wrapped, http_scope("GET", accepted.headers("location")[0]))
        gate.open()

    assert accepted.headers("location") == [f"/durable/requests/{json.loads(page.body)['id']}"]
    assert page.status == 200


@pytest.mark.parametrize(
    ("root_path", "mounted_at"), [("/", ""), ("/a/", "/a"), ("/ü b", "/%C3%BC%20b")]
)
async def test_where_to_look_is_a_path_that_a_client_can_use(
    url: str, root_path: str, mounted_at: str
) -> None:
    desk = Desk(url, async_after=0.0)
    async with desk.durable:
        accepted = await exchange(desk.app, keyed(root_path=root_path))
        desk.gate.open()

    (request_id,) = accepted.headers("durable-id")
    assert accepted.headers("location") == [f"{mounted_at}/durable/requests/{request_id}"]


# With what storage


class Till:
    """An application whose database can be locked, as by another program."""

    def __init__(self, url: str, path: Path, **policy: object) -> None:
        policy = {"on_store_error": "bypass", **policy}
        self.durable = Durable(
            f"{url}?busy_timeout=0.01",
            idempotency=IdempotencyPolicy(**policy),
            storage_patience=0.0,
        )
        self.app = self.durable.wrap(self._serve)
        self.seen: list[object] = []
        self.locks_at = 0
        self.saves_first = False
        self._path = path
        self._connection: sqlite3.Connection | None = None

        @self.durable.step
        async def step() -> str:
            return "step"

        @self.durable.transaction
        async def save() -> None: ...

        self._step, self._save = step, save

    def lock(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._connection.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    async def _serve(self, scope, receive, send) -> None:
        body = await read_all(receive)
        self.seen.append((self.durable.workflow_id is not None, body, await self._step()))
        if self.saves_first:
            # It begins only once what comes before it is durable, and so is its own record.
            await self._save()
        if len(self.seen) == self.locks_at:
            self.lock()
        await answer(send, f"call {len(self.seen)}".encode(), status=201)


@pytest.fixture
def till(url: str, tmp_path: Path) -> Till:
    return Till(url, tmp_path / "test.db")


def ignored(result: Exchange) -> bool:
    return result.headers("idempotency-status") == ["ignored"]


async def test_a_request_that_cannot_be_claimed_is_served_without_protection(till: Till) -> None:
    async with till.durable:
        with till.locked():
            served = [await exchange(till.app, keyed('"k"'), b"{}") for _ in range(2)]
        claimed, again = [await exchange(till.app, keyed(), b"{}") for _ in range(2)]

    assert [(one.status, one.body) for one in served] == [(201, b"call 1"), (201, b"call 2")]
    assert all(ignored(one) and one.is_complete for one in served)
    assert served[0].headers("idempotency-key") == ['"k"']
    assert till.seen == [(False, b"{}", "step")] * 2 + [(True, b"{}", "step")]
    assert (claimed.body, again.body) == (b"call 3", b"call 3")
    assert (ignored(claimed), ignored(again)) == (False, False)


async def test_a_response_that_cannot_be_committed_is_shown_and_says_so(till: Till) -> None:
    till.locks_at = 1
    async with till.durable:
        shown = await exchange(till.app, keyed(), b"{}")
        till.unlock()
        retry, again = [await exchange(till.app, keyed(), b"{}") for _ in range(2)]

    assert (shown.status, shown.body, ignored(shown)) == (201, b"call 1", True)
    assert shown.is_complete
    assert (retry.body, ignored(retry)) == (b"call 2", False)
    assert again.headers("idempotent-replayed") == ["true"]


async def test_a_response_that_its_durable_log_repeats_is_protected(till: Till) -> None:
    till.locks_at, till.saves_first = 1, True
    async with till.durable:
        shown = await exchange(till.app, keyed(), b"{}")
        till.unlock()

    assert (shown.status, shown.body, ignored(shown)) == (201, b"call 1", False)


async def test_what_an_unprotected_app_raises_reaches_the_server(url: str, tmp_path: Path) -> None:
    till = Till(url, tmp_path / "test.db")

    async def serve(scope, receive, send) -> None:
        raise LookupError

    wrapped = till.durable.wrap(serve)
    async with till.durable:
        with till.locked(), pytest.raises(LookupError):
            await exchange(wrapped, keyed())


async def test_a_key_that_is_wrong_is_refused_with_any_storage(till: Till) -> None:
    async with till.durable:
        with till.locked():
            assert (await exchange(till.app, keyed("a,b"))).status == 400
    assert till.seen == []


# Problem responses


async def test_a_problem_names_the_key_and_where_to_look(url: str) -> None:
    desk = Desk(url)
    async with desk.durable:
        first = asyncio.create_task(exchange(desk.app, keyed('"k 1"')))
        await desk.gate.reached.wait()
        duplicate = await exchange(desk.app, keyed('"k 1"', headers=[("Prefer", "wait=0")]))
        other = await exchange(desk.app, keyed('"k 1"', path="/other"))
        desk.gate.open()
        request_id = (await first).headers("durable-id")[0]

    location = f"/durable/requests/{request_id}"
    assert (problem(duplicate)["idempotency_key"], problem(duplicate)["instance"]) == (
        "k 1",
        location,
    )
    assert (problem(duplicate)["retry_after"], duplicate.headers("retry-after")) == (1, ["1"])
    assert (problem(other)["idempotency_key"], problem(other)["instance"]) == ("k 1", location)
    assert "retry_after" not in problem(other)


async def test_a_problem_names_the_key_where_the_storage_is_away(url: str, tmp_path: Path) -> None:
    till = Till(url, tmp_path / "test.db", on_store_error="reject")
    async with till.durable:
        with till.locked():
            refused = await exchange(till.app, keyed(), b"{}")

    assert (refused.status, problem(refused)["retry_after"]) == (503, 1)
    assert problem(refused)["idempotency_key"] == "k"
    assert refused.headers("location") == []


async def test_a_problem_has_no_instance_where_no_status_is_served(url: str) -> None:
    desk = Desk(url, status_prefix=None)
    desk.gate.open()
    async with desk.durable:
        await exchange(desk.app, keyed())
        other = await exchange(desk.app, keyed(path="/other"))

    assert problem(other)["idempotency_key"] == "k"
    assert "instance" not in problem(other)
