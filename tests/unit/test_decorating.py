"""Decorated functions, as code that inspects them sees them."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from asgi_durable import Durable

KINDS = ["workflow", "step", "transaction"]


@pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction.*:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_decorated_async_function_is_a_coroutine_function(url: str, kind: str) -> None:
    class Orders:
        @getattr(Durable(url), kind)
        async def place(self, number: int) -> str: ...

    for function in (Orders.place, Orders().place):
        assert inspect.iscoroutinefunction(function)
        assert asyncio.iscoroutinefunction(function)
    assert str(inspect.signature(Orders.place)) == "(self, number: 'int') -> 'str'"
    assert Orders.place.__name__ == "place"


@pytest.mark.anyio
async def test_its_place_is_given_out_when_it_is_called(durable: Durable) -> None:
    @durable.step
    async def number() -> int | None:
        return durable.step_id

    @durable.workflow
    async def work() -> list[int | None]:
        first, second = number(), number()
        return [await second, await first]

    assert await work() == [1, 0]
