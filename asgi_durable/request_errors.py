"""What a request is answered that is not to be carried out any more; see ``errors``."""

from __future__ import annotations

from asgi_durable.errors import IdempotencyError

__all__ = ["RequestCancelledError", "RequestFinishedError"]


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
