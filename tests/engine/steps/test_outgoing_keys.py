"""The hook of httpx: requests that a step sends have the step's idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from support.threads import in_thread

from asgi_durable import Durable, RetryPolicy

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(max_attempts=3, initial_interval=0.0)
URL = "https://pay.example/charges"


class Service:
    """A payment service that records the keys that it gets.

    Args:
        durable: The instance whose hook its clients have.
        fails: The number of first requests that get a 503.
    """

    def __init__(self, durable: Durable, *, fails: int = 0) -> None:
        self.keys: list[str | None] = []
        self._fails = fails
        self._hooks = {"request": [durable.add_idempotency_key]}

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("Idempotency-Key"))
        if len(self.keys) <= self._fails:
            return httpx.Response(503)
        is_moved = request.url.path == "/moved"
        return httpx.Response(307, headers={"location": URL}) if is_moved else httpx.Response(200)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.MockTransport(self._respond)
        return httpx.AsyncClient(
            transport=transport, event_hooks=self._hooks, follow_redirects=True
        )

    def blocking_client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self._respond), event_hooks=self._hooks)


@pytest.fixture
def service(durable: Durable) -> Service:
    return Service(durable)


async def test_a_step_sends_its_key(durable: Durable, service: Service) -> None:
    @durable.step
    async def pay() -> str:
        async with service.client() as client:
            await client.post(URL)
            await client.patch(URL)
        return durable.idempotency_key_for_step()

    @durable.workflow
    async def buy() -> list[str]:
        return [await pay(), await pay()]

    first, second = await buy()

    assert service.keys == [first, f"{first}-2", second, f"{second}-2"]


async def test_another_try_of_a_step_sends_the_same_keys(durable: Durable) -> None:
    service = Service(durable, fails=3)

    @durable.step(retry=QUICK)
    async def pay() -> str:
        async with service.client() as client:
            await client.post(URL)
            (await client.post(URL)).raise_for_status()
        return durable.idempotency_key_for_step()

    @durable.workflow
    async def buy() -> str:
        return await pay()

    key = await buy()

    assert service.keys == [key, f"{key}-2"] * 2


async def test_requests_that_a_step_sends_at_once_have_different_keys(
    durable: Durable, service: Service
) -> None:
    @durable.step
    async def pay() -> None:
        async with service.client() as client:
            await asyncio.gather(*(client.post(URL) for _ in range(3)))

    @durable.workflow
    async def buy() -> None:
        await pay()

    await buy()

    assert len({*service.keys}) == 3


async def test_code_that_is_not_async_sends_its_key(durable: Durable) -> None:
    service = Service(durable, fails=2)

    @durable.step(retry=QUICK)
    def pay() -> str:
        with service.blocking_client() as client:
            client.post(URL)
            client.post(URL).raise_for_status()
        return durable.idempotency_key_for_step()

    @durable.workflow
    def buy() -> str:
        return pay()

    key = await in_thread(buy)

    assert service.keys == [key, f"{key}-2"] * 2


@pytest.mark.parametrize("is_inside", [True, False])
async def test_a_transaction_sends_the_key_of_its_place(
    durable: Durable, service: Service, is_inside: bool
) -> None:
    @durable.transaction
    async def note() -> str:
        async with service.client() as client:
            await client.post(URL)
        return durable.idempotency_key_for_step()

    @durable.step
    async def pay() -> str:
        async with service.client() as client:
            await client.post(URL)
        return await note()

    @durable.workflow
    async def buy() -> str:
        return await (pay if is_inside else note)()

    key = await buy()

    assert service.keys == ([key, f"{key}-2"] if is_inside else [key])


async def test_what_has_no_place_in_a_log_is_left_alone(durable: Durable, service: Service) -> None:
    async def send() -> None:
        async with service.client() as client:
            await client.post(URL)

    await send()
    await durable.step(send)()
    await durable.transaction(name="plain")(_another(send))()
    await durable.workflow(name="between steps")(_another(send))()

    assert service.keys == [None] * 4


def _another(function: Callable[..., object]) -> Callable[..., object]:
    async def call() -> None:
        await function()

    return call


async def test_a_key_that_is_there_stays_and_safe_requests_get_none(
    durable: Durable, service: Service
) -> None:
    @durable.step
    async def pay() -> str:
        async with service.client() as client:
            await client.post(URL, headers={"idempotency-key": "own"})
            await client.get(URL)
            await client.put(URL)
            await client.post("https://pay.example/moved")
        return durable.idempotency_key_for_step()

    @durable.workflow
    async def buy() -> str:
        return await pay()

    key = await buy()

    # A redirect is the same request, sent on.
    assert service.keys == ["own", None, None, key, key]


async def test_another_instance_has_no_step_here(durable: Durable, sqlite_url: str) -> None:
    service = Service(Durable(f"{sqlite_url}-other"))

    @durable.step
    async def pay() -> None:
        async with service.client() as client:
            await client.post(URL)

    @durable.workflow
    async def buy() -> None:
        await pay()

    await buy()

    assert service.keys == [None]
