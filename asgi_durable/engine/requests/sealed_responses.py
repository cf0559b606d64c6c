"""Answers to requests as they are recorded, and as they were."""

from __future__ import annotations

from dataclasses import replace

from asgi_durable.codec.sealing.sealer import BODY, HEADERS, Sealer
from asgi_durable.errors import DecodeError, EncryptionKeyMissingError
from asgi_durable.request_errors import ResponseDamagedError
from asgi_durable.storage.records import ResponseRecord

__all__ = ["opened_response", "sealed_response"]


def sealed_response(
    sealer: Sealer, answer: ResponseRecord, *, may_compress: bool = True
) -> ResponseRecord:
    """Return an answer as it is recorded.

    Args:
        sealer: Seals it.
        answer: The answer.
        may_compress: False if its body is compressed already.
    """
    headers, body = sealer.seal_bytes(answer.headers, HEADERS), answer.body
    if body is not None:
        body = sealer.seal_bytes(body, BODY, may_compress=may_compress)
    return _with(answer, headers, body)


def opened_response(sealer: Sealer, answer: ResponseRecord) -> ResponseRecord:
    """Return a recorded answer as it was given.

    Raises:
        EncryptionKeyMissingError: It is encrypted with a key that is not here.
        ResponseDamagedError: It is damaged.
    """
    try:
        headers, body = sealer.open_bytes(answer.headers, HEADERS), answer.body
        if body is not None:
            body = sealer.open_bytes(body, BODY)
    except EncryptionKeyMissingError as error:
        msg = f"the recorded answer of request {answer.workflow_id} cannot be read: {error}"
        raise EncryptionKeyMissingError(msg) from None
    except DecodeError as error:
        raise ResponseDamagedError.of(error, answer.workflow_id) from error
    return _with(answer, headers, body)


def _with(answer: ResponseRecord, headers: bytes, body: bytes | None) -> ResponseRecord:
    if headers is answer.headers and body is answer.body:
        return answer
    return replace(answer, headers=headers, body=body)
