"""Group commit into PostgreSQL: one connection, and one round trip for most batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from asgi_durable.errors import StorageUnavailableError
from asgi_durable.storage.postgres.commits.batch import BatchStatements, Rows
from asgi_durable.storage.postgres.commits.slow_path import refused_claims, settle
from asgi_durable.storage.postgres.commits.slow_path_statements import SettleStatements
from asgi_durable.storage.postgres.connections.reconnecting import ReconnectingConnection, Wire
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

Settle = Callable[[str, Sequence[Write]], Awaitable[list[Outcome] | None]]

# How often rows may change between two looks at them, before somebody else has to look.
MOST_ATTEMPTS = 5


class PostgresWriter:
    """Applies batches of writes.

    Args:
        link: The connection that writes.
        names: The tables' names.
        settle: Settles what one statement could not, as :meth:`settle` of another writer does;
            by default this one.
    """

    def __init__(
        self, link: ReconnectingConnection, names: PostgresNames, *, settle: Settle | None = None
    ) -> None:
        self._link = link
        self._batches = BatchStatements(names)
        self._settling = SettleStatements(names)
        self._settle_elsewhere = settle

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply a batch; see ``StepLog.commit``.

        Repeated writes of a batch, and writes of different executors, are applied in one
        transaction after the other: each write may be repeated, and so may any of them.
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
                settled = await self._apply(executor_id, [batch[place] for place in places])
                for place, outcome in zip(places, settled, strict=True):
                    outcomes[place] = outcome
        return outcomes

    async def _apply(self, executor_id: str, writes: Sequence[Write]) -> list[Outcome]:
        """Apply a group; halve it until what the database cannot hold is alone."""
        try:
            return await self._link.run(partial(self._try, executor_id, writes))
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

    async def _try(self, executor_id: str, writes: Sequence[Write], wire: Wire) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for _ in range(MOST_ATTEMPTS):
            # Invariant: what is written is not written again; a claim would take its own row
            # for one that waits for its retry.
            rest = [write for write in writes if id(write) not in outcomes]
            try:
                await self._apply_once(wire, executor_id, rest, outcomes)
            except ChangedMeanwhileError:
                continue
            return [outcomes.get(id(write), DONE) for write in writes]
        msg = "the rows of a batch were changed by others again and again"
        raise StorageUnavailableError(msg)

    async def _apply_once(
        self,
        wire: Wire,
        executor_id: str,
        writes: Sequence[Write],
        outcomes: dict[int, Outcome],
    ) -> None:
        """Apply writes, and add what became of them to *outcomes*; without one it is DONE."""
        # Writes after a resumption in this group need the workflow to be taken first. The chunks
        # that a chunk cuts are deleted in the transaction that inserts it. And a finished
        # workflow gets no fingerprint.
        later = {
            workflow_id_of(write)
            for write in writes
            if isinstance(write, (ResumeWorkflow, SetFingerprint))
            or (isinstance(write, RecordChunk) and write.cuts)
        }
        at_once = [write for write in writes if workflow_id_of(write) not in later]
        rows = Rows.of(at_once)
        if rows.count:
            applied = await self._batches.apply(wire, executor_id, rows)
            if not applied.is_alive:
                outcomes |= {id(write): FENCED for write in writes}
                return
            if applied.is_whole and rows.count + len(rows.folded) == len(writes):
                return
            outcomes |= {id(write): DONE for write in at_once if applied.has(write)}
        rest = [write for write in writes if id(write) not in outcomes]
        outcomes |= await refused_claims(wire, self._settling, executor_id, rest)
        rest = [write for write in rest if id(write) not in outcomes]
        if rest:
            settled = await self._settle(wire, executor_id, rest)
            outcomes |= {id(write): outcome for write, outcome in zip(rest, settled, strict=True)}

    async def _settle(self, wire: Wire, executor_id: str, writes: Sequence[Write]) -> list[Outcome]:
        if self._settle_elsewhere is None:
            return await settle(wire, self._settling, self._batches, executor_id, writes)
        settled = await self._settle_elsewhere(executor_id, writes)
        if settled is None:
            raise ChangedMeanwhileError
        return settled

    async def settle(self, executor_id: str, writes: Sequence[Write]) -> list[Outcome] | None:
        """Apply what one statement could not; return ``None`` if others were faster.

        Invariant: on an event loop that nobody blocks. In the midst of its transaction rows
        are locked that other processes wait for.
        """

        async def once(wire: Wire) -> list[Outcome] | None:
            try:
                return await settle(wire, self._settling, self._batches, executor_id, writes)
            except ChangedMeanwhileError:
                return None

        return await self._link.run(once)
