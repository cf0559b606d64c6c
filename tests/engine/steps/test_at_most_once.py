"""Steps that run at most once: begun durably, and never begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from support.executors import declared_dead, kill, query, result_of, storage_of
from support.interruption import Gate
from support.threads import ThreadGate, in_thread

from asgi_durable import (
    Durable,
    DurableUsageError,
    EncodeError,
    RetryPolicy,
    StepInterruptedError,
    StepTimeoutError,
    StorageUnavailableError,
    WorkflowInterruptedError,
)
from asgi_durable.engine.process import committer
from asgi_durable.engine.recovery import own_workflows as recovery
from asgi_durable.storage.writes import CompleteStep, Outcome, Write

pytestmark = pytest.mark.anyio

LOOKED = "looked after StepInterruptedError"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def paid() -> str:
    return "paid"


class Process:
    """An executor that pays at most once, and looks at the account after an interruption.

    Args:
        url: The database.
        pay: The body of the step that pays.
        look: The body of the step that looks.

    Attributes:
        ran: The steps whose bodies have begun here.
        raised: The interrupted steps that the workflow has caught.
        order: The workflow.
        careless: The same workflow without the step that looks.
    """

    def __init__(
        self,
        url: str,
        pay: Callable[[], Awaitable[Any]] = paid,
        look: Callable[[], Awaitable[Any]] = paid,
        **options: Any,
    ) -> None:
        self.durable = durable = Durable(url, **{"drain_timeout": 0.0} | options)
        self.ran: list[str] = []
        self.raised: list[str] = []

        @durable.step(name="pay", at_most_once=True)
        async def pay_once() -> Any:
            self.ran.append("pay")
            return await pay()

        @durable.step(name="look", retry=None)
        async def look_at(error: str) -> str:
            self.ran.append("look")
            await look()
            return f"looked after {error}"

        @durable.workflow(name="order")
        async def order() -> Any:
            try:
                return await pay_once()
            except StepInterruptedError as error:
                self.raised.append(error.step)
                return await look_at(type(error).__name__)

        @durable.workflow(name="careless")
        async def careless() -> Any:
            return await pay_once()

        self.order, self.careless = order, careless

    async def run(self, workflow: Any) -> Any:
        return await self.durable.options(workflow_id="w").run_workflow(workflow)

    async def begin(self, workflow: Any, gate: Gate) -> None:
        await self.durable.options(workflow_id="w").start_workflow(workflow)
        await gate.reached.wait()


async def log_of(url: str) -> list[tuple[str, str]]:
    columns = "name, output IS NOT NULL, error IS NOT NULL"
    rows = await query(url, f"SELECT {columns} FROM asgi_durable_steps ORDER BY step_number")
    kinds = {(0, 0): "begun", (1, 0): "succeeded", (0, 1): "failed", (1, 1): "failed for good"}
    return [(name, kinds[bool(output), bool(error)]) for name, output, error in rows]


BEGUN, FAILED = [("pay", "begun")], [("pay", "failed for good")]


async def test_that_it_begins_is_durable_before_its_body_runs(url: str) -> None:
    seen = []

    async def pay() -> str:
        seen.extend(await log_of(url))
        return "paid"

    process = Process(url, pay)
    async with process.durable:
        assert await process.run(process.order) == "paid"

    assert (seen, await log_of(url)) == (BEGUN, [("pay", "succeeded")])


async def test_what_is_recorded_of_it_is_replayed(url: str) -> None:
    first, second = Process(url), Process(url)
    for process in (first, second):
        async with process.durable:
            assert await process.run(process.order) == "paid"

    assert (first.ran, second.ran) == (["pay"], [])


async def stop(durable: Durable) -> None:
    await durable.engine.stop()


@pytest.mark.parametrize("end", [kill, stop])
async def test_where_its_outcome_got_lost_it_is_interrupted(
    url: str, end: Callable[[Durable], Awaitable[None]]
) -> None:
    gate = Gate()
    first, second = Process(url, gate.wait), Process(url)
    async with second.durable:
        await first.durable.engine.start()
        await first.begin(first.order, gate)
        await end(first.durable)

        assert await result_of(second.durable, "w") == LOOKED

    assert (first.ran, second.ran, second.raised) == (["pay"], ["look"], ["pay"])
    assert await log_of(url) == [*FAILED, ("look", "succeeded")]


async def test_every_replay_raises_the_same(url: str) -> None:
    pay, look = Gate(), Gate()
    first, second, third = Process(url, pay.wait), Process(url, look=look.wait), Process(url)
    async with first.durable:
        await first.begin(first.order, pay)
    async with second.durable:
        await look.reached.wait()
    async with third.durable:
        assert await result_of(third.durable, "w") == LOOKED

    assert [process.ran for process in (first, second, third)] == [["pay"], ["look"], ["look"]]
    assert [process.raised for process in (first, second, third)] == [[], ["pay"], ["pay"]]


async def test_uncaught_the_interruption_ends_the_workflow(url: str) -> None:
    gate = Gate()
    first, second = Process(url, gate.wait), Process(url)
    async with first.durable:
        await first.begin(first.careless, gate)
    async with second.durable:
        for _ in range(2):
            with pytest.raises(StepInterruptedError, match=r"'pay'.*may or may not have happened"):
                await second.run(second.careless)
        handle = await second.durable.retrieve_workflow("w")
        assert (await handle.get_status()).status == "ERROR"

    assert second.ran == []


async def test_a_body_of_an_executor_that_is_dead_by_then_has_no_outcome(url: str) -> None:
    gate = Gate()
    first, second = Process(url, gate.wait), Process(url)
    async with first.durable, second.durable:
        await first.begin(first.order, gate)
        async with declared_dead(first.durable):
            assert await result_of(second.durable, "w") == LOOKED
            gate.open()
        assert await result_of(first.durable, "w") == LOOKED

    assert (first.ran, second.ran) == (["pay"], ["look"])
    assert await log_of(url) == [*FAILED, ("look", "succeeded")]


async def test_a_failure_is_recorded_after_one_attempt(url: str) -> None:
    async def pay() -> None:
        raise LookupError("no account")

    first, second = Process(url, pay), Process(url)
    for process in (first, second):
        async with process.durable:
            with pytest.raises(LookupError, match="no account"):
                await process.run(process.careless)

    assert (first.ran, second.ran) == (["pay"], [])
    assert await log_of(url) == FAILED


async def test_a_result_that_cannot_be_recorded_is_a_failure(url: str) -> None:
    async def pay() -> object:
        return object()

    process = Process(url, pay)
    async with process.durable:
        with pytest.raises(EncodeError):
            await process.run(process.careless)

    assert (process.ran, await log_of(url)) == (["pay"], FAILED)


async def test_an_infrastructure_error_in_its_body_is_no_outcome(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)

    async def pay() -> None:
        raise StorageUnavailableError

    process = Process(url, pay)
    async with process.durable:
        with pytest.raises(StorageUnavailableError):
            await process.run(process.order)
        # The same process continues the workflow.
        assert await result_of(process.durable, "w") == LOOKED

    assert process.ran == ["pay", "look"]


class Commits:
    """Raises for the commit of the first outcome of ``pay``, but makes the commit.

    Args:
        process: A started process.
        is_late: True to make the commit once *gate* is open, False to make it at once.

    Attributes:
        late: The outcomes of that commit.
        before_next: Called before the next outcome of ``pay`` is committed.
    """

    def __init__(self, process: Process, *, is_late: bool) -> None:
        storage = storage_of(process.durable)
        self._commit = storage.commit
        self.gate = Gate()
        if not is_late:
            self.gate.open()
        self.late: asyncio.Task[list[Outcome]] | None = None
        self.before_next: Callable[[], Awaitable[None]] = self.nothing
        storage.commit = self.commit  # type: ignore[method-assign]

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        outcomes = [write for write in batch if isinstance(write, CompleteStep)]
        if self.late is not None:
            if outcomes:
                await self.before_next()
            return await self._commit(batch)
        if not outcomes:
            return await self._commit(batch)
        self.late = asyncio.ensure_future(self.arrive(outcomes))
        if self.gate.is_open:
            await self.late
        raise StorageUnavailableError

    async def arrive(self, outcomes: Sequence[Write]) -> list[Outcome]:
        await self.gate.wait()
        return await self._commit(outcomes)

    async def is_there(self) -> list[str]:
        """Make the late commit now."""
        assert self.late is not None
        self.gate.open()
        return [outcome.kind.name for outcome in await self.late]

    async def nothing(self) -> None:
        """Do nothing."""


async def test_an_outcome_whose_answer_got_lost_is_written_again(url: str) -> None:
    process = Process(url)
    async with process.durable:
        commits = Commits(process, is_late=False)
        assert await process.run(process.order) == "paid"

    assert await commits.is_there() == ["DONE"]
    assert (process.ran, await log_of(url)) == (["pay"], [("pay", "succeeded")])


async def test_an_outcome_that_arrives_late_changes_nothing_any_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(committer, "FEWEST_ATTEMPTS", 1)
    look = Gate()
    process = Process(url, look=look.wait, storage_patience=0.0)
    async with process.durable:
        commits = Commits(process, is_late=True)
        with pytest.raises(StorageUnavailableError):
            await process.run(process.order)
        await look.reached.wait()
        assert await commits.is_there() == ["CONFLICT"]
        look.open()
        assert await result_of(process.durable, "w") == LOOKED

    assert (process.ran, await log_of(url)) == (["pay", "look"], [*FAILED, ("look", "succeeded")])


async def test_an_outcome_that_arrives_just_in_time_is_the_one_that_counts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(committer, "FEWEST_ATTEMPTS", 1)
    process = Process(url, storage_patience=0.0)
    arrived = []
    async with process.durable:
        commits = Commits(process, is_late=True)

        async def arrive() -> None:
            arrived.extend(await commits.is_there())

        commits.before_next = arrive
        with pytest.raises(StorageUnavailableError):
            await process.run(process.careless)
        # The run that found no record has not ended.
        assert await result_of(process.durable, "w") == "paid"

    assert arrived == ["DONE"]
    assert (process.ran, await log_of(url)) == (["pay"], [("pay", "succeeded")])


async def test_its_time_limit_is_an_outcome(url: str) -> None:
    ran = []
    async with Durable(url) as durable:

        @durable.step(name="pay", at_most_once=True, timeout=0.01)
        async def pay() -> None:
            ran.append("pay")
            await asyncio.Event().wait()

        @durable.workflow
        async def order() -> None:
            await pay()

        for _ in range(2):
            with pytest.raises(StepTimeoutError):
                await durable.options(workflow_id="w").run_workflow(order)

    assert (ran, await log_of(url)) == (["pay"], FAILED)


async def test_many_of_them_at_once_run_once_each(url: str) -> None:
    ran = []
    async with Durable(url) as durable:

        @durable.step(at_most_once=True)
        async def pay(number: int) -> int:
            ran.append(number)
            if number % 3 == 0:
                raise LookupError(number)
            return number

        @durable.workflow
        async def order() -> list[str]:
            steps = [pay(number) for number in range(30)]
            return [str(paid) for paid in await asyncio.gather(*steps, return_exceptions=True)]

        expected = [str(number) for number in range(30)]
        for _ in range(2):
            assert await durable.options(workflow_id="w").run_workflow(order) == expected

    assert sorted(ran) == list(range(30))


async def test_a_step_that_is_not_async_runs_at_most_once(url: str) -> None:
    gate, ran = ThreadGate(), []

    def process(pause: Callable[[], None]) -> tuple[Durable, Callable[[], str]]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="pay", at_most_once=True)
        def pay() -> None:
            ran.append("pay")
            pause()

        @durable.workflow(name="order")
        def order() -> str:
            try:
                pay()
            except StepInterruptedError:
                return "interrupted"
            return "paid"

        return durable, order

    first, order = process(gate.wait)
    second, _ = process(gate.wait)
    async with first:
        options = first.blocking.options(workflow_id="w")
        calling = asyncio.ensure_future(in_thread(options.run_workflow, order))
        await gate.is_reached()
    gate.opened.set()
    with pytest.raises(WorkflowInterruptedError):
        await calling
    async with second:
        assert await result_of(second, "w") == "interrupted"

    assert ran == ["pay"]


async def test_outside_a_workflow_it_is_a_plain_call(url: str) -> None:
    process = Process(url)
    async with process.durable as durable:

        @durable.step(at_most_once=True)
        async def pay() -> str:
            return "paid"

        assert await pay() == "paid"

        assert await log_of(url) == []


async def test_an_ordinary_step_of_newer_code_is_interrupted_as_well(url: str) -> None:
    gate, ran = Gate(), []
    first, second = Process(url, gate.wait), Durable(url, drain_timeout=0.0)

    @second.step(name="pay")
    async def pay() -> None:
        ran.append("pay")

    @second.workflow(name="order")
    async def order() -> str:
        try:
            await pay()
        except StepInterruptedError:
            return "interrupted"
        return "paid"

    async with first.durable:
        await first.begin(first.order, gate)
    async with second:
        assert await result_of(second, "w") == "interrupted"

    assert ran == []


async def test_it_is_not_tried_again(sqlite_url: str) -> None:
    durable = Durable(sqlite_url)

    async def pay() -> None: ...

    for retry in (RetryPolicy(), RetryPolicy(max_attempts=2)):
        with pytest.raises(DurableUsageError, match=r"'pay': a step that runs at most once"):
            durable.step(name="pay", at_most_once=True, retry=retry)(pay)
    for one in (None, RetryPolicy(max_attempts=1)):
        durable.step(name="pay", at_most_once=True, retry=one)(pay)
    durable.step(name="pay", at_most_once=True)(pay)
