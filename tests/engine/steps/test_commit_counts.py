"""The number of commits of a workflow: the minimum that durability allows."""

from __future__ import annotations

import asyncio

import pytest
from support.databases.postgres import PostgresServer
from support.databases.statement_log import StatementLog, logging_statements
from support.databases.statements import written_statements

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("steps", "commits"), [(0, 1), (1, 2), (2, 3), (10, 11)])
async def test_a_workflow_alone_costs_a_commit_for_each_step_and_one_more(
    durable: Durable, steps: int, commits: int
) -> None:
    @durable.step
    async def step(number: int) -> int:
        return number

    @durable.workflow
    async def work() -> None:
        for number in range(steps):
            await step(number)

    with written_statements(durable) as statements:
        await work()

    assert statements.count("COMMIT") == commits


@pytest.mark.parametrize(("steps", "commits"), [(1, 1), (10, 1), (60, 1), (200, 4)])
async def test_a_chain_of_steps_without_effects_costs_one_commit(
    durable: Durable, steps: int, commits: int
) -> None:
    @durable.step(effects=False)
    async def read(number: int) -> int:
        return number

    @durable.workflow
    async def work() -> int:
        return sum([await read(number) for number in range(steps)])

    with written_statements(durable) as statements:
        assert await work() == sum(range(steps))

    assert statements.count("COMMIT") == commits


async def test_a_step_with_effects_waits_for_those_without(durable: Durable) -> None:
    commits_before: list[int] = []

    @durable.step(effects=False)
    async def read(number: int) -> int:
        return number

    @durable.step
    async def charge() -> None:
        commits_before.append(statements.count("COMMIT"))

    @durable.workflow
    async def work() -> None:
        for number in range(10):
            await read(number)
        await charge()

    with written_statements(durable) as statements:
        await work()

    assert commits_before == [1]
    assert statements.count("COMMIT") == 2


async def test_a_given_id_costs_one_commit_more(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def work() -> None:
        await step()

    with written_statements(durable) as statements:
        await durable.options(workflow_id="w").run_workflow(work)

    assert statements.count("COMMIT") == 3 - 1


async def test_a_first_execution_reads_nothing_of_the_log(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def work() -> None:
        await step()

    with written_statements(durable) as statements:
        await work()

    reads = [text for text in statements if text.startswith("SELECT") and "executors" not in text]
    assert reads == []


async def test_a_hundred_runs_together_share_their_commits(durable: Durable) -> None:
    @durable.step
    async def step(number: int) -> int:
        return number

    @durable.workflow
    async def work(number: int) -> int:
        return await step(number)

    with written_statements(durable) as statements:
        results = await asyncio.gather(*(work(number) for number in range(100)))

    assert results == list(range(100))
    assert statements.count("COMMIT") <= 10


async def test_a_child_costs_no_commit_of_its_own_at_its_end(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def child() -> None:
        await step()

    @durable.workflow
    async def parent() -> None:
        await child()

    with written_statements(durable) as statements:
        await parent()

    assert statements.count("COMMIT") == 2


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
async def test_on_postgres_a_workflow_of_one_step_is_two_statements_that_commit_and_no_reads(
    own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    async with Durable(logging_statements(own_postgres_url)) as durable:

        @durable.step
        async def step() -> None: ...

        @durable.workflow
        async def work() -> None:
            await step()

        await work()
        log = StatementLog(own_postgres)
        await work()

        executed = log.new_statements()

    # The heartbeat has its own statements, once a second.
    batches = [text for text in executed if text.startswith("WITH executor AS")]
    # Each a transaction of its own: a commit, and one round trip.
    assert len(batches) == 2, executed
    assert all("INSERT INTO" in text for text in batches)
    others = [text for text in executed if text not in batches]
    assert not [text for text in others if "BEGIN" in text or "asgi_durable_steps" in text]


async def test_a_step_that_runs_at_most_once_costs_one_commit_more(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.step(at_most_once=True)
    async def once() -> None: ...

    @durable.workflow
    async def work() -> None:
        await step()
        await once()
        await step()

    with written_statements(durable) as statements:
        await work()

    # Earlier records are committed with its beginning: three steps, the end, no more.
    assert statements.count("COMMIT") == 4
