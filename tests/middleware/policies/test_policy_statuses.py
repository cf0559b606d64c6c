"""Statuses of the library's own responses, where a policy sets others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed
from support.executors import storage_of
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, IdempotencyPolicy, StorageUnavailableError
from asgi_durable.middleware.policies.openapi import problem_descriptions
from asgi_durable.middleware.policies.policy import DEFAULT_STATUSES
from asgi_durable.storage.writes import FinishWorkflow, Outcome, Write

pytestmark = pytest.mark.anyio

OTHER_STATUS = 418


class Desk:
    """An application whose every status of the library's own is another one than usual."""

    def __init__(self, url: str, **options: Any) -> None:
        statuses = dict.fromkeys(DEFAULT_STATUSES, OTHER_STATUS)
        policy = IdempotencyPolicy(statuses=statuses, **options)
        self.durable = Durable(url, idempotency=policy, storage_patience=0.0)
        self.app = self.durable.wrap(self._serve)
        self.gate = Gate()
        self.gate.open()
        self.status = 200
        self.work: Callable[[], Awaitable[None]] | None = None

    async def post(self, key: str = "k", body: bytes = b"{}") -> Exchange:
        return await exchange(self.app, keyed(key), body)

    async def _serve(self, scope, receive, send) -> None:
        await self.gate.wait()
        if self.work is not None:
            await self.work()
        await answer(send, b"x" * 9, status=self.status)


async def missing(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    return await exchange(desk.app, http_scope("POST", "/"), b"{}")


async def malformed(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    return await desk.post("a,b")


async def reused(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    await desk.post()
    return await desk.post(body=b"other")


async def too_large(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    return await desk.post(body=b"x" * 100)


async def not_kept(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    await desk.post()
    return await desk.post()


async def in_progress(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    desk.gate = Gate()
    first = asyncio.create_task(desk.post())
    await desk.gate.reached.wait()
    duplicate = await desk.post()
    desk.gate.open()
    await first
    return duplicate


async def too_soon(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    desk.status = 500
    await desk.post()
    return await desk.post()


async def used_up(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    desk.status = 500
    await desk.post()
    await desk.post()
    return await desk.post()


async def cancelled(desk: Desk, _: pytest.MonkeyPatch) -> Exchange:
    desk.status = 500
    failed = await desk.post()
    await desk.durable.cancel_workflow(failed.headers("durable-id")[0])
    return await desk.post()


async def outage(desk: Desk, patch: pytest.MonkeyPatch) -> Exchange:
    async def refuse(*_: object) -> None:
        raise StorageUnavailableError("away")

    patch.setattr(storage_of(desk.durable), "commit", refuse)
    answered = await desk.post()
    patch.undo()
    return answered


async def unknown(desk: Desk, patch: pytest.MonkeyPatch) -> Exchange:
    storage = storage_of(desk.durable)
    commit = storage.commit

    async def refuse_ends(batch: Sequence[Write]) -> list[Outcome]:
        if any(isinstance(write, FinishWorkflow) for write in batch):
            raise StorageUnavailableError("away")
        return await commit(batch)

    patch.setattr(storage, "commit", refuse_ends)
    answered = await desk.post()
    patch.undo()
    return answered


async def outage_of_a_step(desk: Desk, patch: pytest.MonkeyPatch) -> Exchange:
    @desk.durable.step
    async def step() -> None: ...

    async def fail(*_: object) -> None:
        raise StorageUnavailableError("away")

    async def call_steps() -> None:
        patch.setattr(storage_of(desk.durable), "commit", fail)
        await step()
        # It waits for the record of the one before.
        await step()

    desk.work = call_steps
    answered = await desk.post()
    patch.undo()
    return answered


CASES: list[tuple[str, dict[str, Any], Callable[..., Awaitable[Exchange]]]] = [
    ("KEY_MISSING", {"required": True}, missing),
    ("KEY_MALFORMED", {}, malformed),
    ("KEY_REUSED", {}, reused),
    ("KEY_REUSED", {"dialect": "stripe"}, reused),
    ("BODY_TOO_LARGE", {"max_request_body": 50}, too_large),
    ("RESPONSE_NOT_KEPT", {"max_response_body": 5}, not_kept),
    ("IN_PROGRESS", {"max_wait": 0.0}, in_progress),
    ("RETRY_LATER", {"retry_delay": 60.0}, too_soon),
    ("ATTEMPTS_EXHAUSTED", {"max_attempts": 1}, used_up),
    ("CANCELLED", {}, cancelled),
    ("STORAGE_UNAVAILABLE", {}, outage),
    ("STORAGE_UNAVAILABLE", {}, outage_of_a_step),
    ("OUTCOME_UNKNOWN", {}, unknown),
]


@pytest.fixture
async def desk(url: str, options: dict[str, Any]) -> AsyncIterator[Desk]:
    desk = Desk(url, **options)
    async with desk.durable:
        yield desk


@pytest.mark.parametrize(("code", "options", "provoke"), CASES)
async def test_each_response_has_the_status_of_the_policy(
    desk: Desk,
    code: str,
    provoke: Callable[..., Awaitable[Exchange]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = await provoke(desk, monkeypatch)

    problem = json.loads(refused.body)
    assert (problem["code"], problem["status"], refused.status) == (code, OTHER_STATUS, 418)


def test_a_dialect_is_the_default_of_a_policy_without_one() -> None:
    policy = IdempotencyPolicy(dialect="stripe", statuses={"IN_PROGRESS": 423})

    assert policy.status_by_code["KEY_REUSED"] == 400
    assert policy.status_by_code["IN_PROGRESS"] == 423
    assert policy.status_by_code["KEY_MISSING"] == DEFAULT_STATUSES["KEY_MISSING"]


def test_documents_have_the_statuses_of_the_policy() -> None:
    policy = IdempotencyPolicy(statuses={"IN_PROGRESS": 423, "KEY_EXPIRED": 404})

    described = problem_descriptions(policy)

    assert sorted(described) == ["400", "404", "410", "422", "423"]
    assert described["400"] == "The key is missing or malformed"


@pytest.mark.parametrize(
    "statuses", [{"IN_PROGRES": 423}, {"IN_PROGRESS": 200}, {"IN_PROGRESS": "423"}], ids=str
)
def test_what_cannot_be_meant_is_refused(statuses: dict[str, Any]) -> None:
    with pytest.raises(DurableUsageError, match="statuses"):
        IdempotencyPolicy(statuses=statuses)
