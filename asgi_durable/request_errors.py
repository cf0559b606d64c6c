"""The errors of requests with an idempotency key; ``errors`` has the base classes."""

from __future__ import annotations

from asgi_durable.errors import IdempotencyError

__all__ = [
    "AttemptsExhaustedError",
    "KeyExpiredError",
    "KeyMalformedError",
    "KeyMissingError",
    "KeyReusedError",
    "OutcomeUnknownError",
    "PolicyFailedError",
    "PrincipalUnavailableError",
    "RequestCancelledError",
    "RequestFinishedError",
    "RequestInProgressError",
    "RequestNotVerifiedError",
    "RequestTooLargeError",
    "ResponseDamagedError",
    "ResponseNotKeptError",
    "RetryLaterError",
    "SpoolFullError",
]


class KeyMissingError(IdempotencyError):
    """The request has no key, but needs one."""

    default_code = "KEY_MISSING"
    title = "The request needs an idempotency key"


class KeyMalformedError(IdempotencyError):
    """The key is empty, too long, repeated, invalid or not accepted."""

    default_code = "KEY_MALFORMED"
    title = "The idempotency key is malformed"


class KeyReusedError(IdempotencyError):
    """The key belongs to a request with another method, path, query or body."""

    default_code = "KEY_REUSED"
    default_status = 422
    title = "The idempotency key was used for another request"


class RequestInProgressError(IdempotencyError):
    """The first request with this key still runs."""

    default_code = "IN_PROGRESS"
    default_status = 409
    title = "A request with this key is still running"
    retryable = True


class RequestNotVerifiedError(IdempotencyError):
    """The policy's ``verify=`` refused the request; the response says nothing about its key."""

    default_code = "REQUEST_NOT_VERIFIED"
    default_status = 403
    title = "The request could not be verified"


class RequestTooLargeError(IdempotencyError):
    """The body is larger than the policy allows for a keyed request."""

    default_code = "BODY_TOO_LARGE"
    default_status = 413
    title = "The request body is too large"


class SpoolFullError(IdempotencyError):
    """There is no disk space for the body, which must be compared with another request's."""

    default_code = "SPOOL_FULL"
    default_status = 503
    title = "Too many long bodies are compared at the moment"
    retryable = True


class ResponseNotKeptError(IdempotencyError):
    """The request is done, but its response was streamed, or too large to be stored."""

    default_code = "RESPONSE_NOT_KEPT"
    default_status = 410
    title = "The request is done, and its response was not stored"


class ResponseDamagedError(IdempotencyError):
    """The request is done, but its stored response is damaged in the database."""

    default_code = "RESPONSE_DAMAGED"
    default_status = 500
    title = "The request is done, and its stored response is damaged"
    shows_message = False

    @classmethod
    def of(cls, error: Exception, workflow_id: str) -> ResponseDamagedError:
        """Return the error for a stored response that cannot be read.

        Args:
            error: The reason.
            workflow_id: The request's workflow.
        """
        return cls(f"the stored response of request {workflow_id} is damaged: {error}")


class KeyExpiredError(IdempotencyError):
    """The request was completed long ago, and its stored response has expired."""

    default_code = "KEY_EXPIRED"
    default_status = 410
    title = "The idempotency key has expired"


class AttemptsExhaustedError(IdempotencyError):
    """The request has failed or was interrupted as often as its policy allows."""

    default_code = "ATTEMPTS_EXHAUSTED"
    default_status = 500
    title = "The request failed in every attempt"


class OutcomeUnknownError(IdempotencyError):
    """The handler has ended, and it is not known whether its response was stored."""

    default_code = "OUTCOME_UNKNOWN"
    default_status = 503
    title = "The request's outcome is not known"
    retryable = True


class PolicyFailedError(IdempotencyError):
    """A function of the policy raised an error, so the request is not served at all.

    If the function raises a ``DurableError``, that error makes the response instead.
    """

    default_code = "POLICY_FAILED"
    default_status = 500
    title = "The policy of the request cannot be applied"
    shows_message = False

    @classmethod
    def of(cls, error: Exception, function: str) -> PolicyFailedError:
        """Return the error for a function that raised.

        Args:
            error: The function's error.
            function: Names the function in the message.
        """
        return cls(f"{function} raised {type(error).__name__}: {error}")


class PrincipalUnavailableError(IdempotencyError):
    """The sender of the request cannot be determined, so the request is not served at all.

    Args:
        message: The reason.
        names_settings: True if the message only names missing settings, so that a client may
            see it.
    """

    default_code = "PRINCIPAL_UNAVAILABLE"
    default_status = 500
    title = "The sender of the request cannot be determined"
    shows_message = False

    def __init__(self, message: str = "", *, names_settings: bool = False) -> None:
        super().__init__(message)
        self._names_settings = names_settings

    @property
    def detail(self) -> str:
        """The sentence that a client may see."""
        return str(self) if self._names_settings else super().detail


class RequestCancelledError(IdempotencyError):
    """The request was cancelled; a retry does not continue it."""

    default_code = "CANCELLED"
    default_status = 410
    title = "The request was cancelled"


class RequestFinishedError(IdempotencyError):
    """The request is finished, so it cannot be cancelled any more."""

    default_code = "REQUEST_FINISHED"
    default_status = 409
    title = "The request is finished already"


class RetryLaterError(IdempotencyError):
    """The request has failed, and must not be retried yet.

    Args:
        message: A sentence that says what went wrong.
        seconds: Seconds until the retry, for the response's ``Retry-After``.
    """

    default_code = "RETRY_LATER"
    default_status = 503
    title = "The request failed, and it is too soon for its retry"
    retryable = True

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = seconds
