"""Outcomes on their way into the log and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgi_durable.codec.exceptions.codec import ROOMS, Room, forget_traceback, within
from asgi_durable.codec.exceptions.stored_responses import pack_answer, stand_in
from asgi_durable.codec.exceptions.traceback_text import message_of
from asgi_durable.codec.values import Values
from asgi_durable.errors import (
    DecodeError,
    DurableError,
    RemoteError,
    StorageError,
    WorkflowInterruptedError,
)

if TYPE_CHECKING:
    from asgi_durable.engine.process.definitions import Definition
    from asgi_durable.engine.runs.run import Run

__all__ = [
    "decode_recorded",
    "decoded_failure",
    "encode_error",
    "infrastructure_error_in",
    "named",
    "read_error",
]


def encode_error(values: Values, error: Exception) -> bytes:
    """Return an error as bytes, whatever it holds.

    One that is too large is recorded without some of it: first attributes, in the end most of
    its message.
    """
    for room in ROOMS:
        encoded = _encoded_within(room, values, error)
        if encoded is not None:
            return encoded
    with within(ROOMS[-1]):
        return values.write_error(_stand_in_of(error), has_limit=False)


def _stand_in_of(error: Exception) -> RemoteError:
    if isinstance(error, RemoteError):
        return error
    name = f"{type(error).__module__}:{type(error).__qualname__}"
    answer = pack_answer(error) if isinstance(error, DurableError) else {}
    kept = {key: _whole(item) if type(item) is str else item for key, item in answer.items()}
    return stand_in(name, _whole(message_of(error)), kept)


def _whole(text: str) -> str:
    """Return a text without halves of characters, which no codec has to take."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _encoded_within(room: Room, values: Values, error: Exception) -> bytes | None:
    try:
        with within(room):
            return values.write_error(error)
    except Exception:  # a smaller record may do, or one of a stand-in
        return None


def decoded_failure(run: Run, encoded: bytes, failure: Exception) -> Exception:
    """Return an error as a replay will see it, with the traceback of its first appearance."""
    error = run.services.registry.values.read_error(encoded)
    forget_traceback(error)
    # Past the class's own, as everything else of a recorded error.
    return Exception.with_traceback(error, failure.__traceback__)


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


def read_error(values: Values, what: str, data: bytes) -> Exception:
    """Return the error that a call has ended with.

    Args:
        values: The engine's.
        what: What was called, for messages.
        data: The error, encoded.

    Raises:
        DecodeError: It cannot be read.
    """
    try:
        return values.read_error(data)
    except DecodeError as damage:
        msg = f"the recorded error of {what} cannot be read ({damage})"
        raise type(damage)(msg) from damage


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
