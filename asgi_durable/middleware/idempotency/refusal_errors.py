"""What the clients of requests that are not carried out here and now are told."""

from __future__ import annotations

from asgi_durable.engine.requests.claim_results import (
    Cancelled,
    Expired,
    InProgress,
    KeyReused,
    Refused,
    RetryLater,
    whole_seconds_until,
)
from asgi_durable.errors import DurableError
from asgi_durable.request_errors import (
    KeyExpiredError,
    KeyReusedError,
    RequestCancelledError,
    RequestInProgressError,
    RetryLaterError,
)

__all__ = ["refusal_error"]


def refusal_error(refused: Refused) -> DurableError:
    """Return the error that a refused claim is answered with."""
    match refused:
        case InProgress():
            error = RequestInProgressError(
                "the first request with this key is still running; try again later"
            )
            error.retry_after_seconds = whole_seconds_until(refused.sleeps_until_us or 0)
            return error
        case KeyReused():
            return KeyReusedError(
                "this key was used for a request with another method, path or body"
            )
        case Cancelled():
            return RequestCancelledError(
                "the request with this key was cancelled; do not send it again"
            )
        case RetryLater():
            message = "the request failed, and it is too soon to try it again"
            return RetryLaterError(message, refused.seconds)
        case Expired():
            return KeyExpiredError(
                "the request with this key was carried out; its answer has expired"
            )
