"""Group commit: what all runs have to write goes into one transaction at a time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import deque
from collections.abc import Sequence

from asgi_durable.concurrency.once import Once
from asgi_durable.concurrency.per_loop import PerLoop
from asgi_durable.concurrency.retry_log import is_worth_a_line
from asgi_durable.errors import StorageError, StorageUnavailableError
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.writes import (
    ClaimRequest,
    CompleteStep,
    FinishWorkflow,
    Outcome,
    OutcomeKind,
    RecordChunk,
    RecordStep,
    StartWorkflow,
    Write,
)
from asgi_durable.telemetry.observer import NO_TELEMETRY, TelemetrySource

__all__ = ["Committer", "LoopQueue"]

logger = logging.getLogger(__name__)

MAX_BATCH_WRITES = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
# Turns of the event loop that a batch waits for: as many as it takes until a child's end has
# woken its parent, whose end then shares the commit. Microseconds, where nothing else runs.
GATHER_TURNS = 2
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0
# After an event loop that was blocked for long no time is left; no storage has failed.
FEWEST_ATTEMPTS = 2


class Committer:
    """Collects writes and commits them in batches, in the order of submission.

    There is no timer: while one commit is in flight the next batch gathers. So a run alone
    waits for its own commit only, and a hundred runs together share one.

    Args:
        storage: Where the batches go.
        storage_retry_seconds: For how long a batch is tried again while the storage fails.
        telemetry: Told of each commit.
    """

    def __init__(
        self,
        storage: StepLog,
        *,
        storage_retry_seconds: float,
        telemetry: TelemetrySource = NO_TELEMETRY,
    ) -> None:
        self._storage = storage
        self._telemetry = telemetry
        self._patience_seconds = storage_retry_seconds
        self._lanes = PerLoop(LoopQueue)

    def lane(self, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        """Return the queue of *loop*, which must be running here."""
        return self._lanes.get(loop)

    def submit(self, lane: LoopQueue, write: Write) -> Once[Outcome]:
        """Queue a write; the signal tells what became of it.

        Invariant: the signal is set only after COMMIT has returned. Cancelling who waits for
        it does not take the write back.
        """
        settled: Once[Outcome] = Once(lane.loop)
        lane.pending.append((write, settled))
        if lane.task is None or lane.task.done():
            # In none of the callers' contexts: drivers have timers that keep them for minutes.
            lane.task = lane.loop.create_task(self._drain(lane), context=contextvars.Context())
        return settled

    async def flush(self) -> None:
        """Wait until everything that the running event loop has submitted is settled."""
        lane = self._lanes.get(asyncio.get_running_loop())
        while lane.task is not None and not lane.task.done():
            await asyncio.wait([lane.task])

    async def _drain(self, lane: LoopQueue) -> None:
        while lane.pending:
            for _ in range(GATHER_TURNS):
                await asyncio.sleep(0)
            batch = _take_batch(lane.pending)
            began = time.perf_counter()
            outcomes = await self._commit([write for write, _ in batch])
            self._telemetry.observer.committed(len(batch), time.perf_counter() - began)
            if outcomes[0].kind is OutcomeKind.UNAVAILABLE:
                # What queued behind a batch may build on it: a child on its parent's row.
                batch += lane.pending
                lane.pending.clear()
                outcomes = [outcomes[0]] * len(batch)
            for (_, settled), outcome in zip(batch, outcomes, strict=True):
                settled.set(outcome)

    async def _commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Commit a batch, again and again while the storage is unavailable."""
        give_up_at = time.monotonic() + self._patience_seconds
        delay = FIRST_RETRY_SECONDS
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._storage.commit(writes)
            except StorageUnavailableError as error:
                if attempts >= FEWEST_ATTEMPTS and time.monotonic() + delay > give_up_at:
                    logger.error("Giving up %d writes: %s", len(writes), error)
                    return [Outcome(OutcomeKind.UNAVAILABLE, error=error)] * len(writes)
                if is_worth_a_line(attempts):
                    logger.warning("The storage is unavailable, trying again: %s", error)
            except StorageError as error:
                logger.exception("The storage failed; %d writes are lost", len(writes))
                return [Outcome(OutcomeKind.UNAVAILABLE, error=error)] * len(writes)
            except Exception as error:  # a defect of the adapter must not leave anybody waiting
                logger.exception("The storage adapter failed; %d writes are lost", len(writes))
                failure = StorageError(f"{type(error).__name__}: {error}")
                return [Outcome(OutcomeKind.UNAVAILABLE, error=failure)] * len(writes)
            await asyncio.sleep(delay * (1.0 + random.random() * 0.2))
            delay = min(delay * 2, LONGEST_RETRY_SECONDS)


class LoopQueue:
    """The writes of one event loop and the task that commits them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pending: deque[tuple[Write, Once[Outcome]]] = deque()
        self.task: asyncio.Task[None] | None = None


def _take_batch(
    pending: deque[tuple[Write, Once[Outcome]]],
) -> list[tuple[Write, Once[Outcome]]]:
    """Take the oldest writes, as many as a transaction should hold; at least one."""
    batch: list[tuple[Write, Once[Outcome]]] = []
    size = 0
    while pending and len(batch) < MAX_BATCH_WRITES and size < MAX_BATCH_BYTES:
        item = pending.popleft()
        batch.append(item)
        size += _payload_bytes(item[0])
    return batch


def _payload_bytes(write: Write) -> int:
    if isinstance(write, (RecordStep, CompleteStep)):
        return len(write.step.output or write.step.error or b"")
    if isinstance(write, RecordChunk):
        return len(write.piece.data)
    if isinstance(write, FinishWorkflow):
        body = write.response.body if write.response is not None else None
        inputs = sum(len(start.input or b"") for start in write.starts)
        return len(write.output or write.error or b"") + len(body or b"") + inputs
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return len(write.workflow.input or b"")
    return 0
