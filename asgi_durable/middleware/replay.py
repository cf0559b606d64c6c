"""Answering a finished request again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asgi_durable.errors import ResponseNotKeptError
from asgi_durable.middleware.asgi import Headers, Send, header_values
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable.middleware.response_recording import (
    REPLAYED_HEADER,
    decode_headers,
    with_marks,
)
from asgi_durable.storage.records import ResponseRecord

__all__ = ["send_answer"]

_WITHOUT_BODY = frozenset({204, 304})


async def send_answer(
    send: Send,
    response: ResponseRecord,
    marks: Headers,
    *,
    links: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send a finished request's answer again, byte for byte.

    Args:
        send: Where it goes.
        response: The answer.
        marks: Put on it.
        links: Headers of the problem answer, where the answer was not kept.
    """
    marks = [*marks, (REPLAYED_HEADER, b"true")]
    status, body = response.status_code, response.body
    headers = decode_headers(response.headers)
    if body is None:
        error = ResponseNotKeptError("the request was carried out; its answer was not kept")
        locations = header_values(headers, b"location")
        members: dict[str, Any] = {
            "original_status": status,
            "location": locations[0].decode("latin-1") if locations else None,
        }
        status, headers, body = problem_response(error, members=members)
        headers += links
    elif status not in _WITHOUT_BODY:
        headers.append((b"content-length", b"%d" % len(body)))
    await send(
        {"type": "http.response.start", "status": status, "headers": with_marks(headers, marks)}
    )
    await send({"type": "http.response.body", "body": body})
