"""``durable.background``: started with the end of its caller, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.asgi import answer, answered, exchange, keyed
from support.databases.statements import written_statements
from support.executors import query, storage_of, until
from support.interruption import Gate
from support.threads import in_thread

from asgi_durable import (
    Durable,
    DurableUsageError,
    EncodeError,
    FinalError,
    StorageError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)
from asgi_durable.storage.writes import FinishWorkflow, Outcome, Write

pytestmark = pytest.mark.anyio

BACKGROUND = "SELECT workflow_id, state FROM asgi_durable_workflows WHERE name = 'notify'"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def is_all_durable(durable: Durable) -> bool:
    frame = durable.engine.frame()
    assert frame is not None
    return frame.run is not None and frame.run.writes.is_all_durable()


class Shop:
    """A request handler and a workflow that both start a background workflow.

    Attributes:
        notified: The names for which the background workflow has run.
        gate: The gate where that waits.
        status: The status code of the handler's response; if ``None``, it raises.
    """

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.notified: list[str] = []
        self.gate = Gate()
        self.gate.open()
        self.status: int | None = 201
        self.steps_ran = 0
        self.calls_step = True

        @durable.step
        async def send(name: str) -> None:
            self.notified.append(name)

        @durable.workflow(name="notify")
        async def notify(name: str) -> None:
            await self.gate.wait()
            await send(name)

        @durable.step
        async def pack() -> None:
            self.steps_ran += 1

        @durable.workflow(name="order")
        async def order(name: str) -> str:
            started = await durable.background(notify, name)
            await pack()
            if self.status is None:
                raise ValueError("out of stock")
            return started

        async def handle(scope, receive, send) -> None:
            started = await durable.background(notify, "ann")
            if self.calls_step:
                await pack()
            if self.status is None:
                raise ValueError("out of stock")
            await answer(send, started.encode(), status=self.status)

        self.notify, self.order, self.pack = notify, order, pack
        self.app = durable.wrap(handle)

    async def rows(self) -> list[tuple[str, str]]:
        """Return ids and states of the background workflows."""
        return [tuple(row) for row in await query(self.durable.url, BACKGROUND)]

    async def is_done(self, *names: str) -> None:
        """Wait until the background workflows have ended."""
        states = ["SUCCESS"] * len(names)

        async def done() -> bool:
            return [state for _, state in await self.rows()] == states

        await until(done)
        assert sorted(self.notified) == sorted(names)


@pytest.fixture
def shop(durable: Durable) -> Shop:
    return Shop(durable)


async def test_it_runs_after_the_answer_and_is_not_waited_for(shop: Shop) -> None:
    shop.gate = Gate()

    first = await exchange(shop.app, keyed())
    rows = await shop.rows()
    again = await exchange(shop.app, keyed())
    shop.gate.open()

    assert (first.status, first.body) == (again.status, again.body)
    assert rows == [(first.body.decode(), "PENDING")]
    await shop.is_done("ann")


async def test_a_workflows_result_starts_it(shop: Shop) -> None:
    started = await shop.order("bob")
    handle = await shop.durable.retrieve_workflow(started)

    await handle.get_result(timeout=30)

    status = await handle.get_status()
    assert status.workflow_id == f"{status.parent_id}~0"
    assert shop.notified == ["bob"]


async def test_nothing_is_there_before_the_end(durable: Durable) -> None:
    shop, gate, ids = Shop(durable), Gate(), []

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> None:
        ids.append(await durable.background(shop.notify, "eve"))
        await wait()

    running = asyncio.create_task(durable.run_workflow(work))
    await gate.reached.wait()

    with pytest.raises(WorkflowNotFoundError):
        await durable.retrieve_workflow(ids[0])
    gate.open()
    await running
    await shop.is_done("eve")


@pytest.mark.parametrize("status", [None, 503])
async def test_a_failure_starts_nothing_and_its_retry_does(shop: Shop, status: int | None) -> None:
    shop.status = status

    if status is None:
        with pytest.raises(ValueError, match="out of stock"):
            await exchange(shop.app, keyed())
    else:
        await exchange(shop.app, keyed())
    assert await shop.rows() == []
    shop.status = 201
    own = await exchange(shop.app, keyed())

    assert own.status == 201
    await shop.is_done("ann")
    assert shop.steps_ran == 1


async def test_a_workflow_that_fails_starts_nothing(shop: Shop) -> None:
    shop.status = None

    with pytest.raises(ValueError, match="out of stock"):
        await shop.order("bob")

    assert await shop.rows() == []


async def test_a_4xx_that_is_not_kept_starts_nothing_and_frees_the_key(shop: Shop) -> None:
    shop.status, shop.calls_step = 404, False

    refused = [await exchange(shop.app, keyed()) for _ in range(2)]

    assert [each.headers("idempotent-replayed") for each in refused] == [[], []]
    assert await query(shop.durable.url, "SELECT * FROM asgi_durable_workflows") == []


async def test_a_4xx_that_is_kept_is_an_end(shop: Shop) -> None:
    shop.status = 404

    refused = [await exchange(shop.app, keyed()) for _ in range(2)]

    assert refused[1].headers("idempotent-replayed") == ["true"]
    await shop.is_done("ann")


async def test_a_final_error_is_an_end(durable: Durable) -> None:
    shop = Shop(durable)

    async def handle(scope, receive, send) -> None:
        await durable.background(shop.notify, "ann")
        raise FinalError("closed")

    await exchange(durable.wrap(handle), keyed())

    await shop.is_done("ann")


async def test_it_costs_no_commit(durable: Durable) -> None:
    shop = Shop(durable)

    @durable.workflow
    async def work() -> None:
        await shop.pack()
        await durable.background(shop.notify, "eve")
        await durable.background(shop.notify, "fay")

    shop.gate = Gate()
    if durable.url.startswith("sqlite"):
        with written_statements(durable) as statements:
            await work()
        assert statements.count("COMMIT") == 2
    else:
        await work()
    shop.gate.open()
    await shop.is_done("eve", "fay")


async def test_without_a_key_it_is_started_at_once(shop: Shop) -> None:
    shop.gate, scope = Gate(), keyed()
    scope["headers"] = []

    own = await exchange(shop.app, scope)

    assert await shop.rows() == [(own.body.decode(), "PENDING")]
    shop.gate.open()
    await shop.is_done("ann")


async def test_a_step_cannot_call_it(durable: Durable) -> None:
    shop = Shop(durable)

    @durable.step(retry=None)
    async def step() -> None:
        await durable.background(shop.notify, "eve")

    @durable.workflow
    async def work() -> None:
        await step()

    with pytest.raises(DurableUsageError, match="inside"):
        await work()


async def test_what_cannot_be_recorded_is_refused_at_the_call(durable: Durable) -> None:
    shop = Shop(durable)

    @durable.workflow
    async def work() -> str:
        with pytest.raises(EncodeError):
            await durable.background(shop.notify, object())
        with pytest.raises(TypeError):
            await durable.background(shop.notify)
        return await durable.background(shop.notify, "eve")

    assert (await work()).endswith("~2")
    await shop.is_done("eve")


async def test_code_that_is_not_async_calls_it_in_its_thread(durable: Durable) -> None:
    shop = Shop(durable)

    @durable.workflow
    def work() -> str:
        return durable.blocking.background(shop.notify, "eve")

    started = await in_thread(work)

    assert await shop.rows() == [(started, "PENDING")] or shop.notified == ["eve"]
    await shop.is_done("eve")


async def test_a_call_that_would_block_the_event_loop_is_refused(shop: Shop) -> None:
    with pytest.raises(DurableUsageError, match="background"):
        shop.durable.blocking.background(shop.notify, "eve")


@pytest.mark.parametrize("now", ["nothing", "another", "step"])
async def test_code_that_left_its_log_is_told(durable: Durable, now: str) -> None:
    """The recorded follower does not run in its place."""
    shop, tries = Shop(durable), []

    async def handle(scope, receive, send) -> None:
        tries.append(1)
        if len(tries) == 1 or now == "another":
            await durable.background(shop.notify, f"try {len(tries)}")
        elif now == "step":
            await shop.pack()
        await shop.pack()
        await answer(send, status=503 if len(tries) == 1 else 201)

    app = durable.wrap(handle)
    await exchange(app, keyed())
    diverged = await exchange(app, keyed())

    assert (diverged.status, b"NON_DETERMINISTIC_WORKFLOW" in diverged.body) == (500, True)
    assert shop.steps_ran == 1
    assert await shop.rows() == []


async def test_what_is_called_while_the_end_is_committed_is_refused(durable: Durable) -> None:
    shop, committing, tasks = Shop(durable), asyncio.Event(), []
    storage = storage_of(durable)
    commit = storage.commit

    async def call_late() -> None:
        await committing.wait()
        await durable.background(shop.notify, "late")

    async def commit_late(batch: Sequence[Write]) -> list[Outcome]:
        committing.set()
        await asyncio.wait(tasks)
        return await commit(batch)

    async def handle(scope, receive, send) -> None:
        await durable.background(shop.notify, "eve")
        tasks.append(asyncio.create_task(call_late()))
        storage.commit = commit_late
        await answer(send)

    own = await exchange(durable.wrap(handle), keyed())

    with pytest.raises(WorkflowInterruptedError, match="its end is being committed"):
        await tasks[0]
    assert own.status == 200
    await shop.is_done("eve")


async def test_an_answer_that_is_not_committed_is_not_shown_without_what_follows(
    url: str,
) -> None:
    """Otherwise the client would not retry, and nothing would be started."""
    durable = Durable(url, drain_timeout=0.0, storage_patience=0.0)
    async with durable:
        shop, storage = Shop(durable), storage_of(durable)
        commit = storage.commit

        async def fail(batch: Sequence[Write]) -> list[Outcome]:
            if any(isinstance(write, FinishWorkflow) for write in batch):
                storage.commit = commit
                raise StorageError("broken")
            return await commit(batch)

        async def handle(scope, receive, send) -> None:
            await durable.background(shop.notify, "ann")
            await shop.pack()
            # Only the end is left to be committed.
            await until(lambda: is_all_durable(durable))
            storage.commit = commit if tries else fail
            tries.append(1)
            await answer(send)

        tries: list[int] = []
        app = durable.wrap(handle)
        unknown = await exchange(app, keyed())
        own = await until(lambda: answered(lambda: exchange(app, keyed())))

        assert (unknown.status, b"OUTCOME_UNKNOWN" in unknown.body) == (503, True)
        assert own.status == 200
        await shop.is_done("ann")


async def test_what_a_stop_keeps_from_running_runs_in_another_process(url: str) -> None:
    here, there = Durable(url, drain_timeout=0.0), Durable(url, drain_timeout=0.0)
    shop, others = Shop(here), Shop(there)
    shop.gate = Gate()
    async with here:
        await exchange(shop.app, keyed())
    async with there:
        await others.is_done("ann")

    assert shop.notified == []


async def test_an_answer_stands_that_is_committed_as_the_engine_stops(url: str) -> None:
    here, there = Durable(url, drain_timeout=0.0), Durable(url, drain_timeout=0.0)
    shop, others = Shop(here), Shop(there)

    async def handle(scope, receive, send) -> None:
        await here.background(shop.notify, "ann")
        here.engine.running().active.close()
        await answer(send)

    async with here:
        own = await exchange(here.wrap(handle), keyed())
    async with there:
        await others.is_done("ann")

    assert (own.status, shop.notified) == (200, [])


def test_what_an_event_loop_has_no_time_for_runs_on_the_next_one(url: str) -> None:
    """As with a test client without ``with``, which has an event loop for each request."""
    durable = Durable(url)
    shop = Shop(durable)

    async def once() -> None:
        await exchange(shop.app, keyed())

    async def later() -> None:
        shop.gate = Gate()
        shop.gate.open()
        await exchange(shop.app, keyed("another", path="/other"))
        await until(are_both_done)
        await durable.engine.stop()

    async def are_both_done() -> bool:
        return [state for _, state in await shop.rows()] == ["SUCCESS", "SUCCESS"]

    asyncio.run(once())
    asyncio.run(later())

    # A step runs at least once: the process may have ended before its record.
    assert set(shop.notified) == {"ann"}
