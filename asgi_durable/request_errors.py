"""What a request is answered that is not to be carried out now, or ever; see ``errors``."""

from __future__ import annotations

from asgi_durable.errors import IdempotencyError

__all__ = ["RequestCancelledError", "RequestFinishedError", "RetryLaterError"]


class RequestCancelledError(IdempotencyError):
    """The request was cancelled; a retry does not go on with it."""

    default_code = "CANCELLED"
    default_status = 410
    title = "The request was cancelled"


class RequestFinishedError(IdempotencyError):
    """The request is finished, so it cannot be cancelled any more."""

    default_code = "REQUEST_FINISHED"
    default_status = 409
    title = "The request is finished already"


class RetryLaterError(IdempotencyError):
    """The request has failed, and is not to be tried again yet.

    Args:
        message: What went wrong.
        seconds: After how many it may be.
    """

    default_code = "RETRY_LATER"
    default_status = 503
    title = "The request failed, and it is too soon for its retry"
    retryable = True

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = seconds
