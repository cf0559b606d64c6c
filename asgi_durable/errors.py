"""The errors that the library raises, each with the HTTP status that a client sees.

DurableError                          500  base class; raise it, or catch this one
├── FinalError                        500  one to raise: the request's final response
├── DurableUsageError                 500  the library was called in a way that cannot work
├── RequestIdInvalidError             400  the policy does not accept the request's id
├── WorkflowNotFoundError             404  no such workflow id
├── WorkflowConflictError             409  the workflow id belongs to another call
├── WorkflowCancelledError            410  the workflow was cancelled
├── WorkflowInterruptedError          503  the run ended without an outcome; it is resumed
├── RecoveryAttemptsExceededError     500  the workflow crashed too many processes
├── NonDeterministicWorkflowError     500  the code no longer follows its step log
├── StepRetriesExhaustedError         500  every attempt of a step failed
├── StepTimeoutError                  500  an attempt of a step took too long
├── StepInterruptedError              500  an at-most-once step has no known outcome
├── RemoteError                       500  a recorded error whose class is not available
├── EncodeError                       500  a value cannot be recorded
│   └── PayloadTooLargeError          500  a value is larger than the limit
├── DecodeError                       500  a recorded value cannot be read back
│   └── EncryptionKeyMissingError     503  the key that encrypted the value is missing
├── StorageError                      500  the database failed; the message names it
│   └── StorageUnavailableError       503  the database cannot be used at the moment
└── IdempotencyError                  400  base class for requests with an Idempotency-Key
    ├── KeyMissingError               400  the request has no key, but needs one
    ├── KeyMalformedError             400  the key is empty, too long, repeated or invalid
    ├── KeyReusedError                422  the key belongs to another request
    ├── RequestInProgressError        409  the first request with this key still runs
    ├── RequestNotVerifiedError       403  the policy's verify= refused the request
    ├── RequestTooLargeError          413  the body of a keyed request is too large
    ├── SpoolFullError                503  too many long bodies are being compared
    ├── ResponseNotKeptError          410  the response of a completed request is not stored
    ├── ResponseDamagedError          500  the stored response is damaged
    ├── KeyExpiredError               410  the stored response has expired
    ├── AttemptsExhaustedError        500  the request has used up its attempts
    ├── OutcomeUnknownError           503  it is unknown whether the response was stored
    ├── PolicyFailedError             500  a function of the policy raised
    ├── PrincipalUnavailableError     500  the sender of the request is unknown
    ├── RequestCancelledError         410  the request was cancelled
    ├── RequestFinishedError          409  the request can no longer be cancelled
    └── RetryLaterError               503  the retry of a failed request came too soon
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "DecodeError",
    "DurableError",
    "DurableUsageError",
    "EncodeError",
    "EncryptionKeyMissingError",
    "FinalError",
    "IdempotencyError",
    "NonDeterministicWorkflowError",
    "PayloadTooLargeError",
    "RecoveryAttemptsExceededError",
    "RemoteError",
    "RequestIdInvalidError",
    "StepInterruptedError",
    "StepRetriesExhaustedError",
    "StepTimeoutError",
    "StorageError",
    "StorageUnavailableError",
    "WorkflowCancelledError",
    "WorkflowConflictError",
    "WorkflowInterruptedError",
    "WorkflowNotFoundError",
]


class DurableError(Exception):
    """Base class of the library's errors, which handlers may raise as well.

    If it is raised while a request is handled, the response is ``application/problem+json``
    (RFC 9457).

    Example::

        raise DurableError("Order not found", code="ORDER_NOT_FOUND", status_code=404)

    Args:
        message: A sentence that says what went wrong; the response's ``detail``.
        code: A stable word for programs, for example ``"INVALID_ID"``.
        status_code: HTTP status of the response, 400 to 599.

    Raises:
        ValueError: *status_code* is not an error status.
    """

    default_code: ClassVar[str] = "DURABLE_ERROR"
    default_status: ClassVar[int] = 500
    # The title of the problem details; without one it is the phrase of the status.
    title: ClassVar[str] = ""
    retryable: ClassVar[bool] = False
    # The response's Retry-After, if the error is retryable.
    retry_after_seconds: int = 1
    # False if the message names functions, files or arguments: these are for logs, not clients.
    shows_message: ClassVar[bool] = True

    def __init__(
        self, message: str = "", *, code: str | None = None, status_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.status_code = status_code or self.default_status
        if not 400 <= self.status_code <= 599:
            msg = f"status_code must be between 400 and 599, got {status_code}"
            raise ValueError(msg)

    @property
    def detail(self) -> str:
        """The sentence that a client may see: never SQL, paths or other users' data."""
        return str(self) if self.shows_message else self.title


class FinalError(DurableError):
    """An error that is the request's final response, whatever its status.

    Without it a 5xx is never final: the retry continues the work. Nor is it if an error handler
    of the application turns this error into a response.
    """

    default_code = "FINAL_ERROR"
    title = "The request has failed for good"


class DurableUsageError(DurableError):
    """The library was called in a way that cannot work; the message says what to do."""

    default_code = "USAGE"
    title = "The service uses durable execution incorrectly"
    shows_message = False


class RequestIdInvalidError(DurableError):
    """The request has an id that is not accepted, and the policy refuses such requests."""

    default_code = "REQUEST_ID_INVALID"
    default_status = 400
    title = "The request id is not valid"


class WorkflowNotFoundError(DurableError):
    """No workflow has this id."""

    default_code = "WORKFLOW_NOT_FOUND"
    default_status = 404
    title = "Workflow not found"

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"no workflow has the id {workflow_id!r}")
        self.workflow_id = workflow_id


class WorkflowCancelledError(DurableError):
    """The workflow was cancelled; its records up to then stay."""

    default_code = "WORKFLOW_CANCELLED"
    default_status = 410
    title = "The work was cancelled"
    shows_message = False

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"workflow {workflow_id!r} was cancelled")
        self.workflow_id = workflow_id


class WorkflowConflictError(DurableError):
    """The workflow id belongs to a call of another function, or with other arguments.

    Attributes:
        workflow_id: The id.
        parameters: Names of the parameters that differ, if the function is the same.
    """

    default_code = "WORKFLOW_CONFLICT"
    default_status = 409
    title = "The workflow id is in use for something else"
    shows_message = False

    def __init__(
        self, workflow_id: str, *, wanted: str, existing: str, parameters: tuple[str, ...] = ()
    ) -> None:
        message = f"workflow {workflow_id!r} is a run of {existing!r}, not of {wanted!r}"
        if parameters:
            message = (
                f"workflow {workflow_id!r} is a run of {existing!r} with other arguments: "
                f"{', '.join(parameters)}. Use an id of its own for each call, or "
                'options(workflow_id=…, on_conflict="attach")'
            )
        super().__init__(message)
        self.workflow_id = workflow_id
        self.parameters = parameters


class WorkflowInterruptedError(DurableError):
    """The run ended without an outcome (shutdown, cancellation, lost ownership).

    Its step log stays; its next run continues after the last recorded step.
    """

    default_code = "WORKFLOW_INTERRUPTED"
    default_status = 503
    title = "The work was interrupted and will be continued"
    retryable = True
    shows_message = False

    def __init__(self, workflow_id: str, reason: str) -> None:
        super().__init__(f"workflow {workflow_id!r} was interrupted: {reason}")
        self.workflow_id = workflow_id


class RecoveryAttemptsExceededError(DurableError):
    """The workflow has crashed too many processes in a row, and is set aside.

    Its status is ``RETRIES_EXCEEDED``. It recorded nothing between the crashes.
    """

    default_code = "RECOVERY_ATTEMPTS_EXCEEDED"
    title = "The work failed again and again and was set aside"
    shows_message = False

    def __init__(self, workflow_id: str, crashes: int) -> None:
        super().__init__(
            f"workflow {workflow_id!r} is set aside: {crashes} processes in a row died "
            "while they ran it, without any progress in between"
        )
        self.workflow_id = workflow_id


class NonDeterministicWorkflowError(DurableError):
    """The workflow's code no longer follows its step log.

    At ``step_number`` the log holds the call ``recorded``, and the code made the call ``called``.
    The log and the workflow's status stay as they were: code that follows the log again can
    finish the workflow.
    """

    default_code = "NON_DETERMINISTIC_WORKFLOW"
    title = "The workflow's code does not fit its recorded steps"
    shows_message = False

    def __init__(self, workflow_id: str, step_number: int, *, recorded: str, called: str) -> None:
        super().__init__(
            f"workflow {workflow_id!r}, step {step_number}: the step log holds {recorded}, "
            f"the code calls {called}"
        )
        self.workflow_id = workflow_id
        self.step_number = step_number
        self.recorded = recorded
        self.called = called


class StepRetriesExhaustedError(DurableError):
    """Every attempt of a step failed; ``errors`` holds the error of each, in order.

    After more than a hundred attempts it holds the first and the last fifty.
    """

    default_code = "STEP_RETRIES_EXHAUSTED"
    title = "A step failed in every attempt"
    shows_message = False

    def __init__(self, step: str, errors: list[Exception], attempts: int) -> None:
        last = errors[-1]
        super().__init__(
            f"step {step!r} failed in all {attempts} attempts; "
            f"the last one raised {type(last).__name__}: {last}"
        )
        self.step = step
        self.errors = errors
        self.attempts = attempts


class StepTimeoutError(DurableError):
    """An attempt of a step took longer than its timeout."""

    default_code = "STEP_TIMEOUT"
    title = "A step took too long"
    shows_message = False

    def __init__(self, step: str, timeout_seconds: float) -> None:
        super().__init__(f"step {step!r} took longer than {timeout_seconds} s")
        self.step = step
        self.timeout_seconds = timeout_seconds


class StepInterruptedError(DurableError):
    """A step that runs at most once was begun, and its outcome is not known.

    It may have happened or not, and is not begun again. Code may catch this error and find out
    in another step: every replay raises the same error.
    """

    default_code = "STEP_INTERRUPTED"
    title = "A step was interrupted, and may or may not have happened"
    shows_message = False

    def __init__(self, step: str) -> None:
        super().__init__(
            f"step {step!r} was interrupted: it may or may not have happened, and is not run again"
        )
        self.step = step


class RemoteError(DurableError):
    """Stands for a recorded error whose class cannot be found or rebuilt here.

    If the original is a ``DurableError``, this error has its ``code`` and ``status_code`` and
    leads to the same response: that of a ``FinalError`` is final.

    Args:
        type_name: The original class, as ``"module:QualName"``.
        message: ``str()`` of the original error.

    Attributes:
        kinds: Names of the original's base classes in this library that matter to clients.
        shown_detail: The original's ``detail``; ``None`` if it is not a ``DurableError``.
    """

    default_code = "REMOTE_ERROR"
    title = "A recorded error"
    shows_message = False

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(f"{type_name.rpartition(':')[2]}: {message}")
        self.type_name = type_name
        self.message = message
        self.kinds: tuple[str, ...] = ()
        self.shown_detail: str | None = None

    @property
    def detail(self) -> str:
        """The ``detail`` of the original error."""
        return self.title if self.shown_detail is None else self.shown_detail

    @property
    def name(self) -> str:
        """The class name in responses: that of the original, if it is a ``DurableError``."""
        if self.shown_detail is None:
            return type(self).__name__
        return self.type_name.rpartition(":")[2].rpartition(".")[2]


class EncodeError(DurableError):
    """A value cannot be recorded; the message names the member that is at fault."""

    default_code = "ENCODE_ERROR"
    title = "A value cannot be recorded"
    shows_message = False


class PayloadTooLargeError(EncodeError):
    """A value is larger than ``Payloads(max_size=…)`` allows; the message names both sizes."""

    default_code = "PAYLOAD_TOO_LARGE"
    title = "A value is too large to be recorded"


class DecodeError(DurableError):
    """A recorded value cannot be read back."""

    default_code = "DECODE_ERROR"
    title = "A recorded value cannot be read"
    shows_message = False


class EncryptionKeyMissingError(DecodeError):
    """A recorded value is encrypted with a key that this process does not have."""

    default_code = "ENCRYPTION_KEY_MISSING"
    default_status = 503
    title = "A recorded value cannot be decrypted at the moment"
    retryable = True


class StorageError(DurableError):
    """The database failed; the message names it."""

    default_code = "STORAGE_ERROR"
    title = "The storage failed"
    shows_message = False


class StorageUnavailableError(StorageError):
    """The database cannot be used at the moment: locked, full or not reachable."""

    default_code = "STORAGE_UNAVAILABLE"
    default_status = 503
    title = "The storage is not available at the moment"
    retryable = True


class IdempotencyError(DurableError):
    """Base class of the errors of requests with an ``Idempotency-Key``."""

    default_code = "IDEMPOTENCY_ERROR"
    default_status = 400
    title = "The idempotent request cannot be served"
