"""Requests that an earlier version has claimed: their retries are the same requests."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.asgi import Exchange, answer, exchange, keyed, read_all
from support.executors import query
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import Scope
from asgi_durable.middleware.fingerprints.former_fingerprint import FormerHash, former_fingerprint
from asgi_durable.middleware.fingerprints.json_members import JsonPointer

pytestmark = pytest.mark.anyio

JSON = [("content-type", "application/json")]
ORDER, REORDERED = b'{"item": 1, "at": 2}', b'{"at":2,"item":1}'
POINTED = [JsonPointer("/item")]
LONG = [b"x" * 700] * 5


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def make_former(url: str, fingerprint: str) -> None:
    """Let the only request be one that an earlier version has claimed."""
    await query(
        url,
        f"UPDATE asgi_durable_workflows SET fingerprint = '{fingerprint}' RETURNING workflow_id",
    )


class Shop:
    """An application that counts its calls, and fails in the first ones if it is to.

    Attributes:
        calls: How often it was called.
        failures: How often it fails still.
        gate: Where it waits.
    """

    def __init__(self, url: str, **policy) -> None:
        self.durable = Durable(url, idempotency=IdempotencyPolicy(**policy))
        self._app = self.durable.wrap(self._serve)
        self.calls = self.failures = 0
        self.gate = Gate()
        self.gate.open()

    async def post(self, body: bytes | list[bytes] = ORDER, scope: Scope | None = None) -> Exchange:
        chunks = [body] if isinstance(body, bytes) else body
        return await exchange(self._app, scope or keyed(headers=JSON), chunks=chunks)

    async def _serve(self, _scope, receive, send) -> None:
        self.calls += 1
        await self.gate.wait()
        body = await read_all(receive)
        status = 500 if self.failures else 201
        self.failures = max(0, self.failures - 1)
        await answer(send, b"%d bytes" % len(body), status=status)


def code_of(result: Exchange) -> str:
    code: str = json.loads(result.body)["code"]
    return code


@pytest.mark.parametrize("single_transaction", [False, True])
async def test_the_retry_of_a_former_request_gets_the_response(
    url: str, single_transaction: bool
) -> None:
    shop = Shop(url, single_transaction=single_transaction)
    async with shop.durable:
        first = await shop.post()
        await make_former(url, former_fingerprint(keyed(headers=JSON), ORDER, None))
        again, other = await shop.post(REORDERED), await shop.post(b"{}")

    assert (again.status, again.body) == (201, first.body)
    assert (other.status, code_of(other), shop.calls) == (422, "KEY_REUSED", 1)


async def test_a_former_request_is_compared_as_strictly_as_it_was(url: str) -> None:
    shop = Shop(url)
    spelled = keyed(headers=[("content-type", "Application/JSON")])
    async with shop.durable:
        await shop.post()
        assert (await shop.post(scope=spelled)).status == 201
        await make_former(url, former_fingerprint(keyed(headers=JSON), ORDER, None))

        assert code_of(await shop.post(scope=spelled)) == "KEY_REUSED"


async def test_a_former_request_that_failed_is_continued(url: str) -> None:
    shop = Shop(url)
    shop.failures = 1
    async with shop.durable:
        assert (await shop.post()).status == 500
        await make_former(url, former_fingerprint(keyed(headers=JSON), ORDER, None))
        refused, again, replayed = [await shop.post(body) for body in (b"{}", ORDER, REORDERED)]

    assert (code_of(refused), again.status, replayed.body) == ("KEY_REUSED", 201, again.body)
    assert shop.calls == 2


async def test_a_former_request_that_runs_elsewhere_is_waited_for(url: str) -> None:
    here, there = Shop(url), Shop(url, max_wait=60.0)
    here.gate = Gate()
    async with here.durable, there.durable, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(here.post())
        await here.gate.reached.wait()
        await make_former(url, former_fingerprint(keyed(headers=JSON), ORDER, None))
        other = await there.post(b"{}")
        duplicate = tasks.create_task(there.post(REORDERED))
        here.gate.open()

    assert code_of(other) == "KEY_REUSED"
    assert duplicate.result().body == first.result().body
    assert there.calls == 0


async def test_the_members_that_counted_count_in_a_former_request(url: str) -> None:
    shop = Shop(url, fingerprint=["/item"])
    async with shop.durable:
        await shop.post()
        await make_former(url, former_fingerprint(keyed(headers=JSON), ORDER, POINTED))
        again = await shop.post(b'{"item": 1, "at": 3}')
        other = await shop.post(b'{"item": 2, "at": 2}')

    assert (again.status, code_of(other), shop.calls) == (201, "KEY_REUSED", 1)


@pytest.mark.parametrize("fails", [False, True])
async def test_the_long_body_of_a_former_request_is_compared_as_it_was(
    url: str, fails: bool
) -> None:
    shop = Shop(url, max_request_body=1024, oversize="hash")
    shop.failures = int(fails)
    hashing = FormerHash(keyed(headers=JSON))
    hashing.add(b"".join(LONG))
    async with shop.durable:
        await shop.post(LONG)
        await make_former(url, hashing.fingerprint())
        other = await shop.post([*LONG, b"y"])
        again = await shop.post(LONG)
        at_once = await shop.post(b"".join(LONG))

    assert (code_of(other), again.status, again.body) == ("KEY_REUSED", 201, b"3500 bytes")
    assert (at_once.body, shop.calls) == (again.body, 1 + int(fails))
