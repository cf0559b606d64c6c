"""Requests that were cancelled; the table is that of docs/guide.md, "Requests with a key"."""

from __future__ import annotations

import asyncio
import json

import pytest
from answers.expectations import is_failure, is_own, is_problem
from answers.shop import ALL, Breakdown, Client, Shop, principal, requests, sold
from support.asgi import Exchange
from support.interruption import Gate

pytestmark = pytest.mark.anyio

ALICE, BOB = principal("alice"), principal("bob")


def is_cancelled(result: Exchange, request_id: str) -> None:
    """Check for the response to a cancelled request; it is no replay."""
    is_problem(result, 410, "CANCELLED", retryable=False)
    assert result.headers("idempotency-key") == ["k"]
    assert result.headers("durable-id") == [request_id]
    assert result.headers("location") == result.headers("idempotent-replayed") == []


async def id_of(shop: Shop) -> str:
    """Return the id of the one request that runs."""
    accepted = await shop.post(headers=[("Prefer", "respond-async, wait=0")])
    assert accepted.status == 202
    return accepted.headers("durable-id")[0]


async def test_a_request_is_cancelled_while_it_runs(url: str, framework: str) -> None:
    """Row 18 of the table."""
    shop, elsewhere = Shop(url, framework), Shop(url, framework)
    shop.script.gate = gate = Gate()
    async with shop.durable, elsewhere.durable:
        first = asyncio.create_task(shop.post())
        await gate.reached.wait()
        request_id = await id_of(shop)
        assert await shop.durable.cancel_workflow(request_id) is True

        is_cancelled(await first, request_id)
        for one in (shop, elsewhere):
            is_cancelled(await one.post(), request_id)
            reused = await one.post(body=b"other")
            is_problem(reused, 422, "KEY_REUSED", retryable=False)
            page = await one.get(f"/durable/requests/{request_id}")
            assert (page.status, json.loads(page.body)["state"]) == (200, "CANCELLED")
            assert page.headers("retry-after") == []
            result = await one.get(f"/durable/requests/{request_id}/result")
            is_problem(result, 410, "CANCELLED", retryable=False)
    assert (shop.ran, elsewhere.calls, await sold(url)) == (ALL[:2], 0, 0)
    assert await requests(url) == [("CANCELLED", 1)]


async def test_a_request_that_waits_for_its_retry_is_cancelled(url: str, framework: str) -> None:
    """Row 18 of the table."""
    shop, elsewhere = Shop(url, framework), Shop(url, framework)
    shop.script.error = Breakdown()
    async with shop.durable, elsewhere.durable:
        is_failure(await shop.post(), 500)
        shop.script.error = None
        page = await id_of_retryable(elsewhere, url)
        assert await elsewhere.durable.cancel_workflow(page) is True

        is_cancelled(await shop.post(), page)
        is_cancelled(await elsewhere.post(), page)
    assert (shop.ran, shop.calls, elsewhere.calls, await sold(url)) == (ALL, 1, 0, 1)


async def id_of_retryable(shop: Shop, url: str) -> str:
    reused = await shop.post(body=b"other")
    assert reused.status == 422
    assert await requests(url) == [("PENDING", 1)]
    return reused.headers("durable-id")[0]


async def test_another_process_cancels_and_the_client_that_waits_gets_a_response(
    url: str, framework: str
) -> None:
    """Row 18 of the table."""
    shop, elsewhere = Shop(url, framework), Shop(url, framework)
    shop.script.gate = gate = Gate()
    async with shop.durable, elsewhere.durable:
        first = asyncio.create_task(shop.post())
        await gate.reached.wait()
        request_id = await id_of(elsewhere)
        duplicate = asyncio.create_task(elsewhere.post(headers=[("Prefer", "wait=30")]))
        assert await elsewhere.durable.cancel_workflow(request_id) is True

        is_cancelled(await first, request_id)
        is_cancelled(await duplicate, request_id)
    assert (shop.ran, elsewhere.calls, await sold(url)) == (ALL[:2], 0, 0)


async def test_a_finished_request_is_not_cancelled(url: str, framework: str) -> None:
    """Row 14 of the table, beside row 18."""
    shop = Shop(url, framework)
    async with shop.durable:
        first = await shop.post()
        assert await shop.durable.cancel_workflow(first.headers("durable-id")[0]) is False
        again = await shop.post()

    is_own(first, 201)
    assert (again.status, again.body) == (201, first.body)


async def test_the_key_of_a_cancelled_request_is_free_in_the_end(url: str, framework: str) -> None:
    """Row 8 of the table, after row 18."""
    shop = Shop(url, framework, retention=0.0)
    shop.script.error = Breakdown()
    async with shop.durable:
        is_failure(await shop.post(), 500)
        shop.script.error = None
        await shop.durable.cancel_workflow(await id_of_retryable(shop, url))

        is_own(await shop.post(body=b"another order"), 201)
    assert (shop.ran, await sold(url)) == (ALL * 2, 2)


async def test_a_client_cancels_its_own_request(url: str, framework: str) -> None:
    """Rows 18 and 32 of the table."""
    shop = Shop(url, framework, client_may_cancel=True, methods=frozenset({"POST", "DELETE"}))
    shop.script.gate = gate = Gate()
    async with shop.durable:
        first = asyncio.create_task(shop.post(headers=ALICE))
        await gate.reached.wait()
        running = await shop.post(headers=[*ALICE, ("Prefer", "respond-async")])
        (path,) = running.headers("location")
        request_id = running.headers("durable-id")[0]
        for headers in (BOB, []):
            is_problem(
                await delete(shop, path, headers), 404, "WORKFLOW_NOT_FOUND", retryable=False
            )
        answers = [await delete(shop, path, ALICE) for _ in range(2)]

        is_cancelled(await first, request_id)
        is_cancelled(await shop.post(headers=ALICE), request_id)
        done = await finish_another(shop)
        refused = await delete(shop, f"/durable/requests/{done.headers('durable-id')[0]}", ALICE)
        unknown = await delete(shop, path[:-1] + ("b" if path[-1] == "a" else "a"), ALICE)
    assert [(one.status, one.body) for one in answers] == [(204, b"")] * 2
    is_problem(refused, 409, "REQUEST_FINISHED", retryable=False)
    is_problem(unknown, 404, "WORKFLOW_NOT_FOUND", retryable=False)
    assert await sold(url) == 1


async def finish_another(shop: Shop) -> Exchange:
    shop.script.gate.open()
    done = await shop.post(key="another", headers=ALICE)
    assert done.status == 201
    return done


async def delete(shop: Shop, path: str, headers: list[tuple[str, str]]) -> Exchange:
    return await shop.send_to(Client(b""), key=None, method="DELETE", path=path, headers=headers)


async def test_a_client_cancels_nothing_where_it_may_not(file_url: str, framework: str) -> None:
    """Row 32 of the table."""
    shop = Shop(file_url, framework)
    shop.script.error = Breakdown()
    async with shop.durable:
        is_failure(await shop.post(), 500)
        request_id = await id_of_retryable(shop, file_url)
        refused = await delete(shop, f"/durable/requests/{request_id}", [])

        assert await shop.state(await shop.post(body=b"other")) == "RETRYABLE"
    # It is the application's own, which has nothing there.
    assert refused.status in (404, 405) or shop.calls == 2
