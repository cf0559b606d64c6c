"""Errors that are recorded, and read again."""

from __future__ import annotations

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

__all__ = [
    "decoded_failure",
    "encode_error",
    "infrastructure_error_in",
    "read_error",
]


def encode_error(values: Values, error: Exception) -> bytes:
    """Return an error as bytes, whatever it holds.

    An error that is too large loses parts of its record: first attributes, in the end most of
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
    """Return a text without lone surrogates, which a codec need not accept."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _encoded_within(room: Room, values: Values, error: Exception) -> bytes | None:
    try:
        with within(room):
            return values.write_error(error)
    except Exception:  # a smaller record may succeed, or the record of a stand-in
        return None


def decoded_failure(values: Values, encoded: bytes, failure: Exception) -> Exception:
    """Return an error as a replay will see it, with the traceback of its first appearance."""
    error = values.read_error(encoded)
    forget_traceback(error)
    # Not through the class's own method: nothing of a recorded error runs its code.
    return Exception.with_traceback(error, failure.__traceback__)


def read_error(values: Values, what: str, data: bytes) -> Exception:
    """Return the recorded error of a call.

    Args:
        values: Reads recorded values.
        what: The function that was called, for messages.
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
    """Return the storage error or interruption that an error is, or holds as a group.

    Invariant: such an error is never recorded as an outcome.
    """
    if isinstance(error, (StorageError, WorkflowInterruptedError)):
        return error
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        found = infrastructure_error_in(member)
        if found is not None:
            return found
    return None
