"""A transaction: its rows and its record commit together, exactly once."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.process.definitions import TransactionDefinition
from asgi_durable.engine.process.recorded_errors import (
    decoded_failure,
    encode_error,
    infrastructure_error_in,
)
from asgi_durable.engine.process.storage_retry import retry_while_given_up, retry_while_unavailable
from asgi_durable.engine.runs.frame import Frame, entered
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.steps.recorded_result import recorded_result, warn_of_lost_effects
from asgi_durable.engine.steps.transaction_records import log_name, transaction_records
from asgi_durable.engine.stopping import OwnedElsewhereError
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
    """Run a transaction outside of the step log; inside another transaction it joins that one."""
    require_asyncio()
    if frame is not None and frame.session is not None:
        if definition.is_async != hasattr(frame.session, "sync_session"):
            raise _other_session(definition, frame)
        return await definition.function(*args, **kwargs)
    # Its outgoing requests belong to the surrounding step.
    outer = frame or Frame(services, None)
    inner = replace(outer, services=services, step_name=definition.name)
    database, level = services.application or services.storage, definition.isolation_level

    def in_thread() -> Any:
        with (
            database.blocking_transaction(None, isolation_level=level) as transaction,
            entered(replace(inner, session=transaction.session, in_thread=True)),
        ):
            return definition.call_decorated(*args, **kwargs)

    async def once() -> Any:
        if not definition.is_async:
            return await definition.thread.run(in_thread)
        async with database.transaction(None, isolation_level=level) as transaction:
            with entered(replace(inner, session=transaction.session, in_thread=False)):
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
    recorded = run.log.step_at(number, definition.name, digest)
    if recorded is not None:
        warn_of_lost_effects(run, definition)
        return await recorded_result(run, definition, recorded)

    # Invariant: the earlier calls are durable before this body has its side effects, and no
    # write of this run waits in the committer while the transaction holds the write lock.
    await run.writes.wait_durable()
    function = definition.function if definition.is_async else definition.call_decorated
    body = functools.partial(function, *args, **kwargs)
    transaction = _Transaction(run, definition, number, digest, body)
    observer = run.services.telemetry.observer
    with observer.step(run.workflow, definition.name, number, kind="transaction"):
        try:
            return await _commit(run, transaction)
        except BaseException:
            run.log.forget_result(number)
            raise


async def _commit(run: Run, transaction: _Transaction) -> Any:
    """Commit a transaction, or its failure; return its result, or raise its error."""
    try:
        step = await transaction.retry(transaction.commit)
    except Exception as error:
        step = await _failed(run, transaction, error)
        if step.error is not None:
            transaction.records.add_to_log(step)
            await run.log.finish_in_turn(step.step_number, step.finished_at_us)
            raise decoded_failure(run.services.registry.values, step.error, error) from None
    run.log.check_step(step, transaction.name, transaction.digest)
    transaction.records.add_to_log(step)
    return await recorded_result(run, transaction.definition, step)


async def _failed(run: Run, transaction: _Transaction, error: Exception) -> StepRecord:
    """Return the record of a failure, or of a success that was recorded before it.

    The transaction's rows are rolled back; the error is recorded once, by itself.

    Raises:
        RunStopped: The database failed, not the transaction.
    """
    try:
        if infrastructure_error_in(error) is not None:
            raise error
        return await transaction.retry(lambda: transaction.fail(error))
    except Exception as failure:
        outage = infrastructure_error_in(failure)
        if outage is None:
            raise
        retry_here = isinstance(outage, StorageUnavailableError)
        raise run.stop(outage, retry_here=retry_here) from failure


class _Transaction:
    """One call of a transaction that has a number in a run's log."""

    def __init__(
        self,
        run: Run,
        definition: TransactionDefinition,
        number: int,
        digest: ArgumentDigest,
        body: Callable[[], Any],
    ) -> None:
        self.records = transaction_records(run, number)
        self.name = definition.name
        self.digest = digest
        self._run = run
        self.definition = definition
        self._number = number
        self._body = body
        self._may_be_recorded = run.workflow.attempts > 1
        self._attempts = 0

    async def retry(self, once: Callable[[], Awaitable[StepRecord]]) -> StepRecord:
        """Call *once*, again while the database is unavailable; return the recorded step."""

        async def attempt() -> StepRecord:
            try:
                return await once()
            except SlotTakenError as error:
                found = await self.records.find()
                if found is not None:
                    return found
                raise OwnedElsewhereError(self._run.workflow_id) from error
            except StorageUnavailableError:
                # Its commit may have succeeded all the same.
                self._may_be_recorded = True
                raise

        run = self._run
        return await retry_while_unavailable(
            attempt, run.services.storage_retry_seconds, lambda: log_name(run, self.definition.name)
        )

    async def commit(self) -> StepRecord:
        """Run the body and commit its rows with its record."""
        run, definition = self._run, self.definition
        if self._may_be_recorded:
            found = await self.records.find_early()
            if found is not None:
                return found
        self._attempts += 1
        if self._attempts > 1:
            # Other results do not wait for the body: its result gets another time.
            run.log.forget_result(self._number)
            run.services.telemetry.observer.attempt_begins(self._attempts)
        if not definition.is_async:
            return await definition.thread.run(self._commit_in_thread)
        async with self.records.open(definition.isolation_level) as transaction:
            frame = Frame(run.services, run, definition.name, self._number, transaction.session)
            with entered(frame):
                value = await self._body()
            step = self._success(value)
            await transaction.record(step)
        return step

    def _commit_in_thread(self) -> StepRecord:
        run, definition = self._run, self.definition
        with self.records.open_blocking(definition.isolation_level) as transaction:
            session = transaction.session
            with entered(
                Frame(run.services, run, definition.name, self._number, session, in_thread=True)
            ):
                value = self._body()
            step = self._success(value)
            transaction.record(step)
        return step

    def _success(self, value: object) -> StepRecord:
        # Invariant: before its rows commit, so that what is recorded with them can be read back.
        output, _ = self.definition.values.write_result(value)
        # A body that was interrupted and returns all the same is rolled back.
        self._run.stopping.raise_if_stopped()
        return self._record(output=output, error=None)

    async def fail(self, error: Exception) -> StepRecord:
        """Make a failure the only possible outcome, and return its record."""
        encoded = encode_error(self._run.services.registry.values, error)
        step = self._record(output=None, error=encoded)
        await self.records.commit_failure(step)
        return step

    def _record(self, *, output: bytes | None, error: bytes | None) -> StepRecord:
        log = self._run.log
        step = log.new_record(
            self._number, self.name, self.digest.value, output=output, error=error
        )
        # Calls that end while this is committed come after it.
        log.expect_result(self._number, step.finished_at_us)
        return step


def _other_session(definition: TransactionDefinition, frame: Frame) -> DurableUsageError:
    return DurableUsageError(
        f"transaction {definition.name!r} cannot join {frame.step_name!r}: one of them is async "
        "and the other is not, so they cannot share a session"
    )
