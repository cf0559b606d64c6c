"""The contract of ``request_transaction`` and ``blocking_request_transaction``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from support.databases.storages import Adapter
from support.records import EXECUTOR, OTHER, request, response, success, workflow

from asgi_durable import DurableUsageError, StorageUnavailableError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.transaction_port import RequestSlot, SlotBusyError, SlotTakenError
from asgi_durable.storage.writes import ClaimRequest, FinishWorkflow, OutcomeKind, StartWorkflow

pytestmark = pytest.mark.anyio

SLOT = RequestSlot(workflow=request(), wait_seconds=30.0)
END = success("r", response=response())
INSERT = sa.text("INSERT INTO effects VALUES ('x')")


class Opened(Protocol):
    """A request transaction of either kind, for tests."""

    async def execute(self, statement: sa.TextClause) -> Any: ...

    async def flush(self) -> None: ...

    async def answer(self, *starts: WorkflowRecord, end: FinishWorkflow = ...) -> None: ...


Open = Callable[..., AbstractAsyncContextManager[Opened]]


class InTask:
    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction
        self.flush = transaction.flush

    async def execute(self, statement: sa.TextClause) -> Any:
        return await self._transaction.session.execute(statement)

    async def answer(self, *starts: WorkflowRecord, end: FinishWorkflow = END) -> None:
        await self._transaction.store_response(replace(end, starts=starts))


class InThreads:
    """Each call in any thread of a pool."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    async def execute(self, statement: sa.TextClause) -> Any:
        return await asyncio.to_thread(self._transaction.session.execute, statement)

    async def flush(self) -> None:
        await asyncio.to_thread(self._transaction.flush)

    async def answer(self, *starts: WorkflowRecord, end: FinishWorkflow = END) -> None:
        await asyncio.to_thread(self._transaction.store_response, replace(end, starts=starts))


@asynccontextmanager
async def in_task(
    storage: Storage, slot: RequestSlot = SLOT, level: str | None = None
) -> AsyncIterator[Opened]:
    async with storage.request_transaction(slot, isolation_level=level) as transaction:
        yield InTask(transaction)


@asynccontextmanager
async def in_threads(
    storage: Storage, slot: RequestSlot = SLOT, level: str | None = None
) -> AsyncIterator[Opened]:
    stack = ExitStack()
    opening = storage.blocking_request_transaction(slot, isolation_level=level)
    transaction = await asyncio.to_thread(stack.enter_context, opening)
    try:
        yield InThreads(transaction)
    except BaseException as error:
        await asyncio.to_thread(stack.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(stack.close)


@pytest.fixture(params=[in_task, in_threads])
def begin(request: pytest.FixtureRequest, new_storage: Adapter) -> Open:
    if request.param is in_threads and urlsplit(new_storage.url).scheme == "postgresql":
        pytest.importorskip("psycopg")
    opening: Open = request.param
    return opening


@pytest.fixture(autouse=True)
async def _table(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))


async def effects(storage: Storage) -> int:
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        count: int = result.scalar_one()
        return count


async def test_claim_rows_and_answer_are_committed_together(
    storage: Storage, other: Storage, begin: Open
) -> None:
    async with begin(storage) as transaction:
        await transaction.execute(INSERT)
        await transaction.flush()
        assert await other.get_workflow("r") is None
        await transaction.answer()
        assert await other.get_response("r") is None

    answered = replace(request(), state=WorkflowState.SUCCESS, output=b"9", updated_at_us=3)
    assert await other.get_workflow("r") == answered
    assert await other.get_response("r") == response()
    assert await effects(other) == 1


async def test_an_exception_leaves_nothing_behind(storage: Storage, begin: Open) -> None:
    with pytest.raises(ZeroDivisionError):
        async with begin(storage) as transaction:
            await transaction.execute(INSERT)
            await transaction.answer()
            raise ZeroDivisionError

    assert await storage.get_workflow("r") is None
    assert await storage.get_response("r") is None
    assert await effects(storage) == 0
    async with begin(storage) as transaction:
        await transaction.answer()


async def test_what_follows_starts_with_the_answer(storage: Storage, begin: Open) -> None:
    child = workflow("child", parent_id="r", parent_step=0, awaited=False)
    async with begin(storage) as transaction:
        await transaction.answer(child)

    assert await storage.get_workflow("child") == child


async def test_an_id_that_is_there_is_taken(storage: Storage, other: Storage, begin: Open) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])

    with pytest.raises(SlotTakenError):
        async with begin(storage):
            pytest.fail("the application's code ran")


async def test_what_is_committed_is_told_to_who_asks_again(
    storage: Storage, other: Storage, begin: Open
) -> None:
    async with begin(storage) as transaction:
        await transaction.answer()

    (outcome,) = await other.commit([ClaimRequest(request(executor_id=OTHER))])
    assert outcome.kind is OutcomeKind.CONFLICT
    assert outcome.response == response()


async def test_an_executor_that_left_claims_nothing(
    storage: Storage, other: Storage, begin: Open
) -> None:
    await storage.retire(EXECUTOR)

    with pytest.raises(SlotTakenError):
        async with begin(storage) as transaction:
            await transaction.execute(INSERT)
            await transaction.answer()
    assert await other.get_workflow("r") is None
    assert await effects(other) == 0


@pytest.mark.parametrize("level", [None, "SERIALIZABLE"])
async def test_a_duplicate_waits_for_the_end_of_the_first(
    storage: Storage, other: Storage, begin: Open, level: str | None
) -> None:
    duplicate = RequestSlot(workflow=request(executor_id=OTHER), wait_seconds=30.0)

    async def claim_too() -> None:
        while True:
            # A serializable transaction does not see the commit for which it has waited.
            with contextlib.suppress(StorageUnavailableError):
                async with begin(other, duplicate, level):
                    pytest.fail("the application's code ran")

    async with begin(storage, SLOT, level) as transaction:
        waiting = asyncio.ensure_future(claim_too())
        await transaction.execute(INSERT)
        await transaction.answer()

    with pytest.raises(SlotTakenError):
        await waiting


async def test_a_duplicate_goes_on_where_the_first_is_rolled_back(
    storage: Storage, other: Storage, begin: Open
) -> None:
    duplicate = RequestSlot(workflow=request(executor_id=OTHER), wait_seconds=30.0)
    end = replace(END, executor_id=OTHER)

    async def claim_too() -> None:
        async with begin(other, duplicate) as transaction:
            await transaction.answer(end=end)

    with pytest.raises(ZeroDivisionError):
        async with begin(storage):
            waiting = asyncio.ensure_future(claim_too())
            raise ZeroDivisionError

    await waiting
    assert await storage.get_response("r") == response()


async def test_a_commit_of_the_session_ends_nothing(storage: Storage, begin: Open) -> None:
    with pytest.raises(ZeroDivisionError):
        async with begin(storage) as transaction:
            await transaction.execute(INSERT)
            await transaction.flush()
            raise ZeroDivisionError

    assert await effects(storage) == 0
    assert await storage.get_workflow("r") is None


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_was_ended_behind_the_session_is_refused(
    storage: Storage, begin: Open, end: str
) -> None:
    with pytest.raises((DurableUsageError, sa.exc.SQLAlchemyError)):
        async with begin(storage) as transaction:
            await transaction.execute(sa.text(end))
            await transaction.answer()

    assert await storage.get_response("r") is None
    # The COMMIT leaves no request that is finished.
    left = await storage.get_workflow("r")
    assert left == (request() if end == "COMMIT" else None)


async def test_a_claim_that_is_gone_is_not_answered(
    storage: Storage, other: Storage, begin: Open
) -> None:
    with pytest.raises((DurableUsageError, SlotTakenError)):
        async with begin(storage) as transaction:
            await transaction.execute(sa.text("DELETE FROM asgi_durable_workflows"))
            await transaction.answer()

    assert await other.get_response("r") is None


async def test_the_place_of_a_function_is_no_request_of_its_own(
    storage: Storage, begin: Open
) -> None:
    await storage.commit([StartWorkflow(workflow("r"))])

    with pytest.raises(SlotTakenError):
        async with begin(storage):
            pytest.fail("the application's code ran")


async def test_on_postgres_a_duplicate_waits_no_longer_than_it_may(
    postgres_storages: tuple[Storage, Storage], begin: Open
) -> None:
    storage, other = postgres_storages
    duplicate = RequestSlot(workflow=request(executor_id=OTHER), wait_seconds=0.05)

    async with begin(storage) as transaction:
        with pytest.raises(SlotBusyError):
            async with begin(other, duplicate):
                pytest.fail("the application's code ran")
        await transaction.answer()


async def test_on_postgres_the_applications_statements_wait_as_they_would(
    postgres_storages: tuple[Storage, Storage], begin: Open
) -> None:
    async with begin(postgres_storages[0]) as transaction:
        found = await transaction.execute(sa.text("SELECT current_setting('lock_timeout')"))
        assert found.scalar_one() == "0"
        await transaction.answer()


@pytest.fixture
def postgres_storages(
    new_storage: Adapter, storage: Storage, other: Storage
) -> tuple[Storage, Storage]:
    if urlsplit(new_storage.url).scheme != "postgresql":
        pytest.skip("there is one writer at a time")
    return storage, other
