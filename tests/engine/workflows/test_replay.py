"""Replay: recorded steps never run again, and code that diverges from its log gets an error."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from support.interruption import Gate

from asgi_durable import (
    DecodeError,
    Durable,
    NonDeterministicWorkflowError,
    WorkflowInterruptedError,
)
from asgi_durable.context import RequestContext, current_request

pytestmark = pytest.mark.anyio


@dataclasses.dataclass
class Parcel:
    number: int


async def test_a_restart_goes_on_after_the_last_recorded_step(url: str) -> None:
    runs: list[int] = []
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step(number: int) -> int:
        runs.append(number)
        if number == 2:
            await gate.wait()
        return number

    @durable.workflow
    async def work() -> list[int]:
        return [await step(number) for number in range(4)]

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    # The start resumes it, without a call.
    async with durable:
        handle = await durable.retrieve_workflow("w")
        assert await handle.get_result() == [0, 1, 2, 3]
        assert (await handle.get_status()).attempts == 2
    assert runs == [0, 1, 2, 2, 3]


async def test_an_error_that_was_recorded_is_raised_on_replay_without_running(url: str) -> None:
    runs: list[str] = []
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step(retry=None)
    async def fail() -> None:
        runs.append("fail")
        raise LookupError("recorded")

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> str:
        try:
            await fail()
        except LookupError as error:
            await wait()
            return str(error)
        return "nothing raised"

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "recorded"
    assert runs == ["fail"]


async def test_gathered_steps_replay_in_call_order_whatever_order_they_finish_in(
    url: str,
) -> None:
    runs: list[int] = []
    gate = Gate()
    first_may_end = asyncio.Event()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step(number: int) -> int:
        runs.append(number)
        if number == 0 and len(runs) <= 3:
            await first_may_end.wait()
        else:
            first_may_end.set()
        return number * 10

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> list[int]:
        results = await asyncio.gather(*(step(number) for number in range(3)))
        await wait()
        return results

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == [0, 10, 20]
    assert sorted(runs) == [0, 1, 2]


async def test_a_steps_place_is_given_out_when_it_is_called(url: str) -> None:
    durable = Durable(url)

    @durable.step
    async def place() -> int | None:
        return durable.step_id

    @durable.workflow
    async def work() -> list[int | None]:
        first, second = place(), place()
        later = await second
        return [await first, later]

    async with durable:
        assert await work() == [0, 1]


async def test_a_half_finished_gather_runs_only_what_is_missing(url: str) -> None:
    runs: list[int] = []
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step(number: int) -> int:
        runs.append(number)
        if number == 1:
            await gate.wait()
        return number

    @durable.step
    async def after(number: int) -> int:
        return await step(number)

    @durable.workflow
    async def work() -> list[int]:
        fast = await step(0)
        slow = await asyncio.gather(step(1), step(2))
        return [fast, *slow]

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == [0, 1, 2]
    assert runs.count(0) == 1
    assert runs.count(1) == 2


async def interrupted_then_changed(url: str, *, changed: str) -> NonDeterministicWorkflowError:
    """Record two steps and a child, then replay them with different code."""
    gate = Gate()

    def build(variant: str) -> tuple[Durable, list[str]]:
        durable = Durable(url, drain_timeout=0.0)
        runs: list[str] = []

        @durable.step
        async def one(value: str) -> None:
            runs.append(f"one {value}")

        @durable.step
        async def two() -> None:
            runs.append("two")

        @durable.workflow(name="child")
        async def child(value: str) -> None: ...

        @durable.workflow(name="work")
        async def work() -> None:
            if variant == "other step":
                await two()
            else:
                await one("b" if variant == "other arguments" else "a")
            if variant == "fewer":
                return
            if variant == "step for child":
                await two()
            else:
                await child("b" if variant == "other child arguments" else "a")
            await gate.wait()

        return durable, runs

    durable, runs = build("as recorded")
    async with durable:
        await durable.options(workflow_id="w").start_workflow(durable_function(durable))
        await gate.reached.wait()
    durable, runs = build(changed)
    async with durable:
        with pytest.raises(NonDeterministicWorkflowError) as caught:
            await durable.options(workflow_id="w").run_workflow(durable_function(durable))
        handle = await durable.retrieve_workflow("w")
        assert (await handle.get_status()).status == "PENDING"
    assert runs == []
    # The log is unchanged: code that follows it again finishes the workflow.
    gate.open()
    durable, runs = build("as recorded")
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result(timeout=60)
    assert runs == []
    return caught.value


def durable_function(durable: Durable):
    """Return the workflow called ``work``, as its decorator returned it."""
    definition = durable.engine.registry.find_workflow("work")
    return durable.workflow(name="work")(definition.function)


@pytest.mark.parametrize(
    ("changed", "recorded", "called"),
    [
        ("other step", "one", "two"),
        ("other arguments", "one", "one"),
        ("step for child", "workflow 'child'", "two"),
        ("other child arguments", "workflow 'child' with other arguments", "child"),
        ("fewer", "child", "nothing"),
    ],
)
async def test_code_that_left_its_log_is_told_so_and_changes_nothing(
    url: str, changed: str, recorded: str, called: str
) -> None:
    error = await interrupted_then_changed(url, changed=changed)

    assert recorded in error.recorded
    assert called in error.called
    assert "'w'" in str(error)


@pytest.mark.parametrize("change", ["raises before the end", "another id"])
async def test_other_ways_of_leaving_the_log_are_noticed(url: str, change: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()
    changed = False
    runs: list[str] = []

    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def child() -> None:
        runs.append("child")

    @durable.workflow
    async def work() -> None:
        if changed and change == "raises before the end":
            raise ValueError
        await step()
        child_id = "other" if changed and change == "another id" else "first"
        await durable.options(workflow_id=child_id).run_workflow(child)
        await gate.wait()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    changed = True
    async with durable:
        with pytest.raises(NonDeterministicWorkflowError):
            await durable.options(workflow_id="w").run_workflow(work)
        handle = await durable.retrieve_workflow("w")
        assert (await handle.get_status()).status == "PENDING"
    assert runs == ["child"]


async def test_a_record_that_cannot_be_read_is_no_outcome(url: str) -> None:
    gate = Gate()

    def build(*, knows_the_class: bool) -> Durable:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="pack")
        async def pack() -> Any:
            return Parcel(5)

        @durable.workflow(name="work")
        async def work() -> int:
            parcel = await pack()
            await gate.wait()
            number: int = parcel.number
            return number

        if knows_the_class:

            @durable.step(name="never called")
            async def weigh(parcel: Parcel) -> None: ...

        return durable

    durable = build(knows_the_class=True)
    async with durable:
        await durable.options(workflow_id="w").start_workflow(durable_function(durable))
        await gate.reached.wait()
    gate.open()
    async with build(knows_the_class=False) as ignorant:
        handle = await ignorant.retrieve_workflow("w")
        with pytest.raises(DecodeError, match="Parcel"):
            await handle.get_result(timeout=60)
        assert (await handle.get_status()).status == "PENDING"
    # The annotation of a step that this workflow never calls is enough.
    async with build(knows_the_class=True) as knowing:
        assert await (await knowing.retrieve_workflow("w")).get_result(timeout=60) == 5


async def test_a_divergence_cannot_be_swallowed(url: str) -> None:
    gate = Gate()
    runs: list[str] = []
    variant = {"name": "first"}
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step(value: str) -> None: ...

    @durable.step
    async def effect() -> None:
        runs.append("effect")

    @durable.workflow
    async def work() -> str:
        try:
            await step(variant["name"])
        except NonDeterministicWorkflowError:
            await effect()
            return "swallowed"
        await gate.wait()
        return "done"

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    variant["name"] = "second"
    async with durable:
        with pytest.raises(NonDeterministicWorkflowError):
            await durable.options(workflow_id="w").run_workflow(work)
    assert runs == []


async def test_a_finished_child_is_not_run_again_and_an_unfinished_one_goes_on(url: str) -> None:
    runs: list[str] = []
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step(name: str) -> str:
        runs.append(name)
        if name == "second":
            await gate.wait()
        return name

    @durable.workflow
    async def child(name: str) -> str:
        await step(f"before {name}")
        return await step(name)

    @durable.workflow
    async def parent() -> list[str]:
        return [await child("first"), await child("second")]

    async with durable:
        await durable.options(workflow_id="p").start_workflow(parent)
        await gate.reached.wait()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("p")).get_result() == ["first", "second"]
    assert runs == ["before first", "first", "before second", "second", "second"]


async def test_a_call_while_recovery_reads_the_log_leaves_one_run(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate, read = Gate(), Gate()
    runs: list[str] = []

    @durable.step
    async def step() -> str:
        runs.append("step")
        return "done"

    @durable.workflow
    async def work() -> str:
        await gate.wait()
        result = await step()
        if not read.is_open:
            raise asyncio.CancelledError
        return result

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    await durable.engine.start()
    storage = durable.engine._running.services.storage  # type: ignore[union-attr]
    load_runs = storage.load_runs

    async def load_and_wait(workflow_ids):
        found = await load_runs(workflow_ids)
        if not read.reached.is_set():
            await read.wait()
        return found

    storage.load_runs = load_and_wait  # type: ignore[method-assign]
    durable.engine.recover()
    await read.reached.wait()
    # This run records the step and ends without an outcome.
    with pytest.raises(WorkflowInterruptedError):
        await durable.options(workflow_id="w").run_workflow(work)
    read.open()
    while durable.engine._running.recovery._is_sweeping():  # type: ignore[union-attr]
        await asyncio.sleep(0)
    await durable.engine.stop()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result(timeout=60) == "done"
    assert runs == ["step"]


async def test_a_workflow_without_a_function_stays_until_there_is_one(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.workflow(name="work")
    async def work() -> str:
        await gate.wait()
        return "done"

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    async with Durable(url) as empty:
        status = await (await empty.retrieve_workflow("w")).get_status()
        assert status.status == "PENDING"
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "done"


async def test_a_context_of_the_first_caller_does_not_reach_what_is_resumed(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)
    seen: list[object] = []

    @durable.workflow
    async def work() -> None:
        seen.append((durable.workflow_id, durable.request))
        await gate.wait()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()
    assert seen == [("w", None), ("w", None)]


async def test_what_a_resumed_workflow_calls_belongs_to_the_request_that_began_it(
    url: str,
) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def called() -> str | None:
        return durable.request_id

    @durable.workflow
    async def work() -> str | None:
        await wait()
        return await called()

    context = RequestContext(request_id="r1", method="POST", url="http://shop/", client=None)
    async with durable:
        token = current_request.set(context)
        handle = await durable.start_workflow(work)
        current_request.reset(token)
        await gate.reached.wait()
    gate.open()

    async with durable:
        again = await durable.retrieve_workflow(handle.workflow_id)
        assert await again.get_result(timeout=60) == "r1"
