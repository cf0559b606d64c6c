"""Read by the type checker, never run: decorators keep signatures and results."""

from __future__ import annotations

from typing import assert_type

from asgi_durable import BlockingWorkflowHandle, Durable, RetryPolicy, WorkflowHandle

durable = Durable()


@durable.step
async def bare(number: int, *, text: str = "") -> float:
    """Keep what it was."""
    return number / 2


@durable.step(retry=RetryPolicy(max_attempts=5), timeout=1.0, at_most_once=False)
async def with_arguments(number: int) -> str:
    """Keep what it was."""
    return str(number)


@durable.workflow(name="work")
async def work(number: int) -> list[str]:
    """Keep what it was."""
    return [await with_arguments(number)]


@durable.step
def plain(number: int, *, text: str = "") -> float:
    """Keep what it was."""
    return number / 2


@durable.workflow(name="blocking work")
def blocking_work(number: int) -> list[float]:
    """Keep what it was."""
    return [plain(number)]


async def uses() -> None:
    """Call everything."""
    assert_type(await bare(1, text="a"), float)
    assert_type(await with_arguments(1), str)
    assert_type(await work(1), list[str])
    assert_type(await durable.run_workflow(work, 1), list[str])
    assert_type(await durable.start_workflow(work, 1), WorkflowHandle[list[str]])
    handle = await durable.options(workflow_id="w", on_conflict="attach").start_workflow(work, 1)
    assert_type(await handle.get_result(timeout=1.0), list[str])
    assert_type(await durable.background(work, 1), str)
    assert_type(await durable.background(blocking_work, 1), str)
    assert_type(await durable.run_step(bare, 1), float)
    assert_type(await durable.run_step(plain, 1, text="a"), float)
    assert_type(await durable.run_workflow(blocking_work, 1), list[float])
    assert_type(await durable.start_workflow(blocking_work, 1), WorkflowHandle[list[float]])


def uses_in_a_thread() -> None:
    """Call everything."""
    blocking = durable.blocking
    assert_type(plain(1, text="a"), float)
    assert_type(blocking_work(1), list[float])
    assert_type(blocking.background(work, 1), str)
    assert_type(blocking.run_step(bare, 1), float)
    assert_type(blocking.run_workflow(work, 1), list[str])
    assert_type(blocking.run_workflow(blocking_work, 1), list[float])
    handle = blocking.options(workflow_id="w").start_workflow(work, 1)
    assert_type(handle, BlockingWorkflowHandle[list[str]])
    assert_type(handle.get_result(timeout=1.0), list[str])


class CardError(Exception):
    """Holds a number."""

    number = 7


durable.register_exception(CardError)
durable.register_exception(
    CardError,
    to_data=lambda error: error.number,
    from_data=CardError,
    aliases=["shop:PayError"],
)
