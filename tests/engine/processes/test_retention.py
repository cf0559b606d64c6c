"""Expired requests: the responses that their keys get then, and their deletion."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from support.executors import PATIENCE_SECONDS, note_calls, storage_of, until
from support.interruption import Gate

from asgi_durable import Durable, StorageUnavailableError
from asgi_durable.engine.process.settings import DAY_SECONDS, Retention
from asgi_durable.engine.requests import retention_sweeper as retention
from asgi_durable.engine.requests.claims import (
    Claim,
    Claimed,
    Expired,
    Finished,
    KeyReused,
    Request,
    ResponseCommit,
)
from asgi_durable.engine.requests.retention_sweeper import Sweeper
from asgi_durable.engine.runs.active_runs import wait_for
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import ResponseRecord
from asgi_durable.storage.writes import MAX_INLINE_BYTES

pytestmark = pytest.mark.anyio

NO_TIME = Retention(0.0)
TOMBSTONE = Retention(0.0, tombstone_seconds=DAY_SECONDS)
LONG = Retention(DAY_SECONDS)
OTHER = "v1:bb"


class Desk(Durable):
    """Handles requests; each response has the number of calls so far.

    Attributes:
        calls: The number of calls.
        size: The minimum length of a response's body.
        begins_child: True if each call starts a workflow that waits at the gate.
        is_failing: True if each call fails, without a response.
    """

    def __init__(self, url: str, **limits: float) -> None:
        super().__init__(url, drain_timeout=0.0)
        self.engine._limits = replace(self.engine._limits, **limits)
        self.gate = Gate()
        self.calls = 0
        self.size = 0
        self.begins_child = self.is_failing = False

        @self.workflow(name="child")
        async def child() -> None:
            await self.gate.wait()

        self.child = child

    async def send(
        self, kept: Retention = LONG, *, fingerprint: str = "v1:aa", wait_seconds: float = 0.0
    ) -> bytes | Claim:
        """Send a request; return its response's body, or the reason why there is none."""
        request = Request(
            workflow_id="r",
            name="POST /",
            fingerprint=fingerprint,
            request_id="r1",
            retention=kept,
        )
        claim = await self.engine.requests.claim(request, self._respond, wait_seconds=wait_seconds)
        if isinstance(claim, Claimed):
            await wait_for(claim.run, claim.run.done, asyncio.get_running_loop())
            answer = await storage_of(self).get_response("r")
            return answer.body if answer is not None and answer.body is not None else claim
        return claim.response.body or b"" if isinstance(claim, Finished) else claim

    async def has_row(self) -> bool:
        """Return True if any row of the request is left."""
        return await storage_of(self).get_workflow("r") is not None

    async def _respond(self, run: ResponseCommit) -> None:
        self.calls += 1
        if self.begins_child:
            await self.start_workflow(self.child)
        if self.is_failing:
            await run.leave_for_retry()
        else:
            await run.finish(200, b"[]", f"call {self.calls}".encode().ljust(self.size))


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    async with Desk(database_url) as desk:
        yield desk


# Duplicates of an expired request


async def test_an_answer_is_kept_from_its_completion_on(desk: Desk) -> None:
    await desk.send(Retention(60.0, tombstone_seconds=30.0))

    answer = await storage_of(desk).get_response("r")
    row = await storage_of(desk).get_workflow("r")

    assert answer is not None
    assert row is not None
    assert answer.expires_at_us - row.updated_at_us == 60_000_000
    assert answer.forgotten_at_us - row.updated_at_us == 90_000_000
    assert await desk.send() == b"call 1"


async def test_it_can_be_kept_for_ever(desk: Desk) -> None:
    await desk.send(Retention(float("inf"), tombstone_seconds=float("inf")))

    assert await desk.send() == b"call 1"


@pytest.mark.parametrize("fingerprint", ["v1:aa", OTHER])
@pytest.mark.parametrize("size", [0, MAX_INLINE_BYTES + 1], ids=["short", "long"])
async def test_an_expired_request_is_carried_out_again(
    desk: Desk, fingerprint: str, size: int
) -> None:
    desk.size = size
    await desk.send(NO_TIME)

    answer = await desk.send(fingerprint=fingerprint)

    assert isinstance(answer, bytes)
    assert answer.strip() == b"call 2"
    assert await desk.send(fingerprint=fingerprint) == answer


async def test_what_is_forgotten_before_it_is_read_is_carried_out_again(desk: Desk) -> None:
    desk.size = MAX_INLINE_BYTES + 1
    await desk.send(NO_TIME)
    storage: Any = storage_of(desk)
    read = storage.get_response

    async def forget_and_read(workflow_id: str) -> ResponseRecord | None:
        storage.get_response = read
        await swept(storage)
        answer: ResponseRecord | None = await read(workflow_id)
        assert answer is None
        return answer

    storage.get_response = forget_and_read

    answer = await desk.send()

    assert isinstance(answer, bytes)
    assert answer.strip() == b"call 2"


async def test_of_an_expired_requests_retries_one_is_carried_out(database_url: str) -> None:
    async with Desk(database_url) as here, Desk(database_url) as there:
        await here.send(NO_TIME)

        answers = await asyncio.gather(
            *(desk.send(wait_seconds=PATIENCE_SECONDS) for desk in [here, there] * 10)
        )

    assert here.calls + there.calls == 2
    assert len(set(answers)) == 1


@pytest.mark.parametrize("is_swept", [False, True])
@pytest.mark.parametrize("fingerprint", ["v1:aa", OTHER])
async def test_a_tombstone_tells_nothing_but_that_it_is_one(
    desk: Desk, fingerprint: str, *, is_swept: bool
) -> None:
    await desk.send(TOMBSTONE)
    if is_swept:
        await swept(storage_of(desk))

    assert await desk.send(fingerprint=fingerprint) == Expired()

    assert desk.calls == 1


async def test_another_request_with_a_key_that_is_not_expired_is_refused(desk: Desk) -> None:
    await desk.send()

    assert await desk.send(fingerprint=OTHER) == KeyReused()


async def test_an_answer_is_given_while_what_it_has_started_still_runs(desk: Desk) -> None:
    desk.begins_child = True
    await desk.send(NO_TIME)
    await desk.gate.reached.wait()

    assert await desk.send(fingerprint=OTHER) == KeyReused()
    assert await desk.send() == b"call 1"

    await swept(storage_of(desk))
    assert await desk.has_row()


@pytest.mark.parametrize(
    ("kept", "state"), [(LONG, "DONE"), (NO_TIME, None), (TOMBSTONE, None)], ids=str
)
async def test_nothing_is_told_about_an_expired_request(
    desk: Desk, kept: Retention, state: str | None
) -> None:
    await desk.send(kept)

    progress = await desk.engine.requests.progress("r")

    assert (progress.state if progress is not None else None) == state


# Sweeps


async def swept(storage: Storage, **settings: float) -> None:
    """Delete expired requests once."""
    sweeper = Sweeper(storage, **{"interval_seconds": 0.0} | settings)
    sweeper.sweep_if_due()
    assert sweeper._task is not None
    await sweeper._task


async def test_what_nobody_retries_is_forgotten(desk: Desk) -> None:
    desk.is_failing = True
    await desk.send()

    await swept(storage_of(desk))
    assert await desk.has_row()
    await swept(storage_of(desk), lifetime_seconds=0.0)
    assert not await desk.has_row()

    desk.is_failing = False
    assert await desk.send() == b"call 2"


async def test_a_running_engine_sweeps(database_url: str) -> None:
    async with Desk(database_url, sweep_interval_seconds=0.0) as desk:
        await desk.send(NO_TIME)
        await until(lambda: is_forgotten(desk))


async def test_a_running_engine_forgets_what_nobody_retries(database_url: str) -> None:
    limits = {"sweep_interval_seconds": 0.0, "request_lifetime_seconds": 0.0}
    async with Desk(database_url, **limits) as desk:
        desk.is_failing = True
        await desk.send()
        await until(lambda: is_forgotten(desk))


def test_an_application_whose_event_loops_end_is_swept(database_url: str) -> None:
    desk = Desk(database_url, sweep_interval_seconds=0.0)

    async def serve() -> None:
        await desk.engine.ensure_started()
        await desk.send(NO_TIME)

    async def look() -> None:
        await desk.engine.ensure_started()
        await until(lambda: is_forgotten(desk))

    asyncio.run(serve())
    asyncio.run(look())
    asyncio.run(desk.engine.stop())


async def is_forgotten(desk: Desk) -> bool:
    return not await desk.has_row()


async def test_a_sweep_goes_on_until_nothing_is_left(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SWEEP_BATCH", 1)
    monkeypatch.setattr(retention, "BATCH_PAUSE_SECONDS", 0.0)
    await desk.send(NO_TIME)
    calls = note_calls(desk, "forget_expired")

    await swept(storage_of(desk))

    assert len(calls) == 2
    assert not await desk.has_row()


async def test_it_is_not_swept_before_it_is_time(desk: Desk) -> None:
    sweeper = Sweeper(storage_of(desk), interval_seconds=DAY_SECONDS)

    sweeper.sweep_if_due()

    assert sweeper._task is None


@pytest.mark.parametrize("error", [StorageUnavailableError("away"), ValueError("a defect")])
async def test_a_sweep_that_fails_is_made_again(
    desk: Desk, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    await desk.send(NO_TIME)
    storage: Any = storage_of(desk)
    forget = storage.forget_expired
    failures = [error]

    async def fail_once(*args: Any, **kwargs: Any) -> int:
        if failures:
            raise failures.pop()
        return int(await forget(*args, **kwargs))

    storage.forget_expired = fail_once
    sweeper = Sweeper(storage, interval_seconds=0.0)

    async def sweeps_until_forgotten() -> bool:
        sweeper.sweep_if_due()
        return not await desk.has_row()

    with caplog.at_level(logging.WARNING):
        await until(sweeps_until_forgotten)

    assert str(error) in caplog.text


async def test_a_sweep_under_way_keeps_no_engine_from_stopping(url: str) -> None:
    desk = Desk(url, sweep_interval_seconds=0.0)
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def never_end(*_: object, **__: object) -> int:
        loop.call_soon_threadsafe(began.set)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async with desk:
        storage_of(desk).forget_expired = never_end  # type: ignore[method-assign]
        await began.wait()
