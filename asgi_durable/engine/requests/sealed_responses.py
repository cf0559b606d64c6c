"""Responses as they are recorded, and as they were sent."""

from __future__ import annotations

from dataclasses import replace

from asgi_durable.codec.sealing.sealer import BODY, HEADERS, Sealer
from asgi_durable.errors import DecodeError, EncryptionKeyMissingError
from asgi_durable.request_errors import ResponseDamagedError
from asgi_durable.storage.records import ResponseRecord

__all__ = ["opened_response", "sealed_response"]


def sealed_response(
    sealer: Sealer, response: ResponseRecord, *, may_compress: bool = True
) -> ResponseRecord:
    """Return a response as it is recorded.

    Args:
        sealer: Seals headers and body.
        response: The response.
        may_compress: False if its body is compressed already.
    """
    headers, body = sealer.seal_bytes(response.headers, HEADERS), response.body
    if body is not None:
        body = sealer.seal_bytes(body, BODY, may_compress=may_compress)
    # Usually nothing is encrypted or compressed, and a copy would be for nothing.
    if headers is response.headers and body is response.body:
        return response
    return replace(response, headers=headers, body=body)


def opened_response(sealer: Sealer, response: ResponseRecord) -> ResponseRecord:
    """Return a recorded response as it was sent.

    Raises:
        EncryptionKeyMissingError: It is encrypted with a key that this process does not have.
        ResponseDamagedError: It is damaged.
    """
    try:
        headers, body = sealer.open_bytes(response.headers, HEADERS), response.body
        if body is not None:
            body = sealer.open_bytes(body, BODY)
    except EncryptionKeyMissingError as error:
        msg = f"the recorded response of request {response.workflow_id} cannot be read: {error}"
        raise EncryptionKeyMissingError(msg) from None
    except DecodeError as error:
        raise ResponseDamagedError.of(error, response.workflow_id) from error
    if headers is response.headers and body is response.body:
        return response
    return replace(response, headers=headers, body=body)
