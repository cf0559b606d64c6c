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
from asgi_durable.storage.sqlite.reader import SQLiteReader
from asgi_durable.storage.sqlite.retention import SQLiteRetention
from asgi_durable.storage.sqlite.secret import read_secret
from asgi_durable.storage.sqlite.transactions.blocking_sessions import SQLiteBlockingSessions
from asgi_durable.storage.sqlite.transactions.request_transactions import (
    blocking_request_transaction,
    request_transaction,
)
from asgi_durable.storage.sqlite.transactions.sessions import SQLiteSessions
from asgi_durable.storage.sqlite.transactions.transactions import blocking_transaction, transaction
from asgi_durable.storage.sqlite.transactions.write_turn import WriteTurn
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

# How long a beat waits for what needs the write lock; a moment, where nobody else has it.
UPKEEP_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Opened:
    """What works on the threads of an open storage."""

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
    """Keeps the step log in a SQLite file in WAL mode.

    One thread with one connection writes the log through the driver, another one reads it;
    the application's transactions use SQLAlchemy's connections. ``asyncio`` only.

    Args:
        url: See :meth:`SQLiteFile.from_url`.
    """

    # Of a local file this costs next to nothing, and others wait for it.
    beat_interval_seconds = 0.25

    def __init__(self, url: str) -> None:
        self._file = SQLiteFile.from_url(url)
        # Not the loop's default pool: the application may fill that one up.
        self._writing = WorkThread("asgi-durable-writer")
        self._reading = WorkThread("asgi-durable-reader")
        self._turn = WriteTurn()
        self._sessions = SQLiteSessions(self._file, self._turn)
        self._blocking_sessions = SQLiteBlockingSessions(self._file, self._turn)
        self._opened: _Opened | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self._file.name

    @classmethod
    def application_database(cls, url: str) -> SQLApplicationDatabase:
        """Return a file of the application's own, apart from the step log's."""
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
            # The thread may be opening still where this was cancelled: close after it.
            self._writing.stop_after(self._close)
            self._reading.stop_after()
            raise

    async def close(self) -> None:
        if self._opened is None:
            return
        try:
            await self._sessions.close()
            self._blocking_sessions.close()
            # What is being read comes to its end first.
            await self._reading.run(lambda: None)
            await self._writing.run(self._close)
        finally:
            # Again, where this was cancelled.
            self._writing.stop_after(self._close)
            self._reading.stop_after()

    async def register(
        self, executor_id: str, *, lease_seconds: float, on_message: Callable[[str], None]
    ) -> None:
        # SQLite has no way to wake other processes.
        del on_message
        await self._write(lambda opened: opened.executors.register(executor_id, lease_seconds))

    async def beat(self, executor_id: str, *, lease_seconds: float, runnable: Runnable) -> Beat:
        def look_around(opened: _Opened) -> tuple[Beat, list[str]]:
            opened.executors.renew(executor_id, lease_seconds)
            connection = opened.reader.connection
            return opened.executors.look_around(connection, executor_id, runnable)

        beat, gone = await self._read(look_around)
        # Invariant: no beat waits for the write lock, or a long transaction of anybody would
        # keep this executor from renewing its lease.
        if self._upkeep is None or self._upkeep.done() or self._upkeep.get_loop().is_closed():
            self._upkeep = asyncio.get_running_loop().create_task(self._keep_up(gone))
            await asyncio.wait([self._upkeep], timeout=UPKEEP_WAIT_SECONDS)
            if gone:
                beat, _ = await self._read(look_around)
        return beat

    async def _keep_up(self, gone: Sequence[str]) -> None:
        try:
            if gone:
                await self._write(lambda opened: opened.executors.declare_dead(gone))
            await self._write(lambda opened: opened.checkpoints.checkpoint_if_due())
        except StorageError as error:
            logger.warning("To be tried again at the next beat: %s", error)

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

    async def read_pieces(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        return await self._read(lambda opened: opened.reader.read_pieces(workflow_id, after))

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
        _given(self._opened)
        return blocking_transaction(self._blocking_sessions, slot, isolation_level)

    def request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[RequestTransaction]:
        return request_transaction(self._sessions, slot, isolation_level)

    def blocking_request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingRequestTransaction]:
        _given(self._opened)
        return blocking_request_transaction(self._blocking_sessions, slot, isolation_level)

    def _open(self) -> None:
        file = self._file
        file.check()
        with naming_errors(str(file.path)), ExitStack() as opened:
            writer = SQLiteWriter(file)
            opened.callback(writer.close)
            writer.migrate()
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
        opened = _given(self._opened)
        with TranslatingErrors(str(self._file.path)):
            return await thread.run(lambda: work(opened))


def _given(resource: ResultT | None) -> ResultT:
    if resource is None:
        msg = "the storage is not open"
        raise StorageError(msg)
    return resource
