"""A step: runs until it succeeds or its retries are used up, and is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from asgi_durable.engine.frame import Frame, current_frame
from asgi_durable.engine.registry import StepDefinition
from asgi_durable.engine.run import Run
from asgi_durable.errors import (
    EncodeError,
    StepRetriesExhaustedError,
    StepTimeoutError,
    StorageError,
    WorkflowInterruptedError,
)
from asgi_durable.retry import RetryPolicy
from asgi_durable.storage.records import StepRecord

__all__ = ["error_to_raise", "is_infrastructure_error", "replayed_result", "run_step"]


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
    registry = run.services.registry
    digest = registry.digest(definition, args, kwargs)
    recorded = run.recorded_step(number, definition.name, digest)
    if recorded is not None:
        return replayed_result(run, recorded)

    # Invariant: what came before is durable before this body has its side effects.
    await run.settle()
    token = current_frame.set(Frame(run.services, run, definition.name, number))
    try:
        value = await _attempt_until_done(definition, args, kwargs)
        output = registry.codec.encode(value)
    except Exception as error:
        if is_infrastructure_error(error):
            raise run.stop(error, goes_on=True) from error
        failure = error
    else:
        run.record_step(number, definition.name, digest, output=output, error=None)
        return registry.codec.decode(output)
    finally:
        current_frame.reset(token)
    encoded = registry.codec.encode(failure)
    run.record_step(number, definition.name, digest, output=None, error=encoded)
    raise error_to_raise(registry.codec.decode, encoded, failure)


def replayed_result(run: Run, recorded: StepRecord) -> Any:
    """Return what a record holds, or raise the error that it holds."""
    decode = run.services.registry.codec.decode
    if recorded.error is not None:
        raise decode(recorded.error)
    return decode(recorded.output or b"null")


def error_to_raise(
    decode: Callable[[bytes], Any], encoded: bytes, original: Exception
) -> Exception:
    """Return the error as a replay will see it, with the traceback of its first appearance."""
    error: Exception = decode(encoded)
    return error.with_traceback(original.__traceback__)


def is_infrastructure_error(error: Exception) -> bool:
    """Tell whether an error says nothing about the application's work.

    Invariant: such an error is never recorded as an outcome.
    """
    return isinstance(error, (StorageError, WorkflowInterruptedError))


async def _attempt_until_done(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    errors: list[Exception] = []
    policy = definition.retry
    while True:
        try:
            return await _attempt(definition, args, kwargs)
        # CancelledError and KeyboardInterrupt are no `Exception`: neither is tried again.
        except Exception as error:
            errors.append(error)
            if policy is None or policy.max_attempts == 1 or not _may_retry(policy, error):
                raise
            if len(errors) >= policy.max_attempts:
                raise StepRetriesExhaustedError(definition.name, errors) from error
        await asyncio.sleep(policy.delay_seconds(len(errors)))


def _may_retry(policy: RetryPolicy, error: Exception) -> bool:
    pointless = is_infrastructure_error(error) or isinstance(error, EncodeError)
    return not pointless and policy.wants_retry_of(error)


async def _attempt(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    timeout_seconds = definition.timeout_seconds
    if timeout_seconds is None:
        return await definition.function(*args, **kwargs)
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            return await definition.function(*args, **kwargs)
    except TimeoutError:
        if limit.expired():
            raise StepTimeoutError(definition.name, timeout_seconds) from None
        raise
