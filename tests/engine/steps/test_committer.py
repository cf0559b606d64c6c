"""Group commit: batches, order, the storage retry timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.records import workflow

from asgi_durable import StorageError, StorageUnavailableError
from asgi_durable.concurrency.once import Once
from asgi_durable.engine.process import committer as committer_module
from asgi_durable.engine.process.committer import Committer
from asgi_durable.storage.writes import (
    DONE,
    ForgetRequest,
    Outcome,
    OutcomeKind,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio


class Log:
    """A step log that records the batches, and fails if a test asks for it."""

    def __init__(self, *failures: Exception | None) -> None:
        self.batches: list[list[Write]] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self._failures = list(failures)

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        self.batches.append(list(batch))
        await self.may_commit.wait()
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
        return [DONE] * len(batch)


def write(number: int) -> Write:
    return ForgetRequest(f"w{number}", "executor-1")


def submit(committer: Committer, *writes: Write) -> list[Once[Outcome]]:
    queue = committer.queue(asyncio.get_running_loop())
    return [committer.submit(queue, write) for write in writes]


def new_committer(log: Log, *, retry_seconds: float = 0.0) -> Committer:
    return Committer(log, storage_retry_seconds=retry_seconds)  # type: ignore[arg-type]


async def test_what_is_submitted_together_is_committed_together() -> None:
    log = Log()

    signals = submit(new_committer(log), *map(write, range(5)))
    outcomes = [await signal.wait() for signal in signals]

    assert log.batches == [[write(n) for n in range(5)]]
    assert outcomes == [DONE] * 5


async def test_the_next_batch_gathers_while_a_commit_is_in_flight() -> None:
    log = Log()
    log.may_commit.clear()
    committer = new_committer(log)

    first = submit(committer, write(0))
    while not log.batches:
        await asyncio.sleep(0)
    rest = [*submit(committer, write(1)), *submit(committer, write(2))]
    assert not first[0].is_set()
    log.may_commit.set()
    for signal in [*first, *rest]:
        await signal.wait()

    assert log.batches == [[write(0)], [write(1), write(2)]]


async def test_a_batch_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "MAX_BATCH_WRITES", 3)
    monkeypatch.setattr(committer_module, "MAX_BATCH_BYTES", 10)
    log = Log()
    large = StartWorkflow(workflow(input=b"x" * 20))

    signals = submit(new_committer(log), *map(write, range(4)), large, large)
    for signal in signals:
        await signal.wait()

    assert [len(batch) for batch in log.batches] == [3, 2, 1]


async def test_a_failing_storage_is_tried_again_with_the_same_batch() -> None:
    log = Log(StorageUnavailableError("locked"), StorageUnavailableError("locked"))

    (signal,) = submit(new_committer(log, retry_seconds=60.0), write(0))

    assert await signal.wait() == DONE
    assert log.batches == [[write(0)]] * 3


async def test_a_batch_is_tried_again_however_long_the_event_loop_stood_still() -> None:
    log = Log(StorageUnavailableError("timeout"))

    (signal,) = submit(new_committer(log), write(0))

    assert await signal.wait() == DONE
    assert log.batches == [[write(0)]] * 2


@pytest.mark.parametrize(
    ("failure", "attempts"), [(StorageUnavailableError("full"), 2), (StorageError("gone"), 1)]
)
async def test_what_queued_behind_a_batch_that_is_given_up_is_given_up_too(
    failure: StorageError, attempts: int
) -> None:
    log = Log(*[failure] * attempts)
    log.may_commit.clear()
    committer = new_committer(log)

    parent = submit(committer, write(0))
    while not log.batches:
        await asyncio.sleep(0)
    child = submit(committer, write(1))
    log.may_commit.set()
    outcomes = [await signal.wait() for signal in [*parent, *child]]
    later = await submit(committer, write(2))[0].wait()

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.UNAVAILABLE] * 2
    assert [outcome.error for outcome in outcomes] == [failure] * 2
    assert later == DONE
    assert [write(1)] not in log.batches


async def test_a_defect_of_an_adapter_leaves_nobody_waiting() -> None:
    log = Log(ZeroDivisionError())

    (signal,) = submit(new_committer(log), write(0))

    assert (await signal.wait()).kind is OutcomeKind.UNAVAILABLE


async def test_a_waiter_that_is_cancelled_takes_nothing_back() -> None:
    log = Log()
    log.may_commit.clear()
    (signal,) = submit(new_committer(log), write(0))

    waiters = [asyncio.ensure_future(signal.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    log.may_commit.set()

    assert await waiters[1] == DONE
    assert waiters[0].cancelled()
