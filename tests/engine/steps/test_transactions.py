"""Transactions: rows and record commit together, exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, EncodeError

pytestmark = pytest.mark.anyio

INSERT = sa.text("INSERT INTO effects (name) VALUES (:name)")


@pytest.fixture
async def durable(url: str) -> AsyncIterator[Durable]:
    durable = Durable(url, drain_timeout=0.0)
    async with durable:

        @durable.transaction
        async def create_table() -> None:
            await durable.session.execute(sa.text("CREATE TABLE effects (name TEXT UNIQUE)"))

        await create_table()
        yield durable


@pytest.fixture
def effects(tmp_path: Path):
    def read() -> list[str]:
        with sqlite3.connect(tmp_path / "test.db") as connection:
            rows = connection.execute("SELECT name FROM effects ORDER BY rowid").fetchall()
        connection.close()
        return [name for (name,) in rows]

    return read


async def test_rows_and_record_commit_together(durable: Durable, effects) -> None:
    @durable.transaction
    async def insert(name: str) -> str:
        await durable.session.execute(INSERT, {"name": name})
        return name.upper()

    @durable.workflow
    async def work() -> str:
        return await insert("a")

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work) == "A"
    assert await with_id.run_workflow(work) == "A"
    assert effects() == ["a"]


async def test_a_recorded_transaction_is_replayed_after_a_restart(
    durable: Durable, effects
) -> None:
    gate = Gate()

    @durable.transaction
    async def insert() -> int:
        await durable.session.execute(INSERT, {"name": "once"})
        return 5

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> int:
        number = await insert()
        await wait()
        return number

    await durable.options(workflow_id="w").start_workflow(work)
    await gate.reached.wait()
    await durable.engine.stop()
    gate.open()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == 5
        assert effects() == ["once"]


async def test_a_transaction_that_is_interrupted_leaves_nothing_and_runs_again(
    durable: Durable, effects
) -> None:
    gate = Gate()
    runs = []

    @durable.transaction
    async def insert() -> None:
        runs.append(1)
        await durable.session.execute(INSERT, {"name": "once"})
        await gate.wait()

    @durable.workflow
    async def work() -> None:
        await insert()

    await durable.options(workflow_id="w").start_workflow(work)
    await gate.reached.wait()
    await durable.engine.stop()
    assert effects() == []
    gate.open()
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()
        assert effects() == ["once"]
    assert len(runs) == 2


async def test_an_error_rolls_back_and_is_recorded_once(durable: Durable, effects) -> None:
    runs = []

    @durable.transaction
    async def insert() -> None:
        runs.append(1)
        await durable.session.execute(INSERT, {"name": "gone"})
        raise ValueError("business")

    @durable.workflow
    async def work() -> None:
        await insert()

    for _ in range(2):
        with pytest.raises(ValueError, match="business"):
            await durable.options(workflow_id="w").run_workflow(work)

    assert effects() == []
    assert len(runs) == 1


async def test_a_constraint_that_is_broken_is_the_transactions_error(
    durable: Durable, effects
) -> None:
    @durable.transaction
    async def insert(name: str) -> None:
        await durable.session.execute(INSERT, {"name": name})

    @durable.workflow
    async def work() -> str:
        await insert("a")
        try:
            await insert("a")
        except IntegrityError:
            await insert("b")
        return "done"

    assert await work() == "done"
    assert effects() == ["a", "b"]


async def test_a_mistake_in_the_sql_is_the_transactions_error(durable: Durable) -> None:
    @durable.transaction
    async def select() -> None:
        await durable.session.execute(sa.text("SELECT * FROM no_such_table"))

    @durable.workflow
    async def work() -> None:
        await select()

    with pytest.raises(OperationalError, match="no_such_table"):
        await work()
    with pytest.raises(OperationalError, match="no_such_table"):
        await select()


async def test_commit_and_rollback_of_the_session_cannot_part_rows_and_record(
    durable: Durable, effects
) -> None:
    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "kept"})
        await durable.session.commit()
        await durable.session.execute(INSERT, {"name": "taken back"})
        await durable.session.rollback()
        await durable.session.execute(INSERT, {"name": "kept too"})

    @durable.transaction
    async def commit_and_fail() -> None:
        await durable.session.execute(INSERT, {"name": "never"})
        await durable.session.commit()
        raise ValueError("after the commit")

    @durable.workflow
    async def work() -> None:
        await insert()
        await commit_and_fail()

    with pytest.raises(ValueError, match="after the commit"):
        await work()
    assert effects() == ["kept", "kept too"]


async def test_a_result_that_cannot_be_recorded_rolls_back(durable: Durable, effects) -> None:
    @durable.transaction
    async def insert() -> object:
        await durable.session.execute(INSERT, {"name": "gone"})
        return object()

    @durable.workflow
    async def work() -> None:
        await insert()

    with pytest.raises(EncodeError):
        await work()
    assert effects() == []


async def test_outside_a_workflow_it_is_a_plain_transaction(durable: Durable, effects) -> None:
    @durable.transaction
    async def insert(name: str, *, fail: bool) -> object:
        await durable.session.execute(INSERT, {"name": name})
        if fail:
            raise ValueError
        return insert

    assert await insert("kept", fail=False) is insert
    with pytest.raises(ValueError):  # noqa: PT011
        await insert("gone", fail=True)
    assert effects() == ["kept"]
    with pytest.raises(DurableUsageError):
        _ = durable.session


async def test_a_transaction_in_a_transaction_joins_it(durable: Durable, effects) -> None:
    @durable.transaction
    async def inner(name: str) -> None:
        await durable.session.execute(INSERT, {"name": name})

    @durable.transaction
    async def outer() -> None:
        await inner("a")
        await inner("b")
        raise ValueError

    @durable.workflow
    async def work() -> None:
        await outer()

    for call in (work, outer):
        with pytest.raises(ValueError):  # noqa: PT011
            await call()
    assert effects() == []


async def test_a_transaction_in_a_step_is_a_plain_one(durable: Durable, effects) -> None:
    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "a"})

    @durable.step
    async def step() -> int | None:
        await insert()
        return durable.step_id

    @durable.workflow
    async def work() -> int | None:
        return await step()

    assert await work() == 0
    assert effects() == ["a"]


async def test_a_workflow_cannot_be_called_in_a_transaction(durable: Durable) -> None:
    @durable.workflow
    async def child() -> None: ...

    @durable.transaction
    async def insert() -> None:
        await durable.start_workflow(child)

    # It would wait for the write lock that the transaction holds.
    async with asyncio.timeout(30):
        with pytest.raises(DurableUsageError, match="inside"):
            await insert()


async def test_a_workflow_cannot_be_waited_for_in_a_transaction(durable: Durable) -> None:
    gate = Gate()

    @durable.workflow
    async def other() -> None:
        await gate.wait()

    handle = await durable.start_workflow(other)

    @durable.transaction
    async def insert() -> None:
        await handle.get_result()

    async with asyncio.timeout(30):
        with pytest.raises(DurableUsageError, match="holds the database"):
            await insert()
    gate.open()
    await handle.get_result()


@pytest.mark.parametrize("how", ["sql", "connection"])
async def test_a_transaction_ended_behind_the_sessions_back_is_told_so(
    durable: Durable, how: str
) -> None:
    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": how})
        if how == "sql":
            await durable.session.execute(sa.text("COMMIT"))
        else:
            await (await durable.session.connection()).commit()

    @durable.workflow
    async def work() -> None:
        await insert()

    with pytest.raises((DurableUsageError, SQLAlchemyError)):
        await work()


async def test_many_transactions_at_once_all_commit(durable: Durable, effects) -> None:
    @durable.transaction
    async def insert(name: str) -> None:
        await durable.session.execute(INSERT, {"name": name})

    @durable.workflow
    async def work(name: str) -> None:
        await insert(name)

    await asyncio.gather(*(work(f"{number}") for number in range(50)))

    assert sorted(effects(), key=int) == [str(number) for number in range(50)]


async def test_the_losing_duplicate_stops_and_shows_nothing(durable: Durable, effects) -> None:
    """Another executor took the workflow over while this one was in the transaction.

    The waiting caller gets the outcome of the other executor.
    """
    gate = Gate()
    after = []

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "loser"})

    @durable.workflow
    async def work() -> None:
        await wait()
        try:
            await insert()
        except Exception:
            after.append("swallowed")
        after.append("went on")

    task = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(work))
    await gate.reached.wait()

    @durable.transaction
    async def steal() -> None:
        await durable.session.execute(
            sa.text(
                "UPDATE asgi_durable_workflows SET executor_id = 'winner', state = 'SUCCESS', "
                "output = CAST('77' AS BLOB)"
            )
        )

    await steal()
    gate.open()
    assert await task == 77
    assert effects() == []
    assert after == []


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_statement_in_its_own_way_is_the_transactions_error(
    url: str, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    """A table is dropped while its rows are read: SQLite reports that it is locked."""
    runs = []
    async with Durable(url, drain_timeout=0.0) as durable:

        @durable.transaction
        async def asynchronous() -> None:
            runs.append(1)
            await durable.session.execute(sa.text("CREATE TABLE goods AS SELECT 1 UNION SELECT 2"))
            raw = await (await durable.session.connection()).get_raw_connection()
            async with raw.driver_connection.execute("SELECT * FROM goods") as rows:
                await rows.fetchone()
                await durable.session.execute(sa.text("DROP TABLE goods"))

        @durable.transaction
        def blocking() -> None:
            runs.append(1)
            session = durable.blocking.session
            session.execute(sa.text("CREATE TABLE goods AS SELECT 1 UNION SELECT 2"))
            rows = session.connection().connection.driver_connection.execute("SELECT * FROM goods")
            rows.fetchone()
            session.execute(sa.text("DROP TABLE goods"))

        @durable.workflow
        async def work() -> str:
            try:
                await (asynchronous() if is_async else durable.run_step(blocking))
            except OperationalError as error:
                return str(error.orig)
            return "dropped"

        assert await work() == "database table is locked"
    assert len(runs) == 1
    assert "trying again" not in caplog.text


async def test_a_statement_that_takes_for_ever_ends_with_its_timeout(
    durable: Durable, effects
) -> None:
    endless = sa.text(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )

    @durable.transaction
    async def select() -> None:
        await durable.session.execute(INSERT, {"name": "gone"})
        await durable.session.execute(endless)

    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "kept"})

    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await select()
        await insert()
    assert effects() == ["kept"]
