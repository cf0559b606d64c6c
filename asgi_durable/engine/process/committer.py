"""Group commit: one transaction at a time for the writes of all runs."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Sequence

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.concurrency.once import Once
from asgi_durable.concurrency.per_loop import PerLoop
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
# Iterations of the event loop that a batch waits for. In two of them the end of a child wakes its
# parent, whose own end then shares the commit. It takes microseconds if nothing else runs.
GATHER_ITERATIONS = 2
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2
# An event loop that was blocked for long may find its time used up, although no storage failed.
FEWEST_ATTEMPTS = 2


class Committer:
    """Collects writes and commits them in batches, in the order of submission.

    There is no timer: while one commit is in flight, the next batch gathers. So a single run
    waits for its own commit only, and a hundred runs share one.

    Args:
        storage: Commits the batches.
        storage_retry_seconds: How long a batch is retried while the storage is unavailable.
        telemetry: Receives the size and the duration of each commit.
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
        self._storage_retry_seconds = storage_retry_seconds
        self._queues = PerLoop(LoopQueue)

    def queue(self, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        """Return the queue of *loop*, which must be running here."""
        return self._queues.get(loop)

    def submit(self, queue: LoopQueue, write: Write) -> Once[Outcome]:
        """Queue a write, and return its outcome, which is set later.

        Invariant: the outcome is set only after COMMIT has returned. Cancelling a task that
        waits for it does not take the write back.
        """
        outcome: Once[Outcome] = Once(queue.loop)
        queue.pending.append((write, outcome))
        if queue.task is None or queue.task.done():
            # An empty context: drivers have timers that hold on to their context for minutes.
            queue.task = queue.loop.create_task(self._drain(queue), context=contextvars.Context())
        return outcome

    async def flush(self) -> None:
        """Wait until every write that the running event loop has submitted has its outcome."""
        queue = self._queues.get(asyncio.get_running_loop())
        while queue.task is not None and not queue.task.done():
            await asyncio.wait([queue.task])

    async def _drain(self, queue: LoopQueue) -> None:
        while queue.pending:
            for _ in range(GATHER_ITERATIONS):
                await asyncio.sleep(0)
            batch = _take_batch(queue.pending)
            began = time.perf_counter()
            outcomes = await self._commit([write for write, _ in batch])
            self._telemetry.observer.committed(len(batch), time.perf_counter() - began)
            if outcomes[0].kind is OutcomeKind.UNAVAILABLE:
                # Writes queued behind the batch may depend on it: a child's on its parent's row.
                batch += queue.pending
                queue.pending.clear()
                outcomes = [outcomes[0]] * len(batch)
            for (_, once), outcome in zip(batch, outcomes, strict=True):
                once.set(outcome)

    async def _commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Commit a batch, and retry while the storage is unavailable."""
        give_up_at = time.monotonic() + self._storage_retry_seconds
        backoff: Backoff | None = None
        while True:
            try:
                return await self._storage.commit(writes)
            except StorageUnavailableError as error:
                # Made here, so that a commit that succeeds at once does not pay for it.
                backoff = backoff or Backoff(
                    FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, jitter=RETRY_JITTER
                )
                is_late = time.monotonic() + backoff.seconds > give_up_at
                if is_late and backoff.attempt >= FEWEST_ATTEMPTS:
                    logger.error("Giving up %d writes: %s", len(writes), error)
                    return [Outcome(OutcomeKind.UNAVAILABLE, error=error)] * len(writes)
                if backoff.is_worth_logging():
                    logger.warning("The storage is unavailable, trying again: %s", error)
            except StorageError as error:
                logger.exception("The storage failed; %d writes are lost", len(writes))
                return [Outcome(OutcomeKind.UNAVAILABLE, error=error)] * len(writes)
            except (
                Exception
            ) as error:  # a defect of the adapter must not leave a run waiting for ever
                logger.exception("The storage adapter failed; %d writes are lost", len(writes))
                failure = StorageError(f"{type(error).__name__}: {error}")
                return [Outcome(OutcomeKind.UNAVAILABLE, error=failure)] * len(writes)
            await backoff.wait()


class LoopQueue:
    """The writes of one event loop and the task that commits them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pending: deque[tuple[Write, Once[Outcome]]] = deque()
        self.task: asyncio.Task[None] | None = None


def _take_batch(
    pending: deque[tuple[Write, Once[Outcome]]],
) -> list[tuple[Write, Once[Outcome]]]:
    """Take the oldest writes, at least one and at most as many as a transaction should hold."""
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
        return len(write.chunk.data)
    if isinstance(write, FinishWorkflow):
        body = write.response.body if write.response is not None else None
        inputs = sum(len(start.input or b"") for start in write.starts)
        return len(write.output or write.error or b"") + len(body or b"") + inputs
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return len(write.workflow.input or b"")
    return 0
