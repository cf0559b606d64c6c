"""Outcomes on their way into the log and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgi_durable.codec.exceptions import ROOMS, Room, forget_traceback, within
from asgi_durable.codec.json_codec import Codec
from asgi_durable.codec.recorded_answers import pack_answer, stand_in
from asgi_durable.codec.traceback_text import message_of
from asgi_durable.errors import (
    DecodeError,
    DurableError,
    StorageError,
    WorkflowInterruptedError,
)

if TYPE_CHECKING:
    from asgi_durable.engine.run import Run

__all__ = [
    "decode_recorded",
    "decoded_failure",
    "encode_error",
    "infrastructure_error_in",
    "named",
]


def encode_error(codec: Codec, error: Exception) -> bytes:
    """Return an error as bytes, whatever it holds.

    One that is too large is recorded without some of it: first attributes, in the end most of
    its message.
    """
    for room in ROOMS:
        encoded = _encoded_within(room, codec, error)
        if encoded is not None:
            return encoded
    name = f"{type(error).__module__}:{type(error).__qualname__}"
    answer = pack_answer(error) if isinstance(error, DurableError) else None
    with within(ROOMS[-1]):
        return codec.encode(stand_in(name, message_of(error), answer))


def _encoded_within(room: Room, codec: Codec, error: Exception) -> bytes | None:
    try:
        with within(room):
            return codec.encode(error)
    except Exception:  # a smaller record may do, or one of a stand-in
        return None


def decoded_failure(run: Run, encoded: bytes, failure: Exception) -> Exception:
    """Return an error as a replay will see it, with the traceback of its first appearance."""
    error: Exception = run.services.registry.codec.decode(encoded)
    forget_traceback(error)
    # Past the class's own, as everything else of a recorded error.
    return Exception.with_traceback(error, failure.__traceback__)


def decode_recorded(run: Run, output: bytes | None, error: bytes | None) -> Any:
    """Return what a record of a run's log holds, or raise the error that it holds.

    Invariant: a record that this process cannot read is no outcome of the workflow's. The
    run stops, and code that knows the record's classes goes on with it.
    """
    codec = run.services.registry.codec
    try:
        value = codec.decode(output or b"null") if error is None else codec.decode(error)
    except DecodeError as failure:
        raise run.stop(failure) from failure
    if error is not None:
        raise value
    return value


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
