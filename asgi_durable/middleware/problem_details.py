"""Errors as ``application/problem+json`` answers (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from asgi_durable.context import current_request
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import ASGIApp, Headers, Message, Receive, Scope, Send

__all__ = ["ProblemDetailsMiddleware", "problem_response", "send_problem"]

logger = logging.getLogger(__name__)

CONTENT_TYPE = b"application/problem+json"
TYPE_PREFIX = "urn:asgi-durable:problem:"
RETRY_AFTER_SECONDS = 1


class ProblemDetailsMiddleware:
    """Answer a ``DurableError`` that the app raises; answer any other error with a bare 500.

    An error other than ``DurableError`` is raised again after the answer, so that the server
    and the middlewares around this one still see it.

    Args:
        app: The ASGI app to wrap.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except DurableError as error:
            if started:
                raise
            await send_problem(send, error)
        except Exception:
            if not started:
                await send_problem(send, DurableError("Internal server error"))
            raise


async def send_problem(send: Send, error: DurableError, *, headers: Headers | None = None) -> None:
    """Answer a request with an error."""
    status, own_headers, body = problem_response(error)
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [*own_headers, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def problem_response(
    error: DurableError, *, members: Mapping[str, Any] | None = None
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the answer to an error.

    Never in it: SQL, paths, arguments, or other users' data. Those go to the log.

    Args:
        error: What is answered.
        members: More members of the problem object.
    """
    if error.status_code >= 500:
        logger.error("%s: %s", type(error).__name__, error, exc_info=error)
    request = current_request.get()
    problem: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code.lower().replace("_", "-"),
        "title": error.title or _phrase(error.status_code),
        "status": error.status_code,
        "detail": error.detail,
        "code": error.code,
        "error": type(error).__name__,
        "request_id": request.request_id if request is not None else None,
        "retryable": error.retryable,
        **(members or {}),
    }
    body = json.dumps(problem).encode("ascii")
    headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body))]
    if error.retryable:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    return error.status_code, headers, body


def _phrase(status_code: int) -> str:
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return "Error"
