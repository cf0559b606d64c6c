"""Keyed requests on several processes: any of them resumes what another one began."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from support.asgi import Exchange, answer, exchange, keyed
from support.executors import (
    PATIENCE_SECONDS,
    POLL_SECONDS,
    beats,
    declared_dead,
    executor_of,
    is_another,
    kill,
    query,
    until,
)
from support.interruption import Gate

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Shop:
    """An application in one process: a handler with a step, a child, and a step at a gate.

    Attributes:
        ran: The step bodies that have begun here, and the child's.
        gate: Where the last step waits.
        fails_at: Names of steps that raise here.
        skips: True to fail before anything is called.
    """

    def __init__(self, url: str, *, waits: bool = False) -> None:
        self.durable = durable = Durable(url, drain_timeout=0.0)
        self.app = durable.wrap(self._serve)
        self.ran: list[str] = []
        self.gate = Gate()
        if not waits:
            self.gate.open()
        self.fails_at: set[str] = set()
        self.skips = False

        @durable.step(name="step", retry=None)
        async def step(name: str) -> str:
            self.ran.append(name)
            if name in self.fails_at:
                raise ConnectionError(name)
            if name == "ship":
                await self.gate.wait()
            return name

        @durable.workflow(name="charge")
        async def charge(amount: int) -> str:
            self.ran.append("child")
            return await step(f"charge {amount}")

        self._step, self._charge = step, charge

    async def post(self, key: str = "k", body: bytes = b"{}", *, prefer: str = "") -> Exchange:
        """Send a keyed request to this process."""
        return await exchange(self.app, keyed(key, headers=[("Prefer", prefer)]), body)

    async def post_until(self, status: int) -> Exchange:
        """Send the same request again until it has this status."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (result := await self.post()).status != status:
                assert result.status in (409, 503), result.body
                await asyncio.sleep(POLL_SECONDS)
            return result

    async def _serve(self, scope, receive, send) -> None:
        if self.skips:
            await answer(send, b"not now", status=500)
            return
        done = [await self._step("reserve"), await self._charge(5), await self._step("ship")]
        await answer(send, json.dumps(done).encode(), status=201)


ALL = ["reserve", "charge 5", "ship"]
RAN = ["reserve", "child", "charge 5", "ship"]


def is_problem(result: Exchange, status: int, code: str) -> bool:
    problem = json.loads(result.body)
    return (result.status, problem["status"], problem["code"]) == (status, status, code)


# Responses


async def test_a_response_of_another_process_is_sent_again_byte_for_byte(url: str) -> None:
    first, second = Shop(url), Shop(url)
    async with first.durable, second.durable:
        one, other = await first.post(), await second.post()

    assert (other.status, other.body) == (one.status, one.body) == (201, json.dumps(ALL).encode())
    assert other.headers("idempotent-replayed") == ["true"]
    assert other.headers("durable-id") == one.headers("durable-id")
    assert second.ran == []


async def test_a_key_used_elsewhere_for_another_body_is_refused(url: str) -> None:
    first, second = Shop(url), Shop(url)
    async with first.durable, second.durable:
        await first.post()
        assert is_problem(await second.post(body=b'{"other": 1}'), 422, "KEY_REUSED")

    assert second.ran == []


async def test_a_request_that_runs_elsewhere_is_to_be_asked_for_later(url: str) -> None:
    first, second = Shop(url, waits=True), Shop(url)
    async with first.durable, second.durable:
        running = asyncio.ensure_future(first.post())
        await first.gate.reached.wait()
        refused = await second.post(prefer="wait=0")
        first.gate.open()

        assert is_problem(refused, 409, "IN_PROGRESS")
        assert int(refused.headers("retry-after")[0]) >= 1
        assert (await running).status == (await second.post()).status == 201
    assert second.ran == []


async def test_duplicates_on_all_processes_at_once_run_once(url: str) -> None:
    shops = [Shop(url), Shop(url)]
    async with shops[0].durable, shops[1].durable:
        results = await asyncio.gather(*(shop.post_until(201) for shop in shops for _ in range(5)))

    assert {result.body for result in results} == {json.dumps(ALL).encode()}
    assert sorted(shops[0].ran + shops[1].ran) == sorted(RAN)


# Resuming elsewhere


async def killed_at_the_gate(shop: Shop) -> None:
    """Send a request, and kill its process in the last step."""
    await shop.durable.engine.start()
    request = asyncio.ensure_future(shop.post())
    await shop.gate.reached.wait()
    await kill(shop.durable)
    await asyncio.wait([request])


async def test_a_request_whose_process_died_continues_with_its_retry_elsewhere(url: str) -> None:
    first, second = Shop(url, waits=True), Shop(url)
    async with second.durable:
        await killed_at_the_gate(first)
        result = await second.post_until(201)

    assert json.loads(result.body) == ALL
    assert first.ran == RAN
    assert second.ran == ["ship"]


async def test_a_request_whose_process_stopped_continues_with_its_retry_elsewhere(url: str) -> None:
    first, second = Shop(url, waits=True), Shop(url)
    async with second.durable:
        async with first.durable:
            request = asyncio.ensure_future(first.post())
            await first.gate.reached.wait()
        assert (await request).status == 503
        result = await second.post_until(201)

    assert json.loads(result.body) == ALL
    assert second.ran == ["ship"]


async def test_nobody_runs_a_request_without_its_client(url: str) -> None:
    first, second = Shop(url, waits=True), Shop(url)
    async with second.durable:
        await killed_at_the_gate(first)
        await beats(second.durable, 4)
        rows = await query(url, "SELECT state FROM asgi_durable_workflows WHERE name = 'POST /'")

    assert rows == [("PENDING",)]
    assert second.ran == []


@pytest.mark.parametrize(
    ("fails_at", "again"),
    [
        ("reserve", RAN),
        ("charge 5", ["child", "charge 5", "ship"]),
        ("ship", ["ship"]),
    ],
)
async def test_a_failed_request_continues_where_it_failed_on_any_process(
    url: str, fails_at: str, again: list[str]
) -> None:
    first, second = Shop(url), Shop(url)
    first.fails_at.add(fails_at)
    async with first.durable, second.durable:
        with pytest.raises(ConnectionError):
            await first.post()
        result = await second.post()

    assert (result.status, json.loads(result.body)) == (201, ALL)
    assert second.ran == again


async def test_a_child_that_a_retry_opened_again_and_left_holds_no_later_retry_up(
    url: str,
) -> None:
    first, second = Shop(url), Shop(url)
    first.fails_at.add("charge 5")
    async with first.durable, second.durable:
        with pytest.raises(ConnectionError):
            await first.post()
        # The retry fails before it comes to the child.
        first.fails_at.clear()
        first.skips = True
        assert (await first.post()).status == 500
        async with asyncio.timeout(PATIENCE_SECONDS):
            result = await second.post_until(201)

    assert json.loads(result.body) == ALL
    assert (first.ran + second.ran).count("charge 5") == 2


async def test_a_process_that_was_declared_dead_sends_the_new_owners_response(
    url: str,
) -> None:
    first, second = Shop(url, waits=True), Shop(url)
    async with first.durable, second.durable:
        old_id = executor_of(first.durable).id
        request = asyncio.ensure_future(first.post())
        await first.gate.reached.wait()
        async with declared_dead(first.durable):
            result = await second.post()
            assert json.loads(result.body) == ALL
            first.gate.open()

        late = await request
        assert (late.status, late.body) == (201, result.body)
        assert late.headers("idempotent-replayed") == ["true"]
        await is_another(first.durable, old_id)
        assert (await first.post("another")).status == 201

    assert first.ran == [*RAN, *RAN]
    assert second.ran == ["ship"]


async def test_a_process_that_was_declared_dead_continues_what_nobody_else_has(url: str) -> None:
    first, other = Shop(url, waits=True), Shop(url)
    async with first.durable, other.durable:
        old_id = executor_of(first.durable).id
        request = asyncio.ensure_future(first.post())
        await first.gate.reached.wait()
        async with declared_dead(first.durable):
            pass
        await is_another(first.durable, old_id)
        first.gate.open()

        late = await request
        assert (late.status, json.loads(late.body)) == (201, ALL)
        assert late.headers("idempotent-replayed") == []
        assert (await first.post()).body == late.body
    # The step at the gate was not recorded before.
    assert (first.ran, other.ran) == ([*RAN, "ship"], [])


async def test_a_new_request_on_a_process_that_was_declared_dead_is_not_lost(url: str) -> None:
    first, second = Shop(url), Shop(url)
    async with first.durable, second.durable:
        async with declared_dead(first.durable):
            request = asyncio.ensure_future(first.post())
            await asyncio.wait([request], timeout=0.2)
        assert (await request).status in (201, 503)

        assert (await first.post_until(201)).status == 201
    assert first.ran == RAN


# Children


class Client:
    """A resource that a framework makes anew for every handler."""


def injected_child(
    url: str, gate: Gate, ran: list[str], name: str
) -> tuple[Durable, Callable[[], Awaitable[Exchange]]]:
    """Return a process whose keyed handler calls a child with a parameter of its framework's."""
    durable = Durable(url, drain_timeout=0.0)
    durable.engine.registry.injection.add(lambda _, hint: hint is Client)

    @durable.step(name="step")
    async def step(number: int) -> int:
        ran.append(f"{name} {number}")
        if number == 1:
            await gate.wait()
        return number

    @durable.workflow(name="child")
    async def child(client: Client) -> list[int]:
        assert isinstance(client, Client)
        return [await step(0), await step(1)]

    async def serve(scope, receive, send) -> None:
        await answer(send, json.dumps(await child(Client())).encode())

    wrapped = durable.wrap(serve)
    return durable, lambda: exchange(wrapped, keyed(), b"{}")


async def test_a_child_that_needs_its_request_waits_for_the_retry_on_any_process(
    url: str,
) -> None:
    ran: list[str] = []
    opened = Gate()
    opened.open()
    gate = Gate()
    first, post_first = injected_child(url, gate, ran, "first")
    second, post_second = injected_child(url, opened, ran, "second")
    async with second:
        await first.engine.start()
        request = asyncio.ensure_future(post_first())
        await gate.reached.wait()
        await kill(first)
        await asyncio.wait([request])
        await beats(second, 4)
        sql = "SELECT state, attempts FROM asgi_durable_workflows WHERE name = 'child'"
        assert await query(url, sql) == [("PENDING", 1)]

        async with asyncio.timeout(PATIENCE_SECONDS):
            result = await post_second()
            while result.status == 409:
                await asyncio.sleep(POLL_SECONDS)
                result = await post_second()
        assert (result.status, json.loads(result.body)) == (200, [0, 1])
    assert ran == ["first 0", "first 1", "second 1"]


async def test_a_child_continues_without_the_client_and_the_retry_finds_it_done(url: str) -> None:
    ran: list[str] = []

    def build(name: str, gate: Gate) -> tuple[Durable, Callable[[], Awaitable[Exchange]]]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="step")
        async def step() -> str:
            ran.append(name)
            await gate.wait()
            return name

        @durable.workflow(name="child")
        async def child() -> str:
            return await step()

        async def serve(scope, receive, send) -> None:
            await answer(send, (await child()).encode())

        wrapped = durable.wrap(serve)
        return durable, lambda: exchange(wrapped, keyed(), b"{}")

    opened, gate = Gate(), Gate()
    opened.open()
    (first, post_first), (second, post_second) = build("first", gate), build("second", opened)
    async with second:
        await first.engine.start()
        request = asyncio.ensure_future(post_first())
        await gate.reached.wait()
        await kill(first)
        await asyncio.wait([request])

        async def is_finished() -> bool:
            sql = "SELECT state FROM asgi_durable_workflows WHERE name = 'child'"
            return await query(url, sql) == [("SUCCESS",)]

        await until(is_finished)
        assert ((await post_second()).status, ran) == (200, ["first", "second"])
