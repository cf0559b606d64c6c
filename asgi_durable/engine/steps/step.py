"""A step: runs until it succeeds or its retries are used up, and is recorded."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.process.log_text import error_text
from asgi_durable.engine.replay.recorded_calls import recorded_step, replayed, tell_of_replay
from asgi_durable.engine.replay.result_order import in_turn
from asgi_durable.engine.replay.results import (
    decoded_failure,
    encode_error,
    infrastructure_error_in,
)
from asgi_durable.engine.runs.frame import Frame, begin_attempt, current_frame
from asgi_durable.engine.runs.run import Run
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

# Of a step that fails more often, the errors in the middle are not kept.
MAX_KEPT_ERRORS = 100
# The next attempt would raise the same.
_IN_VAIN = (DurableUsageError, EncodeError)


async def run_step(
    run: Run,
    definition: StepDefinition,
    number: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return a step's recorded result, or run it and record it.

    The result is what the codec gives back, on the first execution as well.
    """
    definition.prepare()
    name = definition.name
    digest = run.services.registry.digest(definition, args, kwargs)
    recorded = recorded_step(run, number, name, digest)
    if recorded is not None:
        tell_of_replay(run, definition)
        return await replayed(run, definition, recorded)

    if definition.at_most_once:
        run.submit_step(run.step_record(number, name, digest.value, output=None, error=None))
    # Invariant: what came before is durable before this body has its side effects; and that it
    # has begun as well, if no other execution may begin it.
    await run.settle()
    observer = run.services.telemetry.observer
    with observer.step(run.workflow, name, number, kind="step"):
        token = current_frame.set(Frame(run.services, run, name, number))
        try:
            first: Exception | None = None
            value: Any = None
            try:
                value = await _attempt(definition, args, kwargs)
            # CancelledError and KeyboardInterrupt are no `Exception`: neither is tried again.
            except Exception as error:
                first = error
            # Not inside `except`: the next attempt would run while this error is being handled.
            if first is not None:
                value = await _try_again(run, definition, args, kwargs, first)
            output, value = definition.values.write_result(value)
        except Exception as error:
            outage = infrastructure_error_in(error)
            if outage is not None:
                raise run.stop(outage, retry_here=True) from error
            failure = error
        else:
            step = run.step_record(number, name, digest.value, output=output, error=None)
            run.submit_step(step, has_begun=definition.at_most_once)
            await in_turn(run, number, step.finished_at_us)
            run.note_settled()
            return value
        finally:
            current_frame.reset(token)
        raise await _record_failure(run, definition, number, digest.value, failure)


async def _record_failure(
    run: Run, definition: StepDefinition, number: int, digest: bytes, failure: Exception
) -> Exception:
    """Submit the record of a step that failed; return the error to raise.

    It is the error as a replay will see it, with the traceback of its first appearance.
    """
    encoded = encode_error(run.services.registry.values, failure)
    output = NO_OUTPUT if definition.at_most_once else None
    step = run.step_record(number, definition.name, digest, output=output, error=encoded)
    run.submit_step(step, has_begun=definition.at_most_once)
    await in_turn(run, number, step.finished_at_us)
    run.note_settled()
    return decoded_failure(run, encoded, failure)


async def _try_again(
    run: Run,
    definition: StepDefinition,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
) -> Any:
    """Attempt the step after its first error, until it is done or may not be tried again."""
    errors: list[Exception] = []
    policy = definition.retry
    for attempt in itertools.count(1):
        errors.append(error)
        if len(errors) > MAX_KEPT_ERRORS:
            del errors[MAX_KEPT_ERRORS // 2]
        if policy is None or policy.max_attempts == 1 or not _may_retry(policy, error):
            raise error
        if attempt >= policy.max_attempts:
            raise StepRetriesExhaustedError(definition.name, errors, attempt) from error
        run.services.telemetry.observer.step_is_tried_again(definition.name, error)
        delay = policy.delay_seconds(attempt)
        logger.warning(
            "Workflow %s (%s): attempt %d of %d of step %r failed, the next one is in %.1f s: %s",
            run.workflow_id,
            run.workflow.name,
            attempt,
            policy.max_attempts,
            definition.name,
            delay,
            error_text(error),
        )
        await asyncio.sleep(delay)
        begin_attempt()
        run.services.telemetry.observer.attempt_begins(attempt + 1)
        try:
            return await _attempt(definition, args, kwargs)
        except Exception as next_error:
            error = next_error
    return None  # not reached: the attempts are counted without an end


def _may_retry(policy: RetryPolicy, error: Exception) -> bool:
    if infrastructure_error_in(error) is not None or isinstance(error, _IN_VAIN):
        return False
    return policy.wants_retry_of(error)


def _attempt(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Awaitable[Any]:
    # No coroutine around the function's own, unless it has something to do.
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
