"""Group commit: one statement for most batches, and the slow path for the rest.

To read it: :meth:`PostgresWriter.commit` splits a batch into groups, ``batch.py`` writes a group
with one statement, and ``slow_path.py`` decides about the writes that this did not apply.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from asgi_durable.errors import StorageUnavailableError
from asgi_durable.storage.postgres.commits.batch import BatchStatements, Rows
from asgi_durable.storage.postgres.commits.slow_path import apply_slowly, find_refused_claims
from asgi_durable.storage.postgres.commits.slow_path_statements import SlowPathStatements
from asgi_durable.storage.postgres.connections.reconnecting import (
    Connection,
    ReconnectingConnection,
)
from asgi_durable.storage.postgres.errors import ChangedMeanwhileError, is_bad_row
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.write_order import is_one_group, write_order
from asgi_durable.storage.writes import (
    DONE,
    FENCED,
    Outcome,
    OutcomeKind,
    RecordChunk,
    ResumeWorkflow,
    SetFingerprint,
    Write,
    executor_of,
    workflow_id_of,
)

__all__ = ["PostgresWriter"]

SlowPath = Callable[[str, Sequence[Write]], Awaitable[list[Outcome] | None]]

# How often a group is started again because other processes changed its rows.
MAX_ATTEMPTS = 5


class PostgresWriter:
    """Applies batches of writes.

    Args:
        connection: The connection that writes.
        names: The tables' names.
        slow_path: Applies the writes that one statement could not apply: :meth:`apply_slowly` of
            another writer. By default this writer applies them.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        names: PostgresNames,
        *,
        slow_path: SlowPath | None = None,
    ) -> None:
        self._connection = connection
        self._batches = BatchStatements(names)
        self._slow_statements = SlowPathStatements(names)
        self._slow_path = slow_path

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply a batch; see ``StepLog.commit``.

        A batch that has several writes of one kind for one place, or writes of several
        executors, is applied in several transactions, one after the other. This is safe, as each
        write may be repeated.
        """
        executor_ids = {executor_of(write) for write in batch}
        (executor_id,) = executor_ids if len(executor_ids) == 1 else (None,)
        if executor_id is not None and is_one_group(batch):
            return await self._apply(executor_id, batch)
        outcomes: list[Outcome] = [FENCED] * len(batch)
        by_executor: dict[str, list[int]] = {}
        for index, write in enumerate(batch):
            executor_id = executor_of(write)
            if executor_id is not None:
                by_executor.setdefault(executor_id, []).append(index)
        for executor_id, indexes in by_executor.items():
            for group in write_order([batch[index] for index in indexes]):
                places = [indexes[place] for place in group]
                results = await self._apply(executor_id, [batch[place] for place in places])
                for place, outcome in zip(places, results, strict=True):
                    outcomes[place] = outcome
        return outcomes

    async def _apply(self, executor_id: str, writes: Sequence[Write]) -> list[Outcome]:
        """Apply a group. If the database cannot hold one of its rows, halve it to find that row."""
        try:
            return await self._connection.run(partial(self._attempt, executor_id, writes))
        except Exception as error:
            if not is_bad_row(error):
                raise
            if len(writes) == 1:
                return [Outcome(OutcomeKind.REJECTED, error=error)]
        middle = len(writes) // 2
        return [
            *await self._apply(executor_id, writes[:middle]),
            *await self._apply(executor_id, writes[middle:]),
        ]

    async def _attempt(
        self, executor_id: str, writes: Sequence[Write], connection: Connection
    ) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for _ in range(MAX_ATTEMPTS):
            # Invariant: a write that was applied is not applied again. A claim would take its own
            # row for a failed request that waits for its retry.
            rest = [write for write in writes if id(write) not in outcomes]
            try:
                await self._apply_once(connection, executor_id, rest, outcomes)
            except ChangedMeanwhileError:
                continue
            return [outcomes.get(id(write), DONE) for write in writes]
        msg = "other processes changed the rows of a batch again and again"
        raise StorageUnavailableError(msg)

    async def _apply_once(
        self,
        connection: Connection,
        executor_id: str,
        writes: Sequence[Write],
        outcomes: dict[int, Outcome],
    ) -> None:
        """Apply writes, and add their outcomes to *outcomes*; a write without one is DONE."""
        # All writes for these workflows are left to the slow path. A resumption takes the
        # workflow before rows are written for it. A chunk and the deletion of the chunks that it
        # replaces are one transaction. A fingerprint is set before the workflow's end.
        later = {
            workflow_id_of(write)
            for write in writes
            if isinstance(write, (ResumeWorkflow, SetFingerprint))
            or (isinstance(write, RecordChunk) and write.cuts)
        }
        at_once = [write for write in writes if workflow_id_of(write) not in later]
        rows = Rows.of(at_once)
        if rows.count:
            applied = await self._batches.apply(connection, executor_id, rows)
            if not applied.is_alive:
                outcomes |= {id(write): FENCED for write in writes}
                return
            if applied.is_whole and rows.count + len(rows.folded) == len(writes):
                return
            outcomes |= {id(write): DONE for write in at_once if applied.has(write)}
        rest = [write for write in writes if id(write) not in outcomes]
        outcomes |= await find_refused_claims(connection, self._slow_statements, executor_id, rest)
        rest = [write for write in rest if id(write) not in outcomes]
        if rest:
            results = await self._run_slow_path(connection, executor_id, rest)
            outcomes |= {id(write): outcome for write, outcome in zip(rest, results, strict=True)}

    async def _run_slow_path(
        self, connection: Connection, executor_id: str, writes: Sequence[Write]
    ) -> list[Outcome]:
        if self._slow_path is None:
            return await apply_slowly(
                connection, self._slow_statements, self._batches, executor_id, writes
            )
        results = await self._slow_path(executor_id, writes)
        if results is None:
            raise ChangedMeanwhileError
        return results

    async def apply_slowly(self, executor_id: str, writes: Sequence[Write]) -> list[Outcome] | None:
        """Apply writes that one statement could not; ``None`` if other processes changed the rows.

        Invariant: it runs on an event loop that the application cannot block, as its transaction
        locks rows that other processes wait for.
        """

        async def once(connection: Connection) -> list[Outcome] | None:
            try:
                return await apply_slowly(
                    connection, self._slow_statements, self._batches, executor_id, writes
                )
            except ChangedMeanwhileError:
                return None

        return await self._connection.run(once)
