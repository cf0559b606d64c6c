"""A transaction: its rows and its record commit together, exactly once."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.process.definitions import TransactionDefinition
from asgi_durable.engine.process.storage_retry import retry_while_given_up, retry_while_unavailable
from asgi_durable.engine.replay.recorded_calls import (
    recorded_step,
    refuse_other_step,
    replayed,
    tell_of_replay,
)
from asgi_durable.engine.replay.result_order import expect_result_at, forget_result, in_turn
from asgi_durable.engine.replay.results import (
    decoded_failure,
    encode_error,
    infrastructure_error_in,
    named,
)
from asgi_durable.engine.runs.frame import Frame, entered
from asgi_durable.engine.runs.run import Run, Services
from asgi_durable.engine.runs.run_end import OwnedElsewhereError
from asgi_durable.engine.steps.transaction_records import transaction_records
from asgi_durable.errors import DurableUsageError, StorageUnavailableError
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import SlotTakenError

__all__ = ["run_plain_transaction", "run_transaction"]


async def run_plain_transaction(
    services: Services,
    frame: Frame | None,
    definition: TransactionDefinition,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run a transaction that no step log has a place for; inside another it joins that one."""
    require_asyncio()
    if frame is not None and frame.session is not None:
        if definition.is_async != hasattr(frame.session, "sync_session"):
            raise _other_session(definition, frame)
        return await definition.function(*args, **kwargs)
    # Its requests to others are the surrounding step's.
    frame = frame or Frame(services, None)
    place = replace(frame, services=services, step_name=definition.name)
    database, level = services.application or services.storage, definition.isolation_level

    def in_thread() -> Any:
        with (
            database.blocking_transaction(None, isolation_level=level) as transaction,
            entered(replace(place, session=transaction.session, in_thread=True)),
        ):
            return definition.call_decorated(*args, **kwargs)

    async def once() -> Any:
        if not definition.is_async:
            return await definition.thread.run(in_thread)
        async with database.transaction(None, isolation_level=level) as transaction:
            with entered(replace(place, session=transaction.session, in_thread=False)):
                return await definition.function(*args, **kwargs)

    return await retry_while_given_up(
        once, services.storage_retry_seconds, lambda: f"The transaction {definition.name!r}"
    )


async def run_transaction(
    run: Run,
    definition: TransactionDefinition,
    number: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return a transaction's recorded result, or run it and commit both together."""
    definition.prepare()
    digest = run.services.registry.digest(definition, args, kwargs)
    recorded = recorded_step(run, number, definition.name, digest)
    if recorded is not None:
        tell_of_replay(run, definition)
        return await replayed(run, definition, recorded)

    # Invariant: what came before is durable before this body has its side effects; and
    # nothing of this run waits in the committer while the transaction holds the write lock.
    await run.settle()
    function = definition.function if definition.is_async else definition.call_decorated
    body = functools.partial(function, *args, **kwargs)
    transaction = _Transaction(run, definition, number, digest, body)
    observer = run.services.telemetry.observer
    with observer.step(run.workflow, definition.name, number, kind="transaction"):
        try:
            return await _commit(run, transaction)
        except BaseException:
            forget_result(run, number)
            raise


async def _commit(run: Run, transaction: _Transaction) -> Any:
    """Commit a transaction, or its failure; return its result, or raise its error."""
    try:
        step = await transaction.with_patience(transaction.commit)
    except Exception as error:
        step = await _failed(run, transaction, error)
        if step.error is not None:
            transaction.place.add_to_log(step)
            await in_turn(run, step.step_number, step.finished_at_us)
            run.note_settled()
            raise decoded_failure(run, step.error, error) from None
    refuse_other_step(run, step, transaction.name, transaction.digest)
    transaction.place.add_to_log(step)
    return await replayed(run, transaction.definition, step)


async def _failed(run: Run, transaction: _Transaction, error: Exception) -> StepRecord:
    """Return the record of a failure, or of the success that somebody else was first with.

    Its rows are rolled back; the error is recorded once, by itself.

    Raises:
        RunStopped: The failure is the database's, not the transaction's.
    """
    try:
        if infrastructure_error_in(error) is not None:
            raise error
        return await transaction.with_patience(lambda: transaction.fail(error))
    except Exception as failure:
        outage = infrastructure_error_in(failure)
        if outage is None:
            raise
        retry_here = isinstance(outage, StorageUnavailableError)
        raise run.stop(outage, retry_here=retry_here) from failure


class _Transaction:
    """One call of a transaction that has a place in a run's log."""

    def __init__(
        self,
        run: Run,
        definition: TransactionDefinition,
        number: int,
        digest: ArgumentDigest,
        body: Callable[[], Any],
    ) -> None:
        self.place = transaction_records(run, number)
        self.name = definition.name
        self.digest = digest
        self._run = run
        self.definition = definition
        self._number = number
        self._body = body
        self._may_be_recorded = run.workflow.attempts > 1
        self._attempts = 0

    async def with_patience(self, once: Callable[[], Awaitable[StepRecord]]) -> StepRecord:
        """Do it, again while the database is unavailable; return the record at the place."""

        async def attempt() -> StepRecord:
            try:
                return await once()
            except SlotTakenError as error:
                found = await self.place.find()
                if found is not None:
                    return found
                raise OwnedElsewhereError(self._run.workflow_id) from error
            except StorageUnavailableError:
                # Its commit may have been done all the same.
                self._may_be_recorded = True
                raise

        run = self._run
        return await retry_while_unavailable(
            attempt, run.services.storage_retry_seconds, lambda: named(run, self.definition.name)
        )

    async def commit(self) -> StepRecord:
        """Run the body and commit its rows with its record."""
        run, definition = self._run, self.definition
        if self._may_be_recorded:
            found = await self.place.find_early()
            if found is not None:
                return found
        self._attempts += 1
        if self._attempts > 1:
            # Others do not wait for the body: its result gets another time.
            forget_result(run, self._number)
            run.services.telemetry.observer.attempt_begins(self._attempts)
        if not definition.is_async:
            return await definition.thread.run(self._commit_in_thread)
        async with self.place.open(definition.isolation_level) as transaction:
            frame = Frame(run.services, run, definition.name, self._number, transaction.session)
            with entered(frame):
                value = await self._body()
            step = self._success(value)
            await transaction.record(step)
        return step

    def _commit_in_thread(self) -> StepRecord:
        run, definition = self._run, self.definition
        with self.place.open_blocking(definition.isolation_level) as transaction:
            session = transaction.session
            with entered(
                Frame(run.services, run, definition.name, self._number, session, in_thread=True)
            ):
                value = self._body()
            step = self._success(value)
            transaction.record(step)
        return step

    def _success(self, value: object) -> StepRecord:
        # Invariant: before its rows commit. What is recorded with them can be read back.
        output, _ = self.definition.values.write_result(value)
        # A body that was interrupted and returns all the same is rolled back.
        self._run.refuse_if_stopped()
        return self._record(output=output, error=None)

    async def fail(self, error: Exception) -> StepRecord:
        """Make a failure the only outcome that there can be."""
        encoded = encode_error(self._run.services.registry.values, error)
        step = self._record(output=None, error=encoded)
        await self.place.commit_failure(step)
        return step

    def _record(self, *, output: bytes | None, error: bytes | None) -> StepRecord:
        step = self._run.step_record(
            self._number, self.name, self.digest.value, output=output, error=error
        )
        # What ends while this is committed comes after it.
        expect_result_at(self._run, self._number, step.finished_at_us)
        return step


def _other_session(definition: TransactionDefinition, frame: Frame) -> DurableUsageError:
    return DurableUsageError(
        f"transaction {definition.name!r} cannot join {frame.step_name!r}: one of them is async "
        "and the other is not, so they cannot share a session"
    )
