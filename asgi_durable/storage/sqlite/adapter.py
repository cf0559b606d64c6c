"""The SQLite adapter: one file, no server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TypeVar

from asgi_durable.concurrency.worker_thread import WorkThread
from asgi_durable.errors import StorageError
from asgi_durable.storage.application import SQLApplicationDatabase
from asgi_durable.storage.damaged_rows import DamagedRows
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
from asgi_durable.storage.sqlite.commits.checkpoints import SQLiteCheckpoints
from asgi_durable.storage.sqlite.commits.writer import SQLiteWriter
from asgi_durable.storage.sqlite.errors import TranslatingErrors, naming_errors
from asgi_durable.storage.sqlite.executors import SQLiteExecutors
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.locks import WriteTurn
from asgi_durable.storage.sqlite.reader import SQLiteReader
from asgi_durable.storage.sqlite.retention import SQLiteRetention
from asgi_durable.storage.sqlite.schema import migrate, read_secret
from asgi_durable.storage.sqlite.transactions.sessions import SQLiteBlockingSessions, SQLiteSessions
from asgi_durable.storage.sqlite.transactions.transactions import (
    blocking_request_transaction,
    blocking_transaction,
    request_transaction,
    transaction,
)
from asgi_durable.storage.transaction_port import (
    BlockingRequestTransaction,
    BlockingTransaction,
    RequestSlot,
    RequestTransaction,
    StepSlot,
    StoredTransaction,
)
from asgi_durable.storage.writes import Outcome, Write

__all__ = ["SQLiteStorage"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# How long a heartbeat waits for upkeep, which needs the write lock; it takes a moment if no other
# process holds the lock.
UPKEEP_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Opened:
    """The parts of an open storage; each runs on the writer's or the reader's thread."""

    writer: SQLiteWriter
    reader: SQLiteReader
    executors: SQLiteExecutors
    checkpoints: SQLiteCheckpoints
    retention: SQLiteRetention

    def close(self) -> None:
        self.executors.release_all()
        self.checkpoints.close()
        self.reader.close()
        self.writer.close()


class SQLiteStorage:
    """Stores the step log in a SQLite file in WAL mode.

    One thread writes the log on a connection of the driver's, and another thread reads it on a
    second one. The application's transactions use SQLAlchemy's connections. Only ``asyncio`` is
    supported.

    Args:
        url: See :meth:`SQLiteFile.from_url`.
    """

    # A beat on a local file costs very little, and requests wait for a dead owner to be found.
    beat_interval_seconds = 0.25

    def __init__(self, url: str) -> None:
        self._file = SQLiteFile.from_url(url)
        # Own threads: the application may occupy all threads of the loop's default pool.
        self._writing = WorkThread("asgi-durable-writer")
        self._reading = WorkThread("asgi-durable-reader")
        self._turn = WriteTurn()
        self._sessions = SQLiteSessions(self._file, self._turn)
        self._blocking_sessions = SQLiteBlockingSessions(self._file, self._turn)
        self._opened: _Opened | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """See ``Lifecycle.name``."""
        return self._file.name

    @classmethod
    def application_database(cls, url: str) -> SQLApplicationDatabase:
        """Return a database of the application's that does not hold the step log."""
        file, turn = SQLiteFile.from_url(url), WriteTurn()
        return SQLApplicationDatabase(
            SQLiteSessions(file, turn), SQLiteBlockingSessions(file, turn), name=file.name
        )

    async def open(self) -> None:
        self._writing.start()
        self._reading.start()
        try:
            await self._writing.run(self._open)
            await self._sessions.open()
        except BaseException:
            # If this was cancelled, the thread may still be opening the file: close it after that.
            self._writing.stop_after(self._close)
            self._reading.stop_after()
            raise

    async def close(self) -> None:
        if self._opened is None:
            return
        try:
            await self._sessions.close()
            self._blocking_sessions.close()
            # Wait for the reads that have begun.
            await self._reading.run(lambda: None)
            await self._writing.run(self._close)
        finally:
            # Close again, in case this was cancelled before.
            self._writing.stop_after(self._close)
            self._reading.stop_after()

    async def register(
        self, executor_id: str, *, lease_seconds: float, on_message: Callable[[str], None]
    ) -> None:
        # SQLite has no way to wake other processes.
        del on_message
        await self._write(lambda opened: opened.executors.register(executor_id, lease_seconds))

    async def beat(self, executor_id: str, *, lease_seconds: float, runnable: Runnable) -> Beat:
        def look(opened: _Opened) -> tuple[Beat, list[str]]:
            opened.executors.renew(executor_id, lease_seconds)
            connection = opened.reader.connection
            return opened.executors.look_around(connection, executor_id, runnable)

        beat, ended = await self._read(look)
        # Invariant: a beat does not wait for the write lock. A long transaction of any process
        # would otherwise prevent the next renewal of the lease.
        if self._upkeep is None or self._upkeep.done() or self._upkeep.get_loop().is_closed():
            self._upkeep = asyncio.get_running_loop().create_task(self._keep_up(ended))
            await asyncio.wait([self._upkeep], timeout=UPKEEP_WAIT_SECONDS)
            if ended:
                beat, _ = await self._read(look)
        return beat

    async def _keep_up(self, ended: Sequence[str]) -> None:
        try:
            if ended:
                await self._write(lambda opened: opened.executors.declare_dead(ended))
            await self._write(lambda opened: opened.checkpoints.checkpoint_if_due())
        except StorageError as error:
            logger.warning("Retried at the next heartbeat: %s", error)

    async def is_missing(self, executor_id: str) -> bool:
        def look(opened: _Opened) -> bool:
            return opened.executors.is_missing(opened.reader.connection, executor_id)

        return await self._read(look)

    async def take_over(
        self, executor_id: str, *, runnable: Runnable, limit: int, suspects: bool
    ) -> list[TakenWorkflow]:
        return await self._write(
            lambda opened: opened.executors.take_over(
                executor_id, runnable, limit, suspects=suspects
            )
        )

    async def retire(self, executor_id: str) -> None:
        await self._write(lambda opened: opened.executors.retire(executor_id))

    async def send(self, executor_id: str | None, message: str) -> None:
        del executor_id, message

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        return await self._write(lambda opened: opened.writer.commit(batch))

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        return await self._read(lambda opened: opened.reader.get_workflow(workflow_id))

    async def get_progress(self, workflow_id: str) -> StoredProgress | None:
        return await self._read(lambda opened: opened.reader.get_progress(workflow_id))

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        return await self._read(lambda opened: opened.reader.get_response(workflow_id))

    async def read_chunks(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        return await self._read(lambda opened: opened.reader.read_chunks(workflow_id, after))

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        return await self._read(lambda opened: opened.reader.load_runs(workflow_ids))

    async def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        return await self._read(lambda opened: opened.reader.list_cancelled(workflow_ids))

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        return await self._read(
            lambda opened: opened.reader.list_pending(executor_id, after, limit)
        )

    async def list_unknown(self, names: Collection[str], *, limit: int) -> list[WorkflowRecord]:
        return await self._read(lambda opened: opened.reader.list_unknown(names, limit))

    async def forget_expired(self, now_us: int, *, abandoned_before_us: int, limit: int) -> int:
        return await self._write(
            lambda opened: opened.retention.forget_expired(now_us, abandoned_before_us, limit)
        )

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        return await self._write(
            lambda opened: opened.retention.forget_request(workflow_id, now_us)
        )

    async def read_secret(self) -> StoredSecret:
        return await self._read(lambda opened: read_secret(opened.reader.connection))

    def transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[StoredTransaction]:
        return transaction(self._sessions, slot, isolation_level)

    def blocking_transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingTransaction]:
        _opened_or_raise(self._opened)
        return blocking_transaction(self._blocking_sessions, slot, isolation_level)

    def request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[RequestTransaction]:
        return request_transaction(self._sessions, slot, isolation_level)

    def blocking_request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingRequestTransaction]:
        _opened_or_raise(self._opened)
        return blocking_request_transaction(self._blocking_sessions, slot, isolation_level)

    def _open(self) -> None:
        file = self._file
        file.check()
        with naming_errors(str(file.path)), ExitStack() as opened:
            writer = SQLiteWriter(file)
            opened.callback(writer.close)
            migrate(writer.connection, str(file.path))
            damaged = DamagedRows()
            reader = SQLiteReader(file, damaged)
            opened.callback(reader.close)
            checkpoints = SQLiteCheckpoints(file, writer.connection)
            executors = SQLiteExecutors(file, writer.connection, damaged)
            retention = SQLiteRetention(writer.connection)
            self._opened = _Opened(writer, reader, executors, checkpoints, retention)
            opened.pop_all()

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        self._file.discard()

    async def _write(self, work: Callable[[_Opened], ResultT]) -> ResultT:
        async with self._turn:
            return await self._with_opened(self._writing, work)

    async def _read(self, work: Callable[[_Opened], ResultT]) -> ResultT:
        return await self._with_opened(self._reading, work)

    async def _with_opened(self, thread: WorkThread, work: Callable[[_Opened], ResultT]) -> ResultT:
        opened = _opened_or_raise(self._opened)
        with TranslatingErrors(str(self._file.path)):
            return await thread.run(lambda: work(opened))


def _opened_or_raise(resource: ResultT | None) -> ResultT:
    if resource is None:
        msg = "the storage is not open"
        raise StorageError(msg)
    return resource
