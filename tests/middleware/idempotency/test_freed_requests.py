"""Finished keyed requests leave no objects that only the garbage collector could free."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from support.asgi import answer, exchange, keyed

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import Receive, Scope, Send

pytestmark = pytest.mark.anyio
REQUESTS = 20


@pytest.fixture
def collector() -> Iterator[None]:
    """No collection but those that a test asks for."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("is_single", [False, True], ids=["", "single transaction"])
@pytest.mark.parametrize("keys", [range(REQUESTS), [0] * REQUESTS], ids=["new", "replayed"])
async def test_a_request_that_is_over_is_no_circle(
    url: str, collector: None, keys: list[int], is_single: bool
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(single_transaction=is_single))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    wrapped = durable.wrap(app)
    async with durable:
        await exchange(wrapped, keyed("first"))
        gc.collect()
        collected = []

        for attempt in range(3):
            for key in keys:
                await exchange(wrapped, keyed(f"key-{attempt}-{key}"))
            collected.append(gc.collect())

        # Less than one object for each request: the event loop may have some of its own, and other
        # work of the process may end just then. Objects of requests would be left each time.
        assert min(collected) < REQUESTS
