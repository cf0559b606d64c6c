"""``durable.blocking``: the verbs for threads in which no event loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from support.threads import PATIENCE_SECONDS, in_thread

from asgi_durable import Durable, DurableUsageError, WorkflowNotFoundError
from asgi_durable.verbs.blocking import BlockingWorkflowHandle


def shop(durable: Durable) -> Callable[[int], int]:
    @durable.step
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    @durable.workflow
    def order(number: int) -> int:
        return durable.blocking.run_step(double, number) + 1

    return order


@pytest.mark.anyio
async def test_each_verb_waits_in_its_thread(durable: Durable) -> None:
    order = shop(durable)

    def verbs() -> list[object]:
        blocking = durable.blocking
        handle = blocking.options(workflow_id="w").start_workflow(order, 1)
        again = blocking.retrieve_workflow("w")
        return [
            handle.get_result(timeout=PATIENCE_SECONDS),
            again.get_result(),
            again.get_status().status,
            blocking.options(workflow_id="w").run_workflow(order, 1),
            blocking.run_workflow(order, 2),
            repr(handle),
        ]

    expected = [3, 3, "SUCCESS", 3, 5, "BlockingWorkflowHandle('w')"]
    assert await in_thread(verbs) == expected


@pytest.mark.anyio
async def test_an_async_workflow_and_transaction_run_on_the_event_loop(durable: Durable) -> None:
    threads: list[int] = []

    @durable.transaction
    async def seven() -> int:
        threads.append(threading.get_ident())
        return (await durable.session.execute(sa.text("SELECT 7"))).scalar_one()

    @durable.workflow
    async def work() -> int:
        threads.append(threading.get_ident())
        return await seven()

    assert await in_thread(durable.blocking.run_workflow, work) == 7
    assert await in_thread(durable.blocking.run_step, seven) == 7
    assert set(threads) == {threading.get_ident()}


@pytest.mark.anyio
async def test_places_in_the_log_are_those_of_the_calls(durable: Durable) -> None:
    @durable.step
    def own() -> int | None:
        return durable.step_id

    @durable.step
    async def coroutine() -> int | None:
        return durable.step_id

    @durable.workflow
    def child() -> str | None:
        return durable.workflow_id

    @durable.workflow
    def work() -> list[object]:
        blocking = durable.blocking
        return [own(), blocking.run_step(coroutine), blocking.run_workflow(child), own()]

    run = durable.blocking.options(workflow_id="w").run_workflow
    assert await in_thread(run, work) == [0, 1, "w~2", 3]


@pytest.mark.anyio
async def test_a_result_that_takes_too_long_is_a_timeout(durable: Durable) -> None:
    opened = threading.Event()

    @durable.workflow
    def work() -> str:
        assert opened.wait(PATIENCE_SECONDS)
        return "done"

    def wait() -> str:
        handle = durable.blocking.start_workflow(work)
        with pytest.raises(TimeoutError):
            handle.get_result(timeout=0.01)
        opened.set()
        return handle.get_result()

    assert await in_thread(wait) == "done"


@pytest.mark.anyio
async def test_a_missing_workflow_is_told(durable: Durable) -> None:
    with pytest.raises(WorkflowNotFoundError):
        await in_thread(durable.blocking.retrieve_workflow, "none")


@pytest.mark.anyio
async def test_no_verb_blocks_an_event_loop(durable: Durable) -> None:
    order = shop(durable)

    @durable.step
    async def step() -> None: ...

    blocking = durable.blocking
    handle: BlockingWorkflowHandle[int] = BlockingWorkflowHandle(durable.thread_calls, "w")
    verbs: list[Callable[[], object]] = [
        lambda: blocking.run_workflow(order, 1),
        lambda: blocking.start_workflow(order, 1),
        lambda: blocking.retrieve_workflow("w"),
        lambda: blocking.run_step(step),
        handle.get_status,
        handle.get_result,
        durable.__enter__,
    ]
    for verb in verbs:
        with pytest.raises(DurableUsageError, match="event loop"):
            verb()


@pytest.mark.anyio
async def test_code_that_is_not_async_cannot_call_what_it_would_have_to_await(
    durable: Durable,
) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def child() -> None: ...

    @durable.workflow
    def work(function: str) -> None:
        {"step": step, "child": child}[function]()

    for function in ("step", "child"):
        with pytest.raises(DurableUsageError, match=r"durable\.blocking"):
            await in_thread(work, function)


# Without an event loop of the application's


def test_a_program_in_which_nothing_is_async(url: str) -> None:
    durable = Durable(url)
    order = shop(durable)

    for _ in range(2):
        with durable:
            assert durable.blocking.options(workflow_id="w").run_workflow(order, 1) == 3
            assert durable.blocking.start_workflow(order, 2).get_result() == 5
            assert order(3) == 7
    assert not any(t.name == "asgi-durable-calls" for t in threading.enumerate())


def test_threads_of_a_program_share_the_engine(url: str) -> None:
    durable = Durable(url)
    order = shop(durable)
    results: list[int] = []

    with durable:
        threads = [threading.Thread(target=lambda: results.append(order(1))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)

    assert results == [3] * 10


def test_a_call_before_the_start_says_what_to_do(url: str) -> None:
    durable = Durable(url)
    order = shop(durable)

    with pytest.raises(DurableUsageError, match="with durable:"):
        order(1)


def test_a_start_that_fails_leaves_no_thread(tmp_path) -> None:
    with pytest.raises(Exception, match="does not exist"):
        Durable(f"sqlite:///{tmp_path}/none/test.db").__enter__()

    assert not any(t.name == "asgi-durable-calls" for t in threading.enumerate())


def test_an_interrupted_workflow_goes_on_in_the_next_program(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    reached, opened = threading.Event(), threading.Event()
    runs: list[str] = []

    @durable.step
    def first() -> None:
        runs.append("first")

    @durable.step
    def second() -> None:
        runs.append("second")
        reached.set()
        assert opened.wait(PATIENCE_SECONDS)

    @durable.workflow
    def work() -> str:
        first()
        second()
        return "done"

    with durable:
        durable.blocking.options(workflow_id="w").start_workflow(work)
        assert reached.wait(PATIENCE_SECONDS)
    opened.set()
    with durable:
        assert durable.blocking.retrieve_workflow("w").get_result() == "done"
    assert runs == ["first", "second", "second"]
