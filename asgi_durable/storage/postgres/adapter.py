"""The PostgreSQL adapter: any number of processes and machines on one database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from asgi_durable.concurrency.loop_thread import LoopThread
from asgi_durable.errors import StorageError
from asgi_durable.storage.application import SQLApplicationDatabase
from asgi_durable.storage.damaged_rows import DamagedRows
from asgi_durable.storage.postgres.commits.writer import PostgresWriter
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.reconnecting import (
    LoopConnection,
    ReconnectingConnection,
)
from asgi_durable.storage.postgres.connections.session import PostgresSession, Registration
from asgi_durable.storage.postgres.executors import PostgresExecutors
from asgi_durable.storage.postgres.reader import PostgresReader
from asgi_durable.storage.postgres.retention import PostgresRetention
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.postgres.schema import prepare_schema
from asgi_durable.storage.postgres.transactions.open_transactions import (
    OpenRequestTransaction,
    OpenStepTransaction,
)
from asgi_durable.storage.postgres.transactions.sessions import (
    PostgresBlockingSessions,
    PostgresSessions,
)
from asgi_durable.storage.postgres.transactions.transactions import (
    PostgresBlockingTransactions,
    PostgresRequestTransaction,
    PostgresTransaction,
    PostgresTransactions,
)
from asgi_durable.storage.protocol import Beat, Runnable
from asgi_durable.storage.records import (
    ChunkRecord,
    ResponseRecord,
    StoredProgress,
    StoredRun,
    StoredSecret,
    TakenWorkflow,
    WorkflowRecord,
)
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot
from asgi_durable.storage.writes import Outcome, Write

__all__ = ["PostgresStorage"]

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of an open storage that work on its thread, on connections of their own."""

    writer: PostgresWriter
    retention: PostgresRetention
    reader: PostgresReader
    executors: PostgresExecutors
    session: PostgresSession
    connections: tuple[ReconnectingConnection, ...]

    async def close(self) -> None:
        await self.session.close()
        for connection in self.connections:
            await connection.close()


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open storage.

    Attributes:
        loop_connection: The connection on the event loop that opened the storage.
        loop_writer: The writer on that connection.
    """

    thread: LoopThread
    parts: _Parts
    transactions: PostgresTransactions
    blocking_transactions: PostgresBlockingTransactions
    loop_connection: LoopConnection
    loop_writer: PostgresWriter

    async def close(self) -> None:
        # The stack closes all parts, even if one of them fails or this is cancelled.
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.thread.stop)
            closing.push_async_callback(self.thread.run, self.parts.close)
            closing.push_async_callback(self.loop_connection.close)
            closing.push_async_callback(self.transactions.close)
            closing.callback(self.blocking_transactions.close)


class PostgresStorage:
    """Stores the step log in a schema of a PostgreSQL database, version 12 or later.

    Writes that need one statement only are run on the event loop that opened the storage. All
    other statements run on a thread with an event loop of its own. So a blocked event loop of
    the application stops no heartbeat and holds no locks, and the cancellation of its tasks
    interrupts no reads. The application's transactions use connections of SQLAlchemy, on the
    application's event loop. Works with ``asyncio`` only.

    Args:
        url: See :meth:`PostgresDatabase.from_url`.
    """

    # A heartbeat is one statement that changes nothing, and two of them find a dead process. With
    # the search for expired requests once a minute, an idle process runs one statement a second.
    beat_interval_seconds = 1.02

    def __init__(self, url: str) -> None:
        self._database = PostgresDatabase.from_url(url)
        self._names = PostgresNames(self._database.schema)
        self._opened: _Opened | None = None

    @property
    def name(self) -> str:
        """The hosts and the database, for messages."""
        return f"Postgres {self._database.name}"

    @classmethod
    def application_database(cls, url: str) -> SQLApplicationDatabase:
        """Return a database of the application's own, apart from the step log's."""
        database = PostgresDatabase.from_url(url)
        return SQLApplicationDatabase(
            PostgresSessions(database),
            PostgresBlockingSessions(database),
            name=f"Postgres {database.name}",
        )

    async def open(self) -> None:
        thread = LoopThread("asgi-durable-postgres")
        thread.start()
        try:
            async with AsyncExitStack() as opened:
                parts = await thread.run(self._open)
                opened.push_async_callback(thread.run, parts.close)
                transactions = PostgresTransactions(self._database, self._names)
                await transactions.open()
                opened.push_async_callback(transactions.close)
                loop_connection = await LoopConnection.open(self._database)
                loop_writer = PostgresWriter(
                    loop_connection.connection,
                    self._names,
                    slow_path=lambda *call: thread.run(lambda: parts.writer.apply_slowly(*call)),
                )
                blocking = PostgresBlockingTransactions(self._database, self._names)
                self._opened = _Opened(
                    thread, parts, transactions, blocking, loop_connection, loop_writer
                )
                opened.pop_all()
        except BaseException:
            # After a cancellation the thread may still be connecting, so it is not waited for.
            thread.stop_soon()
            raise

    async def close(self) -> None:
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        await opened.close()

    async def register(
        self, executor_id: str, *, lease_seconds: float, on_message: Callable[[str], None]
    ) -> None:
        registration = Registration(executor_id, on_message)
        await self._run(lambda parts: parts.executors.register(registration, lease_seconds))

    async def beat(self, executor_id: str, *, lease_seconds: float, runnable: Runnable) -> Beat:
        return await self._run(
            lambda parts: parts.executors.beat(executor_id, lease_seconds, runnable)
        )

    async def is_missing(self, executor_id: str) -> bool:
        return await self._run(lambda parts: parts.executors.is_missing(executor_id))

    async def take_over(
        self, executor_id: str, *, runnable: Runnable, limit: int, suspects: bool
    ) -> list[TakenWorkflow]:
        return await self._run(
            lambda parts: parts.executors.take_over(executor_id, runnable, limit, suspects=suspects)
        )

    async def retire(self, executor_id: str) -> None:
        await self._run(lambda parts: parts.executors.retire(executor_id))

    async def send(self, executor_id: str | None, message: str) -> None:
        await self._run(lambda parts: parts.session.send(executor_id, message))

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        opened = self._get_opened()
        if opened.loop_connection.is_here():
            return await opened.loop_writer.commit(batch)
        return await self._run(lambda parts: parts.writer.commit(batch))

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        return await self._run(lambda parts: parts.reader.get_workflow(workflow_id))

    async def get_progress(self, workflow_id: str) -> StoredProgress | None:
        return await self._run(lambda parts: parts.reader.get_progress(workflow_id))

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        return await self._run(lambda parts: parts.reader.get_response(workflow_id))

    async def read_chunks(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        return await self._run(lambda parts: parts.reader.read_chunks(workflow_id, after))

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        return await self._run(lambda parts: parts.reader.load_runs(workflow_ids))

    async def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        return await self._run(lambda parts: parts.reader.list_cancelled(workflow_ids))

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        return await self._run(lambda parts: parts.reader.list_pending(executor_id, after, limit))

    async def list_unknown(self, names: Collection[str], *, limit: int) -> list[WorkflowRecord]:
        return await self._run(lambda parts: parts.reader.list_unknown(names, limit))

    async def forget_expired(self, now_us: int, *, abandoned_before_us: int, limit: int) -> int:
        return await self._run(
            lambda parts: parts.retention.forget_expired(now_us, abandoned_before_us, limit)
        )

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        return await self._run(lambda parts: parts.retention.forget_request(workflow_id, now_us))

    async def read_secret(self) -> StoredSecret:
        return await self._run(lambda parts: parts.reader.read_secret(self._names))

    def transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[PostgresTransaction]:
        return self._get_opened().transactions.transaction(slot, isolation_level)

    def blocking_transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[OpenStepTransaction]:
        return self._get_opened().blocking_transactions.transaction(slot, isolation_level)

    def request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[PostgresRequestTransaction]:
        return self._get_opened().transactions.request_transaction(slot, isolation_level)

    def blocking_request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractContextManager[OpenRequestTransaction]:
        return self._get_opened().blocking_transactions.request_transaction(slot, isolation_level)

    async def _open(self) -> _Parts:
        database, names = self._database, self._names
        writing, reading = ReconnectingConnection(database), ReconnectingConnection(database)
        try:
            await reading.run(lambda connection: prepare_schema(connection, names, database.name))
        except BaseException:
            await reading.close()
            raise
        session, damaged = PostgresSession(database, names), DamagedRows()
        return _Parts(
            writer=PostgresWriter(writing, names),
            retention=PostgresRetention(writing, names),
            reader=PostgresReader(reading, names, damaged),
            executors=PostgresExecutors(session, names, damaged),
            session=session,
            connections=(writing, reading),
        )

    async def _run(self, work: Callable[[_Parts], Coroutine[Any, Any, ResultT]]) -> ResultT:
        opened = self._get_opened()
        return await opened.thread.run(lambda: work(opened.parts))

    def _get_opened(self) -> _Opened:
        if self._opened is None:
            msg = "the storage is not open"
            raise StorageError(msg)
        return self._opened
