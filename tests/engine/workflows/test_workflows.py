"""Workflows: ids, outcomes, children, handles."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime

import pytest
from support.interruption import Gate

from asgi_durable import (
    Durable,
    DurableUsageError,
    EncodeError,
    WorkflowConflictError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)

pytestmark = pytest.mark.anyio


@dataclasses.dataclass
class Invoice:
    lines: tuple[int, ...]
    due: datetime.date


async def test_a_workflow_returns_its_result(durable: Durable) -> None:
    @durable.step
    async def double(number: int) -> int:
        return number * 2

    @durable.workflow
    async def work(number: int, *, plus: int = 0) -> int:
        return await double(number) + plus

    assert await work(3) == 6
    assert await work(3, plus=1) == 7
    assert await durable.run_workflow(work, 4) == 8


async def test_the_same_id_runs_once_and_answers_twice(durable: Durable) -> None:
    runs = []

    @durable.workflow
    async def work(number: int) -> int:
        runs.append(number)
        return number

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work, 1) == 1
    assert await with_id.run_workflow(work, 1) == 1
    handle = await with_id.start_workflow(work, 1)
    assert await handle.get_result() == 1
    assert runs == [1]


async def test_calls_with_one_id_at_once_share_one_run(durable: Durable) -> None:
    runs = []

    @durable.step
    async def step() -> int:
        runs.append(1)
        await asyncio.sleep(0)
        return 5

    @durable.workflow
    async def work() -> int:
        return await step()

    calls = [durable.options(workflow_id="w").run_workflow(work) for _ in range(20)]

    assert await asyncio.gather(*calls) == [5] * 20
    assert len(runs) == 1


async def test_an_error_is_recorded_with_its_type_and_raised_again(durable: Durable) -> None:
    runs = []

    @durable.workflow
    async def work() -> None:
        runs.append(1)
        raise LookupError("nothing there") from ValueError("the cause")

    for _ in range(2):
        with pytest.raises(LookupError, match="nothing there") as caught:
            await durable.options(workflow_id="w").run_workflow(work)
        assert repr(caught.value.__cause__) == "ValueError('the cause')"

    status = await (await durable.retrieve_workflow("w")).get_status()
    assert (status.status, repr(status.error)) == ("ERROR", "LookupError('nothing there')")
    assert runs == [1]


async def test_the_id_of_another_function_is_a_conflict(durable: Durable) -> None:
    @durable.workflow
    async def one() -> None: ...

    @durable.workflow
    async def two() -> None: ...

    await durable.options(workflow_id="w").run_workflow(one)

    with pytest.raises(WorkflowConflictError) as caught:
        await durable.options(workflow_id="w").run_workflow(two)
    assert caught.value.status_code == 409
    with pytest.raises(WorkflowConflictError):
        await durable.options(workflow_id="w").start_workflow(two)


async def test_the_id_of_another_function_that_still_runs_is_a_conflict(
    durable: Durable,
) -> None:
    gate = Gate()

    @durable.workflow
    async def one() -> None:
        await gate.wait()

    @durable.workflow
    async def two() -> None: ...

    handle = await durable.options(workflow_id="w").start_workflow(one)
    with pytest.raises(WorkflowConflictError):
        await durable.options(workflow_id="w").run_workflow(two)

    gate.open()
    await handle.get_result()


@pytest.mark.parametrize("workflow_id", ["", "a~b", "a\nb", "x" * 256])
async def test_an_id_that_could_be_mistaken_is_refused(durable: Durable, workflow_id: str) -> None:
    with pytest.raises(DurableUsageError, match="workflow id"):
        durable.options(workflow_id=workflow_id)


async def test_values_have_the_same_types_on_the_first_run_and_later(durable: Durable) -> None:
    seen: list[object] = []

    @durable.step
    async def step(invoice: Invoice) -> Invoice:
        return invoice

    @durable.workflow
    async def work(invoice: Invoice) -> Invoice:
        result = await step(invoice)
        seen.append(result)
        return result

    invoice = Invoice((1, 2), datetime.date(2026, 1, 1))
    first = await durable.options(workflow_id="w").run_workflow(work, invoice)
    second = await durable.options(workflow_id="w").run_workflow(work, invoice)

    assert first == second == seen[0] == invoice
    assert first is not invoice
    assert seen[0] is not invoice


async def test_none_is_a_result(durable: Durable) -> None:
    @durable.workflow
    async def work() -> None:
        return None

    handle = await durable.start_workflow(work)

    assert await handle.get_result() is None
    assert (await handle.get_status()).status == "SUCCESS"


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_recorded(
    durable: Durable,
) -> None:
    @durable.workflow
    async def work(number: int) -> None: ...

    with_id = durable.options(workflow_id="w")
    with pytest.raises(TypeError):
        await with_id.run_workflow(work)  # type: ignore[call-arg]
    with pytest.raises(EncodeError, match=r"work.*number"):
        await with_id.run_workflow(work, object())  # type: ignore[arg-type]
    with pytest.raises(WorkflowNotFoundError):
        await durable.retrieve_workflow("w")


async def test_a_caller_that_is_cancelled_does_not_stop_the_workflow(durable: Durable) -> None:
    gate = Gate()

    @durable.step
    async def step() -> str:
        await gate.wait()
        return "done"

    @durable.workflow
    async def work() -> str:
        return await step()

    with_id = durable.options(workflow_id="w")
    caller = asyncio.ensure_future(with_id.run_workflow(work))
    await gate.reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.open()

    assert await (await durable.retrieve_workflow("w")).get_result() == "done"


async def test_start_returns_once_the_start_is_recorded_and_runs_in_the_background(
    durable: Durable,
) -> None:
    gate = Gate()

    @durable.workflow
    async def work(number: int) -> int:
        await gate.wait()
        return number

    handle = await durable.start_workflow(work, 7)
    status = await handle.get_status()
    assert (status.status, status.input, status.output) == ("PENDING", {"number": 7}, None)
    with pytest.raises(TimeoutError):
        await handle.get_result(timeout=0.01)

    gate.open()
    assert await handle.get_result(timeout=60) == 7
    status = await handle.get_status()
    assert (status.status, status.output, status.attempts) == ("SUCCESS", 7, 1)
    assert status.updated_at >= status.created_at
    assert status.name.endswith("work")


async def test_an_unknown_id_has_no_handle(durable: Durable) -> None:
    with pytest.raises(WorkflowNotFoundError) as caught:
        await durable.retrieve_workflow("nothing")

    assert caught.value.status_code == 404


async def test_children_belong_to_the_call_that_made_them(durable: Durable) -> None:
    @durable.workflow
    async def child(number: int) -> str | None:
        return durable.workflow_id

    @durable.workflow
    async def parent() -> list[str | None]:
        handle = await durable.start_workflow(child, 2)
        return [await child(1), await handle.get_result()]

    with_id = durable.options(workflow_id="p")

    assert await with_id.run_workflow(parent) == ["p~1", "p~0"]
    status = await (await durable.retrieve_workflow("p~1")).get_status()
    assert (status.parent_id, status.output) == ("p", "p~1")


async def test_a_childs_error_can_be_caught(durable: Durable) -> None:
    @durable.workflow
    async def child() -> None:
        raise KeyError("missing")

    @durable.workflow
    async def parent() -> str:
        try:
            await child()
        except KeyError as error:
            return f"caught {error}"
        return "nothing caught"

    assert await parent() == "caught 'missing'"


async def test_a_child_that_nobody_awaits_ends_by_itself(durable: Durable) -> None:
    gate = Gate()

    @durable.workflow
    async def child() -> str:
        await gate.wait()
        return "alone"

    @durable.workflow
    async def parent() -> str:
        return (await durable.start_workflow(child)).workflow_id

    child_id = await parent()
    gate.open()

    assert await (await durable.retrieve_workflow(child_id)).get_result() == "alone"


async def test_what_a_workflow_saw_of_another_is_recorded(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)
    seen = []

    @durable.workflow
    async def child() -> None: ...

    @durable.workflow
    async def parent() -> str:
        handle = await durable.start_workflow(child)
        await handle.get_result()
        status = await handle.get_status()
        seen.append(status.status)
        await gate.wait()
        return str(status.status)

    async with durable:
        await durable.options(workflow_id="p").start_workflow(parent)
        await gate.reached.wait()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("p")).get_result() == "SUCCESS"
    assert seen == ["SUCCESS", "SUCCESS"]


async def test_the_same_name_twice_is_refused_unless_it_is_the_same_function(
    durable: Durable,
) -> None:
    async def one() -> None: ...

    async def two() -> None: ...

    durable.workflow(name="same")(one)
    durable.workflow(name="same")(one)
    with pytest.raises(DurableUsageError, match="two workflows"):
        durable.workflow(name="same")(two)


async def test_only_workflows_of_this_instance_can_be_started(durable: Durable, url: str) -> None:
    other = Durable(url)

    @other.workflow
    async def foreign() -> None: ...

    @durable.step
    async def step() -> None: ...

    for function in (foreign, step):
        with pytest.raises(DurableUsageError, match="not a workflow of this Durable"):
            durable.start_workflow(function)


async def test_a_call_before_the_start_says_what_to_do(url: str) -> None:
    durable = Durable(url)

    @durable.workflow
    async def work() -> None: ...

    with pytest.raises(DurableUsageError, match=r"durable\.wrap"):
        await work()


async def test_an_unknown_scheme_is_refused_at_once() -> None:
    with pytest.raises(DurableUsageError, match="no storage adapter for 'oracle'"):
        Durable("oracle://localhost/db")


async def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGI_DURABLE_URL", "sqlite:///elsewhere.db")

    assert Durable().url == "sqlite:///elsewhere.db"


async def test_a_call_of_the_wrong_function_leaves_the_workflow_to_recovery(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    gate = Gate()

    @durable.workflow
    async def right() -> str:
        await gate.wait()
        return "right"

    @durable.workflow
    async def wrong() -> None: ...

    async with durable:
        await durable.options(workflow_id="w").start_workflow(right)
        await gate.reached.wait()
    gate.open()
    async with durable:
        with pytest.raises(WorkflowConflictError):
            await durable.options(workflow_id="w").run_workflow(wrong)
        assert await (await durable.retrieve_workflow("w")).get_result(timeout=60) == "right"


async def test_waiting_for_a_workflow_that_is_left_alone_says_why(durable: Durable) -> None:
    @durable.workflow
    async def work() -> None:
        raise asyncio.CancelledError

    handle = await durable.start_workflow(work)

    for _ in range(2):
        with pytest.raises(WorkflowInterruptedError, match="CancelledError"):
            await handle.get_result(timeout=60)


async def test_the_context_is_none_outside(durable: Durable) -> None:
    assert durable.workflow_id is None
    assert durable.step_id is None
    assert durable.request_id is None
    assert durable.request is None


async def test_two_instances_live_in_one_process(durable: Durable, url: str) -> None:
    async with Durable(url.replace("test.db", "other.db")) as other:

        @other.step
        async def foreign_step() -> str | None:
            return other.workflow_id

        @durable.workflow
        async def work() -> tuple[str | None, str | None]:
            return durable.workflow_id, await foreign_step()

        own, foreign = await durable.options(workflow_id="w").run_workflow(work)

    assert (own, foreign) == ("w", None)
