"""A transaction: its rows and its record commit together, exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from asgi_durable.engine.frame import Frame, current_frame
from asgi_durable.engine.registry import TransactionDefinition
from asgi_durable.engine.run import Run, Services
from asgi_durable.engine.values import (
    decode_recorded,
    infrastructure_error_in,
    record_failure,
)
from asgi_durable.errors import StorageUnavailableError, WorkflowInterruptedError
from asgi_durable.storage.protocol import SlotTakenError, StepSlot
from asgi_durable.storage.records import StepRecord

__all__ = ["run_plain_transaction", "run_transaction"]

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0


async def run_plain_transaction(
    services: Services,
    frame: Frame | None,
    definition: TransactionDefinition,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run a transaction that no step log has a place for; inside another it joins that one."""
    if frame is not None and frame.session is not None:
        return await definition.function(*args, **kwargs)
    run = frame.run if frame is not None else None
    number = frame.step_number if frame is not None else None
    async with services.storage.transaction(None) as transaction:
        inside = Frame(services, run, definition.name, number, transaction.session)
        token = current_frame.set(inside)
        try:
            return await definition.function(*args, **kwargs)
        finally:
            current_frame.reset(token)


async def run_transaction(
    run: Run,
    definition: TransactionDefinition,
    number: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return a transaction's recorded result, or run it and commit both together."""
    definition.prepare()
    registry = run.services.registry
    digest = registry.digest(definition, args, kwargs)
    recorded = run.recorded_step(number, definition.name, digest)
    if recorded is not None:
        return decode_recorded(run, recorded.output, recorded.error)

    # Invariant: what came before is durable before this body has its side effects; and
    # nothing of this run waits in the committer while the transaction holds the write lock.
    await run.settle()
    try:
        step = await _commit_with_patience(run, definition, (number, digest), args, kwargs)
    except Exception as error:
        outage = infrastructure_error_in(error)
        if outage is not None:
            raise run.stop(outage, goes_on=isinstance(outage, StorageUnavailableError)) from error
        failure = error
    else:
        return decode_recorded(run, step.output, step.error)
    # Its rows are rolled back; the error is recorded once, by itself.
    raise record_failure(run, number, definition.name, digest, failure)


async def _commit_with_patience(
    run: Run,
    definition: TransactionDefinition,
    place: tuple[int, bytes],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> StepRecord:
    """Run and commit, again while the database is unavailable; return the record."""
    give_up_at = time.monotonic() + run.services.patience_seconds
    delay = FIRST_RETRY_SECONDS
    while True:
        try:
            return await _commit_once(run, definition, place, args, kwargs)
        except SlotTakenError as error:
            return await _own_record(run, place[0], error)
        except StorageUnavailableError:
            if time.monotonic() + delay > give_up_at:
                raise
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_RETRY_SECONDS)


async def _commit_once(
    run: Run,
    definition: TransactionDefinition,
    place: tuple[int, bytes],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> StepRecord:
    number, digest = place
    slot = StepSlot(
        workflow_id=run.workflow_id, step_number=number, executor_id=run.services.executor_id
    )
    async with run.services.storage.transaction(slot) as transaction:
        frame = Frame(run.services, run, definition.name, number, transaction.session)
        token = current_frame.set(frame)
        try:
            value = await definition.function(*args, **kwargs)
        finally:
            current_frame.reset(token)
        output = run.services.registry.codec.encode(value)
        # A body that was interrupted and returns all the same is rolled back.
        run.refuse_if_stopped()
        step = run.step_record(number, definition.name, digest, output=output, error=None)
        await transaction.record(step)
    return step


async def _own_record(run: Run, number: int, error: SlotTakenError) -> StepRecord:
    """Return the record that a commit of this run left, whose answer got lost.

    Raises:
        WorkflowInterruptedError: The record, or the workflow, is somebody else's.
    """
    stored = await run.services.storage.load_runs([run.workflow_id])
    for found in stored:
        if found.workflow.executor_id == run.services.executor_id:
            for step in found.steps:
                if step.step_number == number:
                    return step
    raise WorkflowInterruptedError(run.workflow_id, "another executor owns it") from error
