"""Outcomes on their way into the log and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgi_durable.codec.exceptions import forget_traceback
from asgi_durable.codec.recorded_answers import pack_answer, stand_in
from asgi_durable.codec.values import Values
from asgi_durable.errors import (
    DecodeError,
    DurableError,
    EncodeError,
    StorageError,
    WorkflowInterruptedError,
)

if TYPE_CHECKING:
    from asgi_durable.engine.definitions import Definition
    from asgi_durable.engine.run import Run

__all__ = [
    "decode_recorded",
    "decoded_failure",
    "encode_error",
    "infrastructure_error_in",
    "named",
    "read_error",
]

MAX_MESSAGE_CHARACTERS = 10_000


def encode_error(values: Values, error: Exception) -> bytes:
    """Return an error as bytes, whatever it holds."""
    try:
        return values.write(error)[0]
    except EncodeError:
        kind = type(error)
        name = f"{kind.__module__}:{kind.__qualname__}"
        answer = pack_answer(error) if isinstance(error, DurableError) else None
        return values.write(stand_in(name, _text(error)[:MAX_MESSAGE_CHARACTERS], answer))[0]


def decoded_failure(run: Run, encoded: bytes, failure: Exception) -> Exception:
    """Return an error as a replay will see it, with the traceback of its first appearance."""
    error: Exception = run.services.registry.values.read(encoded)
    forget_traceback(error)
    return error.with_traceback(failure.__traceback__)


def decode_recorded(
    run: Run, definition: Definition, output: bytes | None, error: bytes | None
) -> Any:
    """Return what a call of a function has left in a run's log, or raise the error that it did.

    Invariant: a record that this process cannot read is no outcome of the workflow's. The
    run stops, and code that knows the record's classes goes on with it.
    """
    try:
        if error is None:
            return definition.values.read_result(output)
        what = f"{definition.kind} {definition.name!r}"
        failure = read_error(run.services.registry.values, what, error)
    except DecodeError as damage:
        raise run.stop(damage) from damage
    raise failure


def read_error(values: Values, what: str, data: bytes) -> BaseException:
    """Return the error that a call has ended with.

    Args:
        values: The engine's.
        what: What was called, for messages.
        data: The error, encoded.

    Raises:
        DecodeError: It cannot be read.
    """
    try:
        error = values.read(data)
    except DecodeError as damage:
        msg = f"the recorded error of {what} cannot be read ({damage})"
        raise DecodeError(msg) from damage
    if not isinstance(error, BaseException):
        msg = f"the recorded error of {what} is none"
        raise DecodeError(msg)
    return error


def infrastructure_error_in(error: BaseException) -> Exception | None:
    """Return the error, or the one in a group, that says nothing about the application's work.

    Invariant: such an error is never recorded as an outcome.
    """
    if isinstance(error, (StorageError, WorkflowInterruptedError)):
        return error
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        found = infrastructure_error_in(member)
        if found is not None:
            return found
    return None


def named(run: Run, transaction: str) -> str:
    """Name a transaction of a run for the log."""
    return f"The transaction {transaction!r} of workflow {run.workflow_id} ({run.workflow.name})"


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # __str__ is the application's code
        return ""
