"""``def`` functions run in the calling thread, with the same log and rules."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from support.databases.storages import until
from support.threads import PATIENCE_SECONDS, ThreadGate, in_thread

from asgi_durable import (
    Durable,
    DurableUsageError,
    RetryPolicy,
    StepRetriesExhaustedError,
)

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(max_attempts=3, initial_interval=0.0)


# In the calling thread


async def test_a_decorated_def_function_stays_one(durable: Durable) -> None:
    def function(number: int = 1) -> int:
        return number

    for decorate in (durable.step, durable.transaction, durable.workflow, durable.step(name="a")):
        made = decorate(function)
        assert not inspect.iscoroutinefunction(made)
        assert inspect.signature(made) == inspect.signature(function)


async def test_a_workflow_and_its_steps_run_in_the_thread_that_calls(durable: Durable) -> None:
    threads: list[int] = []

    @durable.step
    def first() -> int:
        threads.append(threading.get_ident())
        return 1

    @durable.workflow
    def child(number: int) -> int:
        threads.append(threading.get_ident())
        return number + first()

    @durable.workflow
    def work() -> int:
        threads.append(threading.get_ident())
        return child(first())

    def call() -> tuple[int, int]:
        return work(), threading.get_ident()

    result, caller = await in_thread(call)

    assert result == 2
    assert threads == [caller] * 4
    assert caller != threading.get_ident()


async def test_the_context_is_that_of_an_async_workflow(durable: Durable) -> None:
    seen: list[object] = []

    def note() -> None:
        seen.append((durable.workflow_id, durable.step_id))

    @durable.step
    def step() -> None:
        note()

    @durable.workflow
    def work() -> None:
        note()
        step()
        note()

    await in_thread(durable.blocking.options(workflow_id="w").run_workflow, work)
    await in_thread(note)

    assert seen == [("w", None), ("w", 0), ("w", None), (None, None)]


async def test_a_step_outside_a_workflow_is_a_plain_call_on_an_event_loop_as_well(
    durable: Durable,
) -> None:
    @durable.step
    def double(number: int) -> int:
        return number * 2

    assert double(2) == 4
    assert await in_thread(double, 3) == 6


async def test_a_step_in_a_step_is_part_of_it(durable: Durable) -> None:
    @durable.step
    def inner() -> int | None:
        return durable.step_id

    @durable.step
    def outer() -> int | None:
        return inner()

    @durable.workflow
    def work() -> list[int | None]:
        return [outer(), outer()]

    assert await in_thread(work) == [0, 1]


async def test_results_and_errors_are_what_the_log_gives_back(durable: Durable) -> None:
    @durable.step(retry=None)
    def fail() -> None:
        raise KeyError("k")

    @durable.step
    def pair() -> tuple[int, int]:
        return (1, 2)

    @durable.workflow
    def work() -> tuple[int, int]:
        with pytest.raises(KeyError):
            fail()
        return pair()

    blocking = durable.blocking.options(workflow_id="w")
    assert await in_thread(blocking.run_workflow, work) == (1, 2)
    status = await (await durable.retrieve_workflow("w")).get_status()
    assert (status.status, status.output) == ("SUCCESS", (1, 2))


async def test_a_workflow_that_fails_raises_its_error_again(durable: Durable) -> None:
    runs = []

    @durable.workflow
    def work() -> None:
        runs.append(1)
        raise ValueError("business")

    for _ in range(2):
        with pytest.raises(ValueError, match="business"):
            await in_thread(durable.blocking.options(workflow_id="w").run_workflow, work)
    assert len(runs) == 1


async def test_a_step_is_tried_again(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    def flaky() -> None:
        runs.append(threading.get_ident())
        raise ConnectionError

    @durable.workflow
    def work() -> None:
        flaky()

    with pytest.raises(StepRetriesExhaustedError):
        await in_thread(work)
    assert len(runs) == 3
    assert len(set(runs)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_a_thread_is_no_outcome_and_ends_no_event_loop(
    durable: Durable, error: type[BaseException]
) -> None:
    @durable.workflow
    def work() -> None:
        raise error

    def call() -> str:
        try:
            durable.blocking.options(workflow_id="w").run_workflow(work)
        except error:
            return "raised"
        return "returned"

    assert await in_thread(call) == "raised"

    async def is_given_up() -> bool:
        return (await (await durable.retrieve_workflow("w")).get_status()).status == "PENDING"

    assert await until(is_given_up)


async def test_a_stop_iteration_is_a_runtime_error(durable: Durable) -> None:
    @durable.workflow
    def work() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_thread(work)


async def test_a_record_is_durable_before_the_next_side_effect_and_not_sooner(
    durable: Durable,
) -> None:
    written: list[str] = []
    storage = durable.engine.running().services.storage
    commit = storage.commit

    async def commit_recorded(batch: Any) -> Any:
        outcomes = await commit(batch)
        written.extend(type(write).__name__ for write in batch)
        return outcomes

    storage.commit = commit_recorded  # type: ignore[method-assign]

    @durable.step
    def step() -> list[str]:
        return list(written)

    @durable.workflow
    def work() -> list[list[str]]:
        return [step(), step(), step()]

    assert await in_thread(work) == [
        ["StartWorkflow"],
        ["StartWorkflow", "RecordStep"],
        ["StartWorkflow", "RecordStep", "RecordStep"],
    ]
    assert written == ["StartWorkflow", *["RecordStep"] * 3, "FinishWorkflow"]


# From async code


async def test_async_code_runs_them_in_threads_of_the_engines(durable: Durable) -> None:
    here = threading.get_ident()
    barrier = threading.Barrier(3, timeout=PATIENCE_SECONDS)
    threads: set[int] = set()

    @durable.step
    def step(number: int) -> int:
        # This passes only if all of them run at once, while the event loop is free.
        barrier.wait()
        threads.add(threading.get_ident())
        return number + (durable.step_id or 0)

    @durable.workflow
    async def work() -> list[int]:
        return await asyncio.gather(*(durable.run_step(step, number * 10) for number in range(3)))

    assert await work() == [0, 11, 22]
    assert here not in threads


async def test_run_step_is_for_async_functions_and_transactions_as_well(durable: Durable) -> None:
    @durable.step
    async def step() -> int | None:
        return durable.step_id

    @durable.transaction
    def transaction() -> int | None:
        return durable.blocking.session.execute(sa.text("SELECT 7")).scalar_one()

    @durable.workflow
    async def work() -> list[int | None]:
        return [await durable.run_step(step), await durable.run_step(transaction)]

    assert await work() == [0, 7]
    assert await durable.run_step(transaction) == 7
    assert await durable.run_step(step) is None


async def test_a_workflow_can_be_run_and_started_by_async_code(durable: Durable) -> None:
    here = threading.get_ident()

    @durable.workflow
    def work(number: int) -> tuple[int, bool]:
        return number, threading.get_ident() == here

    @durable.workflow
    async def parent() -> list[Any]:
        handle = await durable.start_workflow(work, 2)
        return [await durable.run_workflow(work, 1), await handle.get_result()]

    assert await durable.run_workflow(work, 1) == (1, False)
    assert await parent() == [(1, False), (2, False)]


async def test_a_direct_call_on_the_event_loops_thread_says_what_to_do(durable: Durable) -> None:
    @durable.step
    def step() -> None: ...

    @durable.transaction
    def transaction() -> None: ...

    @durable.workflow
    def blocking() -> None: ...

    @durable.workflow
    async def work() -> None:
        step()

    with pytest.raises(DurableUsageError, match=r"await durable\.run_workflow"):
        blocking()
    with pytest.raises(DurableUsageError, match=r"await durable\.run_step"):
        await work()
    with pytest.raises(DurableUsageError, match=r"await durable\.run_step"):
        transaction()


async def test_only_decorated_functions_are_steps(durable: Durable) -> None:
    @durable.workflow
    async def work() -> None: ...

    for function in (print, work):
        with pytest.raises(DurableUsageError, match=r"@durable\.step"):
            durable.run_step(function)


async def test_parents_that_wait_for_children_do_not_use_up_the_threads(durable: Durable) -> None:
    threads = durable.engine.registry.threads
    threads._limit = 2
    numbers: list[int] = []

    @durable.step
    def step(number: int) -> int:
        numbers.append(len(threads._members))
        return number

    @durable.workflow
    def child(number: int) -> int:
        return step(number)

    @durable.workflow
    def parent(number: int) -> int:
        return durable.blocking.start_workflow(child, number).get_result()

    async with asyncio.timeout(PATIENCE_SECONDS):
        results = await asyncio.gather(
            *(durable.run_workflow(parent, number) for number in range(20))
        )

    assert results == list(range(20))
    assert max(numbers) < 10


async def test_what_was_stopped_before_a_thread_came_to_it_never_begins(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    threads = durable.engine.registry.threads
    threads._limit = 1
    gate = ThreadGate()
    seen: list[str] = []

    @durable.workflow
    def work(name: str) -> None:
        seen.append(name)
        gate.wait()

    async with durable:
        await durable.start_workflow(work, "first")
        await gate.is_reached()
        await durable.start_workflow(work, "second")
    gate.opened.set()
    # Behind the second one.
    await threads.run(lambda: None)

    assert seen == ["first"]


# Functions that the decorators refuse


async def test_a_timeout_is_for_async_functions(durable: Durable) -> None:
    with pytest.raises(DurableUsageError, match="timeout"):

        @durable.step(timeout=1.0)
        def step() -> None: ...


async def test_generators_and_what_is_no_function_are_refused(durable: Durable) -> None:
    def generator():
        yield 1

    async def async_generator():
        yield 1

    for function in (generator, async_generator, print, int):
        for decorate in (durable.step, durable.transaction, durable.workflow):
            with pytest.raises(DurableUsageError, match="'def' or 'async def'"):
                decorate(function)


async def test_a_def_function_that_returns_a_coroutine_is_refused(durable: Durable) -> None:
    async def hidden() -> None: ...

    @durable.workflow
    def work() -> Any:
        return hidden()

    with pytest.raises(DurableUsageError, match="coroutine"):
        await in_thread(work)


# Methods


async def test_methods_static_methods_and_class_methods_can_be_decorated(durable: Durable) -> None:
    class Shop:
        prefix = "shop"

        def __init__(self, name: str) -> None:
            self.name = name

        @durable.step
        def plain(self, number: int) -> str:
            return f"{self.name} {number}"

        @durable.step
        async def coroutine(self, number: int) -> str:
            return f"{self.name} {number}"

        @staticmethod
        @durable.step
        def static(number: int) -> str:
            return f"static {number}"

        @durable.step
        @staticmethod
        def static_below(number: int) -> str:
            return f"static {number}"

        @classmethod
        @durable.step
        def of_class(cls, number: int) -> str:
            return f"{cls.prefix} {number}"

        @durable.step
        @classmethod
        def of_class_below(cls, number: int) -> str:
            return f"{cls.prefix} {number}"

        @durable.workflow
        def work(self) -> list[str]:
            return [
                self.plain(1),
                durable.blocking.run_step(self.coroutine, 2),
                self.static(3),
                self.static_below(4),
                Shop.of_class(5),
                self.of_class_below(6),
            ]

    expected = ["a 1", "a 2", "static 3", "static 4", "shop 5", "shop 6"]
    blocking = durable.blocking.options(workflow_id="w")
    assert await in_thread(blocking.run_workflow, Shop("a").work) == expected
    status = await (await durable.retrieve_workflow("w")).get_status()
    assert (status.input, status.output) == ({}, expected)


async def test_a_method_cannot_be_started_in_the_background(durable: Durable) -> None:
    class Shop:
        @durable.workflow
        async def work(self) -> str:
            return "done"

    shop = Shop()

    assert await shop.work() == "done"
    with pytest.raises(DurableUsageError, match="'self' is not recorded"):
        await durable.start_workflow(shop.work)
