"""Steps without effects: recorded as others, but their bodies wait for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from support.executors import storage_of
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, StorageError
from asgi_durable.storage.writes import Outcome, OutcomeKind, RecordStep, Write

pytestmark = pytest.mark.anyio


async def test_a_recorded_one_is_not_run_again(url: str) -> None:
    runs: list[str] = []
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step(effects=False)
    async def read(name: str) -> str:
        runs.append(name)
        return name.upper()

    @durable.step
    async def charge() -> None:
        runs.append("charge")
        await gate.wait()

    @durable.workflow
    async def work() -> list[str]:
        values = [await read("a"), await read("b")]
        await charge()
        return values

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        handle = await durable.retrieve_workflow("w")
        assert await handle.get_result() == ["A", "B"]
    assert runs == ["a", "b", "charge", "charge"]


async def test_its_errors_and_retries_are_those_of_any_step(durable: Durable) -> None:
    @durable.step(effects=False, retry=None)
    async def read() -> None:
        raise LookupError("nothing there")

    @durable.workflow
    async def work() -> str:
        try:
            await read()
        except LookupError as error:
            return str(error)
        return ""

    assert await work() == "nothing there"


async def test_a_def_function_may_have_none(durable: Durable) -> None:
    @durable.step(effects=False)
    def read(number: int) -> int:
        return number + 1

    @durable.workflow
    async def work() -> int:
        return await durable.run_step(read, await durable.run_step(read, 1))

    assert await work() == 3


async def test_a_transaction_waits_for_those_before(durable: Durable) -> None:
    recorded: list[int] = []

    @durable.step(effects=False)
    async def read(number: int) -> int:
        return number

    @durable.transaction
    async def save() -> None:
        (run,) = await storage_of(durable).load_runs([durable.workflow_id or ""])
        recorded.append(len(run.steps))

    @durable.workflow
    async def work() -> None:
        for number in range(3):
            await read(number)
        await save()

    await work()

    assert recorded == [3]


async def test_a_lost_record_stops_the_run_before_the_next_effect(
    durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    @durable.step(effects=False)
    async def read() -> None:
        runs.append("read")

    @durable.step
    async def charge() -> None:
        runs.append("charge")

    @durable.workflow
    async def work() -> None:
        await read()
        await charge()

    async with durable:
        storage = storage_of(durable)
        commit = storage.commit

        async def refuse_records(writes: Any) -> list[Outcome]:
            outcomes = await commit([w for w in writes if not isinstance(w, RecordStep)])
            kept = iter(outcomes)
            return [refused(w) if isinstance(w, RecordStep) else next(kept) for w in writes]

        def refused(_write: Write) -> Outcome:
            return Outcome(OutcomeKind.REJECTED)

        monkeypatch.setattr(storage, "commit", refuse_records)
        with pytest.raises(StorageError, match="cannot hold a record"):
            await work()

    assert runs == ["read"]


async def test_one_that_runs_at_most_once_has_effects(durable: Durable) -> None:
    with pytest.raises(DurableUsageError, match="may run again"):

        @durable.step(effects=False, at_most_once=True)
        async def charge() -> None: ...
