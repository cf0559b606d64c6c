"""Stopping: runs are waited for, then interrupted, and an interruption is never an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.interruption import Gate

from asgi_durable import Durable, WorkflowInterruptedError
from asgi_durable.engine.runs import active_runs

pytestmark = pytest.mark.anyio


async def test_a_stop_waits_for_the_runs_under_way(url: str) -> None:
    durable = Durable(url, drain_timeout=60.0)
    gate = Gate()

    @durable.step
    async def step() -> str:
        await gate.wait()
        return "done"

    @durable.workflow
    async def work() -> str:
        return await step()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        asyncio.get_running_loop().call_soon(gate.open)
    async with durable:
        status = await (await durable.retrieve_workflow("w")).get_status()
    assert (status.status, status.attempts) == ("SUCCESS", 1)


async def interrupted(durable: Durable, work: Any, gate: Gate) -> None:
    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()


async def test_what_cleans_up_after_an_interruption_is_not_recorded(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()
    runs: list[str] = []

    @durable.step
    async def step(name: str) -> None:
        runs.append(name)
        if name == "ship":
            await gate.wait()

    @durable.workflow
    async def work() -> str:
        try:
            await step("ship")
        finally:
            await step("unlock")
        return "shipped"

    await interrupted(durable, work, gate)
    assert runs == ["ship"]
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "shipped"
    assert runs == ["ship", "ship", "unlock"]


@pytest.mark.parametrize("where", ["step", "workflow", "transaction"])
async def test_code_that_swallows_the_interruption_has_no_outcome(url: str, where: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()

    async def swallow() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            return "gave up"
        return "done"

    @durable.step
    async def step() -> str:
        return await swallow()

    @durable.transaction
    async def transaction() -> str:
        return await swallow()

    @durable.workflow
    async def work() -> str:
        return await {"step": step, "workflow": swallow, "transaction": transaction}[where]()

    await interrupted(durable, work, gate)
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "done"


async def test_an_interruption_turned_into_an_error_is_no_outcome(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()

    @durable.step(retry=None)
    async def step() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            raise ConnectionError("the connection was cut") from None
        return "done"

    @durable.workflow
    async def work() -> str:
        return await step()

    await interrupted(durable, work, gate)
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "done"


async def test_a_child_launched_during_the_stop_is_interrupted_as_well(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()
    running: list[str] = []

    @durable.step
    async def step() -> str:
        running.append("begins")
        await asyncio.sleep(0)
        running.append("ends")
        return "done"

    @durable.workflow
    async def child() -> str:
        return await step()

    @durable.workflow
    async def work() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            return await child()
        return await child()

    await interrupted(durable, work, gate)
    assert running == []
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "done"
    assert running == ["begins", "ends"]


async def test_a_run_that_does_not_end_is_left_to_itself(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(active_runs, "CANCEL_TIMEOUT_SECONDS", 0.01)
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()

    @durable.step
    async def stubborn() -> str:
        gate.reached.set()
        while not gate.is_open:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return "done"

    @durable.workflow
    async def work() -> str:
        return await stubborn()

    async with asyncio.timeout(60):
        async with durable:
            call = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(work))
            await gate.reached.wait()
        with pytest.raises(WorkflowInterruptedError):
            await call
    assert "does not end" in caplog.text
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "done"


def run_and_end_the_loop(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a function on an event loop that then ends, and cancels its remaining tasks."""
    asyncio.run(coroutine)


def test_what_an_ending_event_loop_cancels_is_not_recorded(url: str) -> None:
    durable = Durable(url)
    runs: list[str] = []
    may_end = False

    @durable.step
    async def step(name: str) -> str:
        runs.append(name)
        if name == "ship" and not may_end:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "gave up"
        return name

    @durable.workflow
    async def work() -> str:
        try:
            return await step("ship")
        finally:
            await step("unlock")

    async def begin() -> None:
        await durable.engine.ensure_started()
        await durable.options(workflow_id="w").start_workflow(work)
        while not runs:
            await asyncio.sleep(0)

    async def finish() -> str:
        await durable.engine.ensure_started()
        handle = await durable.retrieve_workflow("w")
        result: str = await handle.get_result(timeout=60)
        await durable.engine.stop()
        return result

    run_and_end_the_loop(begin())
    may_end = True
    assert asyncio.run(finish()) == "ship"
    assert runs == ["ship", "ship", "unlock"]


def test_a_sweep_that_ends_with_its_event_loop_is_made_up_for(url: str) -> None:
    durable = Durable(url)
    may_end = False

    @durable.step
    async def step() -> str:
        if not may_end:
            await asyncio.Event().wait()
        return "done"

    @durable.workflow
    async def work() -> str:
        return await step()

    async def begin() -> None:
        await durable.engine.ensure_started()
        await durable.options(workflow_id="w").start_workflow(work)

    async def look() -> str:
        await durable.engine.ensure_started()
        return (await (await durable.retrieve_workflow("w")).get_status()).status

    async def finish() -> str:
        await durable.engine.ensure_started()
        result: str = await (await durable.retrieve_workflow("w")).get_result(timeout=60)
        await durable.engine.stop()
        return result

    asyncio.run(begin())
    for _ in range(3):
        # Each call begins a sweep, which is cancelled again with its event loop.
        assert asyncio.run(look()) == "PENDING"
    may_end = True
    assert asyncio.run(finish()) == "done"


async def test_runs_that_have_not_had_a_turn_are_interrupted_as_well(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)

    @durable.workflow
    async def work() -> str:
        return "done"

    async with asyncio.timeout(60):
        async with durable:
            loop = asyncio.get_running_loop()
            calls: list[asyncio.Future[str]] = []

            def call_again() -> None:
                if not durable.engine._running.active._closed:  # type: ignore[union-attr]
                    calls.append(asyncio.ensure_future(work()))
                    if len(calls) < 200:
                        loop.call_soon(call_again)

            loop.call_soon(call_again)
            await asyncio.sleep(0)
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert all(r == "done" or isinstance(r, Exception) for r in results)


async def test_a_workflow_that_cancels_itself_is_left_alone(durable: Durable) -> None:
    @durable.workflow
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(WorkflowInterruptedError, match="its code raised CancelledError"):
        await durable.options(workflow_id="w").run_workflow(work)


async def test_a_start_that_is_cancelled_can_be_made_again(url: str) -> None:
    durable = Durable(f"{url}?busy_timeout=30")

    for turns in range(6):
        start = asyncio.ensure_future(durable.engine.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.wait([start])
        await durable.engine.stop()

    async with asyncio.timeout(60):
        async with durable:
            pass


async def test_a_start_and_a_stop_can_follow_each_other(url: str) -> None:
    durable = Durable(url)

    @durable.workflow
    async def work() -> int:
        return 1

    for _ in range(3):
        async with durable:
            assert await work() == 1
