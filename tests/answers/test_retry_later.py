"""Retries that come too soon; the table is that of docs/guide.md, "Requests with a key"."""

from __future__ import annotations

import asyncio
import datetime
import json
from email.utils import format_datetime

import pytest
import sqlalchemy as sa
from answers.expectations import is_failure, is_own, is_problem, is_replay
from answers.shop import ALL, Breakdown, Shop, requests, sold
from support.asgi import Exchange
from support.interruption import Gate

from asgi_durable import Durable

pytestmark = pytest.mark.anyio

SECONDS = 600
# More than any test takes.
LEAST_SECONDS = 300


def date(seconds: int) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return format_datetime(at, usegmt=True)


async def time_comes(url: str) -> None:
    """Let the retry of every request be due."""
    async with Durable(url) as durable:

        @durable.transaction
        async def update() -> None:
            sql = "UPDATE asgi_durable_workflows SET retry_at_us = 1 WHERE retry_at_us IS NOT NULL"
            await durable.session.execute(sa.text(sql))

        await update()


def is_too_soon(result: Exchange) -> None:
    """Check that a retry learns exactly when to come; this is no response of the request."""
    problem = is_problem(result, 503, "RETRY_LATER", retryable=True)
    assert LEAST_SECONDS < problem["retry_after"] <= SECONDS
    assert result.headers("idempotency-key") == ["k"]
    assert len(result.headers("durable-id")) == 1
    assert result.headers("idempotent-replayed") == []


def is_waiting(page: Exchange) -> None:
    """Check what the status page says of the request."""
    content = json.loads(page.body)
    assert (page.status, content["state"]) == (200, "RETRYABLE")
    assert LEAST_SECONDS < content["retry_after"] <= SECONDS
    assert page.headers("retry-after") == [str(content["retry_after"])]


@pytest.mark.parametrize("how", ["says seconds", "says a date", "answers 503", "raises"])
async def test_a_retry_that_comes_too_soon_is_refused_by_everybody(
    url: str, framework: str, how: str
) -> None:
    """Row 13 of the table, and row 12 after it."""
    said = {"says seconds": str(SECONDS), "says a date": date(SECONDS)}.get(how)
    policy = {} if said is not None else {"retry_delay": float(SECONDS)}
    shop, elsewhere = (Shop(url, framework, **policy) for _ in range(2))
    shop.script.status = 503
    shop.script.error = Breakdown() if how == "raises" else None
    shop.script.headers = {} if said is None else {"retry-after": said}
    async with shop.durable, elsewhere.durable:
        failed = await shop.post()
        for one in (shop, elsewhere):
            is_too_soon(await one.post())
            reused = await one.post(body=b"other")
            is_problem(reused, 422, "KEY_REUSED", retryable=False)
            is_waiting(await one.get(f"/durable/requests/{reused.headers('durable-id')[0]}"))
        assert await requests(url) == [("PENDING", 1)]
        await time_comes(url)

        own = await elsewhere.post()
        is_replay(await shop.post(), own)
    if how == "raises":
        is_failure(failed, 500)
    else:
        is_own(failed, 503)
        assert failed.headers("retry-after") == [said or str(SECONDS)]
    is_own(own, 201)
    assert (shop.ran, elsewhere.ran, shop.calls, await sold(url)) == (ALL, [], 1, 1)
    assert await requests(url) == [("SUCCESS", 2)]


async def test_a_duplicate_that_waits_gets_a_retry_time_if_the_first_one_fails(
    url: str, framework: str
) -> None:
    """Row 13 of the table, after row 10."""
    shop, elsewhere = Shop(url, framework, max_wait=30), Shop(url, framework, max_wait=30)
    shop.script.gate = gate = Gate()
    shop.script.status, shop.script.headers = 500, {"retry-after": str(SECONDS)}
    async with shop.durable, elsewhere.durable:
        first = asyncio.create_task(shop.post())
        await gate.reached.wait()
        duplicates = [asyncio.create_task(one.post()) for one in (shop, elsewhere)]
        gate.open()

        assert (await first).status == 500
        for duplicate in duplicates:
            is_too_soon(await duplicate)
    assert (shop.calls, elsewhere.calls) == (1, 0)


async def test_a_request_that_was_interrupted_is_resumed_at_once(url: str, framework: str) -> None:
    """Row 12 of the table, beside row 13."""
    shop, elsewhere = (Shop(url, framework, retry_delay=float(SECONDS)) for _ in range(2))
    shop.script.gate = gate = Gate()
    async with elsewhere.durable:
        async with shop.durable:
            first = asyncio.create_task(shop.post())
            await gate.reached.wait()
        is_problem(await first, 503, "WORKFLOW_INTERRUPTED", retryable=True)

        is_own(await elsewhere.post(), 201)
    assert (shop.ran, elsewhere.ran, await sold(url)) == (ALL[:2], ALL[1:], 1)
