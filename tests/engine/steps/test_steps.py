"""Steps: recorded once, retried by their policy, plain outside a workflow."""

from __future__ import annotations

import asyncio

import pytest

from asgi_durable import (
    Durable,
    DurableUsageError,
    EncodeError,
    RetryPolicy,
    StepRetriesExhaustedError,
    StepTimeoutError,
    WorkflowInterruptedError,
)

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(max_attempts=3, initial_interval=0.0)


async def test_a_step_outside_a_workflow_is_a_plain_call(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    async def fail() -> None:
        runs.append(durable.workflow_id)
        raise ValueError("plain")

    with pytest.raises(ValueError, match="plain"):
        await fail()

    assert runs == [None]


async def test_a_step_is_tried_three_times_by_default(durable: Durable) -> None:
    assert durable.step.__kwdefaults__["retry"] == RetryPolicy(max_attempts=3)


async def test_a_step_that_succeeds_in_its_last_attempt_has_succeeded(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    async def flaky() -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ConnectionError
        return "done"

    @durable.workflow
    async def work() -> str:
        return await flaky()

    assert await work() == "done"
    assert len(runs) == 3


async def test_used_up_retries_raise_every_cause_and_again_on_replay(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    async def fail() -> None:
        runs.append(1)
        raise ValueError(f"attempt {len(runs)}")

    @durable.workflow
    async def work() -> None:
        await fail()

    for _ in range(2):
        with pytest.raises(StepRetriesExhaustedError) as caught:
            await durable.options(workflow_id="w").run_workflow(work)
        assert [str(e) for e in caught.value.errors] == ["attempt 1", "attempt 2", "attempt 3"]
        assert "fail" in str(caught.value)

    assert len(runs) == 3


async def test_retry_none_means_one_attempt_and_the_error_itself(durable: Durable) -> None:
    runs = []

    @durable.step(retry=None)
    async def fail() -> None:
        runs.append(1)
        raise ValueError("once")

    @durable.workflow
    async def work() -> None:
        await fail()

    with pytest.raises(ValueError, match="once"):
        await work()

    assert len(runs) == 1


async def test_an_error_that_the_policy_leaves_out_ends_the_step_at_once(
    durable: Durable,
) -> None:
    runs = []

    @durable.step(retry=RetryPolicy(initial_interval=0.0, retry_on=OSError))
    async def fail() -> None:
        runs.append(1)
        raise ValueError("business")

    @durable.workflow
    async def work() -> None:
        await fail()

    with pytest.raises(ValueError, match="business"):
        await work()

    assert len(runs) == 1


async def test_there_is_no_wait_after_the_last_attempt(durable: Durable) -> None:
    # One second before the second attempt; the next wait would be a hundred.
    policy = RetryPolicy(max_attempts=2, initial_interval=1.0, backoff=100.0)

    @durable.step(retry=policy)
    async def fail() -> None:
        raise ValueError

    @durable.workflow
    async def work() -> None:
        await fail()

    async with asyncio.timeout(30):
        with pytest.raises(StepRetriesExhaustedError):
            await work()


async def test_cancelled_error_is_neither_retried_nor_recorded(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    async def cancelled() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise asyncio.CancelledError
        return "done"

    @durable.workflow
    async def work() -> str:
        return await cancelled()

    with pytest.raises(WorkflowInterruptedError):
        await durable.options(workflow_id="w").run_workflow(work)
    assert len(runs) == 1
    handle = await durable.retrieve_workflow("w")
    assert (await handle.get_status()).status == "PENDING"

    assert await durable.options(workflow_id="w").run_workflow(work) == "done"


async def test_a_timeout_ends_the_attempt_and_is_recorded(durable: Durable) -> None:
    cleaned_up = []

    @durable.step(retry=None, timeout=0.01)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(1)

    @durable.workflow
    async def work() -> str:
        try:
            await slow()
        except StepTimeoutError:
            return "too slow"
        return "in time"

    assert await durable.options(workflow_id="w").run_workflow(work) == "too slow"
    assert cleaned_up == [1]


async def test_a_timeout_of_the_steps_own_code_is_its_error(durable: Durable) -> None:
    @durable.step(retry=None, timeout=60)
    async def fail() -> None:
        raise TimeoutError("of the client")

    @durable.workflow
    async def work() -> None:
        await fail()

    with pytest.raises(TimeoutError, match="of the client"):
        await work()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
async def test_a_timeout_must_be_a_positive_number(durable: Durable, timeout: float) -> None:
    async def function() -> None: ...

    with pytest.raises(DurableUsageError, match="timeout"):
        durable.step(timeout=timeout)(function)


async def test_a_step_in_a_step_is_part_of_the_outer_one(durable: Durable) -> None:
    runs = []

    @durable.step
    async def inner() -> str:
        runs.append(durable.step_id)
        return "inner"

    @durable.step
    async def outer() -> str:
        return await inner() + await inner()

    @durable.workflow
    async def work() -> str:
        await inner()
        return await outer()

    assert await work() == "innerinner"
    assert runs == [0, 1, 1]


async def test_a_result_that_cannot_be_recorded_is_the_steps_error(durable: Durable) -> None:
    runs = []

    @durable.step(retry=QUICK)
    async def unencodable() -> object:
        runs.append(1)
        return object()

    @durable.workflow
    async def work() -> None:
        await unencodable()

    for _ in range(2):
        with pytest.raises(EncodeError, match="object"):
            await durable.options(workflow_id="w").run_workflow(work)

    assert len(runs) == 1


async def test_any_argument_counts_for_the_digest(durable: Durable) -> None:
    class Client:
        def __init__(self) -> None:
            self.me = self

    @durable.step
    async def step(client: Client, number: int) -> int:
        return number

    @durable.workflow
    async def work() -> int:
        return await step(Client(), 1)

    assert await work() == 1


async def test_an_error_of_any_size_is_recorded_with_its_class(durable: Durable) -> None:
    @durable.step(retry=None)
    async def fail() -> None:
        raise ValueError("x" * 17_000_000)

    @durable.workflow
    async def work(*, catch: bool) -> int:
        try:
            await fail()
        except ValueError as error:
            if not catch:
                raise
            return len(str(error))
        return 0

    assert 10_000 < await work(catch=True) < 10_100
    with pytest.raises(ValueError, match="17000000 characters"):
        await durable.options(workflow_id="w").run_workflow(work, catch=False)
    assert (await (await durable.retrieve_workflow("w")).get_status()).status == "ERROR"


async def test_of_very_many_errors_the_first_and_the_last_are_kept(durable: Durable) -> None:
    runs = []

    @durable.step(retry=RetryPolicy(max_attempts=250, initial_interval=0.0))
    async def fail() -> None:
        runs.append(1)
        raise ValueError(len(runs))

    @durable.workflow
    async def work() -> None:
        await fail()

    with pytest.raises(StepRetriesExhaustedError) as caught:
        await work()
    assert (caught.value.attempts, len(caught.value.errors)) == (250, 100)
    assert [caught.value.errors[n].args for n in (0, -1)] == [(1,), (250,)]


async def test_a_workflow_cannot_be_called_inside_a_step(durable: Durable) -> None:
    @durable.workflow
    async def child() -> None: ...

    @durable.step(retry=None)
    async def step() -> None:
        await child()

    @durable.workflow
    async def work() -> None:
        await step()

    with pytest.raises(DurableUsageError, match="inside"):
        await work()


async def test_each_step_has_a_key_of_its_own_that_stays_the_same(durable: Durable) -> None:
    keys: list[str] = []

    @durable.step(retry=QUICK)
    async def pay(amount: int) -> None:
        keys.append(durable.idempotency_key_for_step())
        if len(keys) < 3:
            raise ConnectionError

    @durable.transaction
    async def note() -> str:
        return durable.idempotency_key_for_step()

    @durable.workflow
    async def buy() -> str:
        await pay(1)
        await pay(2)
        return await note()

    note_key = await durable.options(workflow_id="w").run_workflow(buy)
    other = await durable.options(workflow_id="other").run_workflow(buy)

    assert len(set(keys[:3])) == 1
    assert len({keys[0], keys[3], note_key, other, *keys[4:]}) == 6
    assert all(len(key) == 26 and key.isalnum() and key.isascii() for key in keys)
    # With another key in a later version of the library it would be a second payment.
    assert keys[0] == "2s7a5azygox74uxofd4vtm7fya"


async def test_code_in_no_step_has_no_key(durable: Durable) -> None:
    @durable.step
    async def plain() -> str:
        return durable.idempotency_key_for_step()

    @durable.workflow
    async def between_steps() -> str:
        return durable.idempotency_key_for_step()

    for call in (plain, between_steps):
        with pytest.raises(DurableUsageError, match="idempotency_key_for_step"):
            await call()
