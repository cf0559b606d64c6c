"""Transactions in a database of the application's that does not hold the step log.

The two databases cannot commit together. So the record of a transaction is first written to a
small table in the application's database, in the same transaction, and then copied to the step
log. After a crash in between, the record is found in the small table, and the transaction is not
run again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from asgi_durable.errors import DurableUsageError, StorageUnavailableError
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import ApplicationSlot, GivenUpError, SlotTakenError

__all__ = [
    "SESSION_OPTIONS",
    "BlockingSessions",
    "SQLApplicationDatabase",
    "Sessions",
    "checked_isolation_level",
    "end_blocking_session",
    "end_session",
    "transaction_ended_error",
]

metadata = sa.MetaData()
transactions = sa.Table(
    "asgi_durable_transactions",
    metadata,
    sa.Column("workflow_id", sa.Text, nullable=False),
    sa.Column("step_number", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("output", sa.LargeBinary),
    sa.Column("error", sa.LargeBinary),
    sa.Column("finished_at_us", sa.BigInteger, nullable=False),
    # The number of the workflow's run that wrote it.
    sa.Column("execution", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("workflow_id", "step_number", name="pk_asgi_durable_transactions"),
)

# With a savepoint, commit() and rollback() of the session in the application's code cannot end the
# transaction that holds the record.
SESSION_OPTIONS: dict[str, Any] = {
    "expire_on_commit": False,
    "join_transaction_mode": "create_savepoint",
}


class Sessions(Protocol):
    """Connections to one database for transactions of ``async def`` code."""

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Close all connections."""

    def begin(self, isolation_level: str | None) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction on a connection; roll it back unless the caller commits it.

        Raises:
            DurableUsageError: There is no such isolation level.
            StorageError: The database failed, here or in a statement of the caller's.
        """

    def library_statements(self) -> AbstractContextManager[None]:
        """Run statements of the library's in the application's transaction.

        If a time limit that the application has set ends one of them, that is an outage of the
        storage, and no error of the application.

        Raises:
            StorageUnavailableError: A time limit has ended a statement.
        """

    async def commit(self, connection: AsyncConnection) -> None:
        """Commit the transaction.

        Raises:
            StorageUnavailableError: The connection is lost.
        """

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Return False if the application's code has ended the transaction."""


class BlockingSessions(Protocol):
    """Connections to one database for transactions of ``def`` code, in threads."""

    def close(self) -> None:
        """Close all connections that are not in use."""

    def begin(self, isolation_level: str | None) -> AbstractContextManager[sa.Connection]:
        """Begin a transaction on a connection; roll it back unless the caller commits it.

        Raises:
            DurableUsageError: There is no such isolation level, or no driver is installed.
            StorageError: The database failed, here or in a statement of the caller's.
        """

    def library_statements(self) -> AbstractContextManager[None]:
        """See :class:`Sessions`."""

    def commit(self, connection: sa.Connection) -> None:
        """See :class:`Sessions`."""

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """Return False if the application's code has ended the transaction."""


def transaction_ended_error() -> DurableUsageError:
    """Return the error for a transaction that is over before its record is written."""
    return DurableUsageError(
        "a transaction was ended behind the session's back, by a COMMIT or ROLLBACK in "
        "SQL or of its connection; use durable.session.commit() or leave it out"
    )


async def end_session(
    sessions: Sessions, connection: AsyncConnection, session: AsyncSession
) -> None:
    """Flush the application's rows, so that the record can be written after them.

    Raises:
        DurableUsageError: The application's code has ended the transaction.
    """
    await session.commit()
    if not await sessions.is_in_transaction(connection):
        raise transaction_ended_error()


def end_blocking_session(
    sessions: BlockingSessions, connection: sa.Connection, session: Session
) -> None:
    """Flush as :func:`end_session` does, in a thread."""
    session.commit()
    if not sessions.is_in_transaction(connection):
        raise transaction_ended_error()


class _Transaction:
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    def __init__(
        self,
        sessions: Sessions,
        connection: AsyncConnection,
        session: AsyncSession,
        slot: ApplicationSlot | None,
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection
        self._slot = slot

    async def record(self, step: StepRecord) -> None:
        # Invariant: the application's rows and the record are in one transaction.
        await end_session(self._sessions, self._connection, self.session)
        if self._slot is not None:
            with self._sessions.library_statements():
                await self._connection.run_sync(_insert, step, self._slot)


class _BlockingTransaction:
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def __init__(
        self,
        sessions: BlockingSessions,
        connection: sa.Connection,
        session: Session,
        slot: ApplicationSlot | None,
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection
        self._slot = slot

    def record(self, step: StepRecord) -> None:
        # Invariant: the application's rows and the record are in one transaction.
        end_blocking_session(self._sessions, self._connection, self.session)
        if self._slot is not None:
            with self._sessions.library_statements():
                _insert(self._connection, step, self._slot)


class SQLApplicationDatabase:
    """See :class:`asgi_durable.storage.transaction_port.ApplicationDatabase`.

    Args:
        sessions: Connections for tasks.
        blocking_sessions: Connections for threads.
        name: The name of the database for messages, without user and password.
    """

    def __init__(
        self, sessions: Sessions, blocking_sessions: BlockingSessions, *, name: str
    ) -> None:
        self.name = name
        self._sessions = sessions
        self._blocking_sessions = blocking_sessions

    async def open(self) -> None:
        await self._sessions.open()
        try:
            await self._create_table()
        except BaseException:
            await self._sessions.close()
            raise

    async def close(self) -> None:
        await self._sessions.close()
        self._blocking_sessions.close()

    @asynccontextmanager
    async def transaction(
        self, slot: ApplicationSlot | None, *, isolation_level: str | None = None
    ) -> AsyncIterator[_Transaction]:
        async with self._sessions.begin(isolation_level) as connection:
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                yield _Transaction(self._sessions, connection, session, slot)
                await session.commit()
            await self._sessions.commit(connection)

    @contextmanager
    def blocking_transaction(
        self, slot: ApplicationSlot | None, *, isolation_level: str | None = None
    ) -> Iterator[_BlockingTransaction]:
        with self._blocking_sessions.begin(isolation_level) as connection:
            with Session(connection, **SESSION_OPTIONS) as session:
                yield _BlockingTransaction(self._blocking_sessions, connection, session, slot)
                session.commit()
            self._blocking_sessions.commit(connection)

    async def find(self, slot: ApplicationSlot) -> StepRecord | None:
        async with self._begin_for_library() as connection:
            row = await _find(connection, slot)
        if row is None or (row.error is not None and row.execution < slot.execution):
            return None
        fields = row._asdict()
        if row.error is not None and fields["execution"] > slot.execution:
            raise _slot_taken(slot)
        del fields["execution"]
        return StepRecord(**fields)

    async def record_failure(self, step: StepRecord, slot: ApplicationSlot) -> None:
        async with self._begin_for_library() as connection:
            await connection.run_sync(_insert, step, slot)
            await self._sessions.commit(connection)

    @asynccontextmanager
    async def _begin_for_library(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that has no statements of the application's."""
        try:
            with self._sessions.library_statements():
                async with self._sessions.begin(None) as connection:
                    yield connection
        except GivenUpError as error:
            raise StorageUnavailableError(str(error)) from error

    async def _create_table(self) -> None:
        # Several processes may do this at once, and a role may lack the right to create tables.
        if await self._has_table():
            return
        try:
            async with self._sessions.begin(None) as connection:
                await connection.run_sync(metadata.create_all)
                await connection.commit()
        except DBAPIError:
            if not await self._has_table():
                raise

    async def _has_table(self) -> bool:
        async with self._sessions.begin(None) as connection:
            return await connection.run_sync(
                lambda synchronous: sa.inspect(synchronous).has_table(transactions.name)
            )


async def _find(connection: AsyncConnection, slot: ApplicationSlot) -> Any:
    found = await connection.execute(sa.select(transactions).where(_is_at(slot)))
    return found.one_or_none()


def _insert(connection: sa.Connection, step: StepRecord, slot: ApplicationSlot) -> None:
    """Write a record; it replaces the recorded failure of an earlier run of the workflow.

    Invariant: the primary key decides. If two runs race, one commits. A run that comes late
    finds the record of the later run, which may be a failure.
    """
    is_outdated = transactions.c.error.is_not(None) & (transactions.c.execution < slot.execution)
    connection.execute(sa.delete(transactions).where(_is_at(slot), is_outdated))
    values = {
        column.name: getattr(step, column.name)
        for column in transactions.columns
        if column.name != "execution"
    }
    try:
        connection.execute(sa.insert(transactions).values(values | {"execution": slot.execution}))
    except IntegrityError as error:
        raise _slot_taken(slot) from error


def _is_at(slot: ApplicationSlot) -> sa.ColumnElement[bool]:
    return (transactions.c.workflow_id == slot.workflow_id) & (
        transactions.c.step_number == slot.step_number
    )


def _slot_taken(slot: ApplicationSlot) -> SlotTakenError:
    return SlotTakenError(f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free")


LEVELS = ("READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def checked_isolation_level(level: str | None) -> str | None:
    """Return a level in SQL's spelling, ``None`` for the database's default.

    Raises:
        DurableUsageError: There is no such level.
    """
    if level is None:
        return None
    spelled = " ".join(level.upper().split())
    if spelled not in LEVELS:
        msg = f"isolation_level must be one of {', '.join(LEVELS)}; got {level!r}"
        raise DurableUsageError(msg)
    return spelled
