"""A step: runs until it succeeds or its retries are used up, and is recorded."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.process.log_text import error_text
from asgi_durable.engine.process.recorded_errors import (
    decoded_failure,
    encode_error,
    infrastructure_error_in,
)
from asgi_durable.engine.runs.frame import Frame, begin_attempt, current_frame
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.steps.recorded_result import recorded_result, warn_of_lost_effects
from asgi_durable.errors import (
    DurableUsageError,
    EncodeError,
    StepRetriesExhaustedError,
    StepTimeoutError,
)
from asgi_durable.retry import RetryPolicy
from asgi_durable.storage.records import NO_OUTPUT

__all__ = ["run_step"]

logger = logging.getLogger(__name__)

# If a step fails more often, the errors in the middle are dropped.
MAX_KEPT_ERRORS = 100
# The next attempt would raise the same error.
_NOT_RETRIED = (DurableUsageError, EncodeError)


async def run_step(
    run: Run,
    definition: StepDefinition,
    number: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return a step's recorded result, or run its body and record the result.

    The first execution, too, gets the result as the codec reads it back.
    """
    definition.prepare()
    name, log = definition.name, run.log
    digest = run.services.registry.digest(definition, args, kwargs)
    recorded = log.step_at(number, name, digest)
    if recorded is not None:
        warn_of_lost_effects(run, definition)
        return await recorded_result(run, definition, recorded)

    if definition.at_most_once:
        run.submit_step(log.new_record(number, name, digest.value))
    # Invariant: the earlier calls are durable before this body has its side effects, and so is
    # the beginning of a step that no other execution may begin. A body without effects need not
    # wait: after a crash it runs again, and nobody has seen its first result.
    if definition.has_effects or run.writes.has_many:
        await run.writes.wait_durable()
    else:
        run.stopping.raise_if_stopped()
    with run.services.telemetry.observer.step(run.workflow, name, number, kind="step"):
        failure: Exception | None = None
        error: bytes | None = None
        try:
            output, value = await _run_body(run, definition, number, args, kwargs)
        except Exception as raised:
            error = _encoded_failure(run, raised)
            failure, value = raised, None
            output = NO_OUTPUT if definition.at_most_once else None
        step = log.new_record(number, name, digest.value, output=output, error=error)
        run.submit_step(step, has_begun=definition.at_most_once)
        await log.finish_in_turn(number, step.finished_at_us)
        if failure is None or error is None:
            return value
        # The error as a replay will see it, with the traceback of its first appearance.
        raise decoded_failure(run.services.registry.values, error, failure)


async def _run_body(
    run: Run,
    definition: StepDefinition,
    number: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[bytes | None, Any]:
    """Attempt a step until its body returns, or raises an error that is not retried.

    Returns:
        The result, encoded, and as the codec reads it back.
    """
    errors: list[Exception] = []
    token = current_frame.set(Frame(run.services, run, definition.name, number))
    try:
        for attempt in itertools.count(1):
            try:
                value = await _attempt(definition, args, kwargs)
                break
            # CancelledError and KeyboardInterrupt are no `Exception`, and are never retried.
            except Exception as error:
                errors.append(error)
            # Not inside `except`: the next attempt would run while this error is being handled.
            await _wait_for_next_attempt(run, definition, attempt, errors)
        return definition.values.write_result(value)
    finally:
        current_frame.reset(token)


async def _wait_for_next_attempt(
    run: Run, definition: StepDefinition, failed_attempts: int, errors: list[Exception]
) -> None:
    """Wait until a step that failed is attempted again.

    Args:
        run: The step's run.
        definition: The step.
        failed_attempts: How many attempts failed.
        errors: Their errors.

    Raises:
        Exception: The last error, if it is not retried.
        StepRetriesExhaustedError: There are no attempts left.
    """
    policy, error = definition.retry, errors[-1]
    if len(errors) > MAX_KEPT_ERRORS:
        del errors[MAX_KEPT_ERRORS // 2]
    if policy is None or policy.max_attempts == 1 or not _may_retry(policy, error):
        raise error
    if failed_attempts >= policy.max_attempts:
        raise StepRetriesExhaustedError(definition.name, errors, failed_attempts) from error
    observer = run.services.telemetry.observer
    observer.step_is_tried_again(definition.name, error)
    delay = policy.delay_seconds(failed_attempts)
    logger.warning(
        "Workflow %s (%s): attempt %d of %d of step %r failed, the next one is in %.1f s: %s",
        run.workflow_id,
        run.workflow.name,
        failed_attempts,
        policy.max_attempts,
        definition.name,
        delay,
        error_text(error),
    )
    await asyncio.sleep(delay)
    begin_attempt()
    observer.attempt_begins(failed_attempts + 1)


def _may_retry(policy: RetryPolicy, error: Exception) -> bool:
    if infrastructure_error_in(error) is not None or isinstance(error, _NOT_RETRIED):
        return False
    return policy.wants_retry_of(error)


def _encoded_failure(run: Run, error: Exception) -> bytes:
    """Return the error of a step's body as bytes.

    Raises:
        RunStopped: It is not the step's failure but the storage's, and no outcome.
    """
    outage = infrastructure_error_in(error)
    if outage is not None:
        raise run.stop(outage, retry_here=True) from error
    return encode_error(run.services.registry.values, error)


def _attempt(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Awaitable[Any]:
    # No coroutine around the function's own, unless there is a time limit.
    if definition.timeout_seconds is None:
        return definition.function(*args, **kwargs)
    return _attempt_in_time(definition, definition.timeout_seconds, args, kwargs)


async def _attempt_in_time(
    definition: StepDefinition,
    timeout_seconds: float,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            return await definition.function(*args, **kwargs)
    except TimeoutError:
        if limit.expired():
            raise StepTimeoutError(definition.name, timeout_seconds) from None
        raise
