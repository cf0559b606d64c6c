"""The SQLite adapter: one file, one process, no server."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from asgi_durable.errors import DurableUsageError, StorageError
from asgi_durable.per_loop import PerLoop
from asgi_durable.storage import tables
from asgi_durable.storage.protocol import SlotTakenError, StepSlot
from asgi_durable.storage.records import (
    ResponseRecord,
    StepRecord,
    StoredRun,
    WorkflowRecord,
    WorkflowState,
)
from asgi_durable.storage.sqlite_errors import naming_errors, storage_error
from asgi_durable.storage.sqlite_file import SQLiteFile, SQLiteFileLock
from asgi_durable.storage.sqlite_writer import SQLiteWriter
from asgi_durable.storage.writes import Outcome, Write

__all__ = ["SQLiteStorage"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class SQLiteTransaction:
    """See :class:`asgi_durable.storage.protocol.StoredTransaction`."""

    def __init__(self, connection: AsyncConnection, session: AsyncSession) -> None:
        self.session = session
        self._connection = connection

    async def record(self, step: StepRecord) -> None:
        # Invariant: the application's rows are flushed before the record, and both are in
        # the transaction that `SQLiteStorage.transaction` commits.
        await self.session.commit()
        raw = await self._connection.get_raw_connection()
        if raw.driver_connection is None or not raw.driver_connection.in_transaction:
            msg = (
                "a transaction was ended behind the session's back, by a COMMIT or ROLLBACK in "
                "SQL or of its connection; use durable.session.commit() or leave it out"
            )
            raise DurableUsageError(msg)
        values = {column.name: getattr(step, column.name) for column in tables.steps.columns}
        await self._connection.execute(sa.insert(tables.steps).values(values))


class SQLiteStorage:
    """Keeps the step log in a SQLite file in WAL mode.

    One thread with one connection writes the log through the driver; the application's
    transactions and the reads use SQLAlchemy's connections. ``asyncio`` only.

    Args:
        url: See :meth:`SQLiteFile.from_url`.
    """

    def __init__(self, url: str) -> None:
        self._file = SQLiteFile.from_url(url)
        self._lock = SQLiteFileLock(self._file)
        # Not the loop's default pool: the application may fill that one up.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="asgi-durable-sqlite")
        self._turns = PerLoop(asyncio.Lock)
        self._writer: SQLiteWriter | None = None
        self._engines: _Engines | None = None

    async def open(self, executor_id: str) -> None:
        try:
            await self._on_thread(lambda: self._open(executor_id))
            self._engines = await _Engines.create(self._file)
        except BaseException:
            # The thread may be opening still where this was cancelled: close after it.
            self._thread.submit(self._close_files)
            self._thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        if self._engines is None:
            return
        engines, self._engines = self._engines, None
        try:
            await engines.dispose()
            await self._on_thread(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        writer = _opened(self._writer)
        async with self._turn():
            return await self._on_thread(lambda: writer.commit(batch))

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        rows = await self._select(
            sa.select(tables.workflows).where(tables.workflows.c.workflow_id == workflow_id)
        )
        return _workflow(rows[0]) if rows else None

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        rows = await self._select(
            sa.select(tables.responses).where(tables.responses.c.workflow_id == workflow_id)
        )
        return ResponseRecord(**rows[0]) if rows else None

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        workflows, steps = tables.workflows, tables.steps
        async with self._reading() as connection:
            rows = await _rows(connection, _among(workflows, workflows.c.workflow_id, workflow_ids))
            step_rows = await _rows(connection, _among(steps, steps.c.workflow_id, workflow_ids))
            child_rows = await _rows(
                connection, _among(workflows, workflows.c.parent_id, workflow_ids)
            )
        steps_of: dict[str, list[StepRecord]] = {}
        for row in step_rows:
            steps_of.setdefault(row["workflow_id"], []).append(StepRecord(**row))
        children_of: dict[str, list[WorkflowRecord]] = {}
        for row in child_rows:
            children_of.setdefault(row["parent_id"], []).append(_workflow(row))
        return [
            StoredRun(
                workflow=_workflow(row),
                steps=tuple(steps_of.get(row["workflow_id"], ())),
                children=tuple(children_of.get(row["workflow_id"], ())),
            )
            for row in rows
        ]

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        columns = tables.workflows.c
        rows = await self._select(
            sa.select(columns.workflow_id)
            .where(columns.state == WorkflowState.PENDING.value)
            .where(columns.executor_id == executor_id)
            .where(columns.fingerprint.is_(None))
            .where(columns.workflow_id > after)
            .order_by(columns.workflow_id)
            .limit(limit)
        )
        return [row["workflow_id"] for row in rows]

    @asynccontextmanager
    async def transaction(self, slot: StepSlot | None) -> AsyncIterator[SQLiteTransaction]:
        async with self._turn():
            with self._translating_errors():
                async with _opened(self._engines).here().connect() as connection:
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    if slot is not None:
                        await _check_slot(connection, slot)
                    # A savepoint of the session's own: its commit() and rollback() in the
                    # application's code cannot end the transaction that holds the record.
                    async with AsyncSession(
                        connection,
                        expire_on_commit=False,
                        join_transaction_mode="create_savepoint",
                    ) as session:
                        yield SQLiteTransaction(connection, session)
                        await session.commit()
                    await connection.commit()

    def _open(self, executor_id: str) -> None:
        file = self._file
        try:
            folder_exists = file.path.parent.is_dir()
        except OSError as error:
            msg = f"{file.path}: {error}"
            raise StorageError(msg) from error
        if not folder_exists:
            msg = f"{file.path}: the folder {file.path.parent} does not exist"
            raise StorageError(msg)
        self._lock.acquire()
        try:
            with naming_errors(str(file.path)):
                self._writer = SQLiteWriter(file, executor_id)
                self._writer.migrate()
                self._writer.take_over()
        except BaseException:
            self._close_files()
            raise

    def _close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.retire()
        except sqlite3.Error as error:
            # A row that stays does no harm: the next to open the file declares it dead.
            logger.warning("%s: the executor stays listed: %s", self._file.path, error)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lock.release()

    async def _on_thread(self, work: Callable[[], ResultT]) -> ResultT:
        loop = asyncio.get_running_loop()
        # Shielded: the thread cannot be interrupted, and who comes next must find it idle.
        return await asyncio.shield(loop.run_in_executor(self._thread, work))

    def _turn(self) -> asyncio.Lock:
        """Return the lock under which this process writes, in order of arrival.

        SQLite has one writer at a time; waiting for it in its busy handler means sleeping and
        has no order. Event loops beyond the first, and other processes, still wait there.
        """
        return self._turns.get(asyncio.get_running_loop())

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with self._translating_errors():
            async with _opened(self._engines).here().connect() as connection:
                yield connection

    async def _select(self, statement: sa.Select[Any]) -> Sequence[RowMapping]:
        async with self._reading() as connection:
            return await _rows(connection, statement)

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Tell failures of the database from mistakes of the application, which pass."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            failure = storage_error(driver_error or error, str(self._file.path))
            if failure is None:
                raise
            raise failure from error


class _Engines:
    """SQLAlchemy's engines: a pool for one event loop, single connections for any other.

    A pool of SQLAlchemy's belongs to one event loop. An application without a lifespan may be
    called on others, even at once.
    """

    def __init__(self, file: SQLiteFile) -> None:
        self._loop = asyncio.get_running_loop()
        self._pooled = _create_engine(file)
        self._single = _create_engine(file, poolclass=sa.NullPool)

    @classmethod
    async def create(cls, file: SQLiteFile) -> _Engines:
        """Make both, and let them do what they do on their first connection."""
        engines = cls(file)
        for engine in (engines._pooled, engines._single):
            async with engine.connect():
                pass
        return engines

    def here(self) -> AsyncEngine:
        """Return the engine for the running event loop."""
        return self._pooled if asyncio.get_running_loop() is self._loop else self._single

    async def dispose(self) -> None:
        """Close all connections."""
        await self._pooled.dispose()
        await self._single.dispose()


def _create_engine(file: SQLiteFile, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(file.path)),
        connect_args={"timeout": file.busy_timeout_seconds, "isolation_level": None},
        **options,
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        file.configure(cursor)
        cursor.close()

    return engine


async def _check_slot(connection: AsyncConnection, slot: StepSlot) -> None:
    """Invariant: read under the write lock, so it still holds at this transaction's commit."""
    workflows, steps, executors = tables.workflows, tables.steps, tables.executors
    owned = sa.exists().where(
        workflows.c.workflow_id == slot.workflow_id,
        workflows.c.executor_id == slot.executor_id,
        workflows.c.state == WorkflowState.PENDING.value,
        executors.c.executor_id == workflows.c.executor_id,
    )
    recorded = sa.exists().where(
        steps.c.workflow_id == slot.workflow_id, steps.c.step_number == slot.step_number
    )
    is_free = (await connection.execute(sa.select(owned & ~recorded))).scalar_one()
    if not is_free:
        msg = f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free"
        raise SlotTakenError(msg)


def _among(table: sa.Table, column: sa.Column[Any], ids: Sequence[str]) -> sa.Select[Any]:
    return sa.select(table).where(column.in_(ids))


async def _rows(connection: AsyncConnection, statement: sa.Select[Any]) -> Sequence[RowMapping]:
    result = await connection.execute(statement)
    rows: Sequence[RowMapping] = result.mappings().all()
    return rows


def _workflow(row: RowMapping) -> WorkflowRecord:
    return WorkflowRecord(**{**row, "state": WorkflowState(row["state"])})


def _opened(resource: ResultT | None) -> ResultT:
    if resource is None:
        msg = "the storage is not open"
        raise StorageError(msg)
    return resource
