"""Interrupted ``def`` workflows: no thread can be stopped."""

from __future__ import annotations

import asyncio

import pytest
from support.databases.storages import until
from support.threads import PATIENCE_SECONDS, ThreadGate, in_thread

from asgi_durable import (
    Durable,
    NonDeterministicWorkflowError,
    WorkflowInterruptedError,
)

pytestmark = pytest.mark.anyio


async def test_an_interrupted_workflow_is_resumed_in_a_thread_of_the_engines(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = ThreadGate()
    runs: list[str] = []

    @durable.step
    def first() -> str:
        runs.append("first")
        return "one"

    @durable.step
    def second() -> str:
        runs.append("second")
        if runs.count("second") == 1:
            gate.wait()
        return "two"

    @durable.workflow
    def work() -> list[str]:
        return [first(), second()]

    async with durable:
        calling = asyncio.ensure_future(
            in_thread(durable.blocking.options(workflow_id="w").run_workflow, work)
        )
        await gate.is_reached()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == ["one", "two"]
        gate.opened.set()
        with pytest.raises(WorkflowInterruptedError):
            await calling
    assert runs == ["first", "second", "second"]


async def test_after_a_stop_the_next_durable_call_ends_the_thread(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = ThreadGate()
    seen: list[object] = []

    @durable.step
    def step(name: str) -> None:
        seen.append(name)
        if name == "first":
            gate.wait()

    @durable.workflow
    def work() -> None:
        for name in ("first", "after the stop"):
            try:
                step(name)
            except Exception:
                seen.append("caught")
            except BaseException as error:
                seen.append(type(error).__name__)

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.is_reached()
    gate.opened.set()

    async def has_ended() -> bool:
        return len(seen) >= 3

    assert await until(has_ended)
    assert seen == ["first", "RunStopped", "RunStopped"]


async def test_a_stop_waits_for_the_thread(url: str) -> None:
    durable = Durable(url, drain_timeout=PATIENCE_SECONDS)
    gate = ThreadGate()

    @durable.step
    def step() -> str:
        gate.wait()
        return "done"

    @durable.workflow
    def work() -> str:
        return step()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.is_reached()
        asyncio.get_running_loop().call_soon(gate.opened.set)
    async with durable:
        status = await (await durable.retrieve_workflow("w")).get_status()
    assert (status.status, status.attempts) == ("SUCCESS", 1)


async def test_code_that_left_its_log_is_stopped(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = ThreadGate()
    names = ["a"]

    @durable.step
    def step(name: str) -> None: ...

    @durable.step
    def wait() -> None:
        gate.wait()

    @durable.workflow
    def work() -> None:
        step(names[0])
        wait()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.is_reached()
    names[0] = "b"
    gate.opened.set()
    async with durable:
        with pytest.raises(NonDeterministicWorkflowError):
            await in_thread(durable.blocking.options(workflow_id="w").run_workflow, work)


async def test_a_workflow_that_exists_is_attached_to(durable: Durable) -> None:
    gate = ThreadGate()
    runs = []

    @durable.workflow
    def work() -> int:
        runs.append(1)
        gate.wait()
        return len(runs)

    blocking = durable.blocking.options(workflow_id="w")
    first = asyncio.ensure_future(in_thread(blocking.run_workflow, work))
    await gate.is_reached()
    second = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(work))
    gate.opened.set()

    assert await asyncio.gather(first, second) == [1, 1]
