"""Durable requests and functions for any ASGI app."""

from asgi_durable.codec.json_codec import Codec, JsonCodec
from asgi_durable.context import RequestContext
from asgi_durable.durable import Durable
from asgi_durable.engine.workflows.handle import WorkflowHandle, WorkflowStatus
from asgi_durable.errors import (
    DecodeError,
    DurableError,
    DurableUsageError,
    EncodeError,
    EncryptionKeyMissingError,
    FinalError,
    IdempotencyError,
    NonDeterministicWorkflowError,
    PayloadTooLargeError,
    RecoveryAttemptsExceededError,
    RemoteError,
    RequestIdInvalidError,
    StepInterruptedError,
    StepRetriesExhaustedError,
    StepTimeoutError,
    StorageError,
    StorageUnavailableError,
    WorkflowCancelledError,
    WorkflowConflictError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)
from asgi_durable.log_context import DurableLogFilter, DurableLogProcessor
from asgi_durable.middleware.idempotency.middleware import IdempotencyMiddleware
from asgi_durable.middleware.idempotency.server_recovery import ResumedRequest
from asgi_durable.middleware.lifespan import LifespanMiddleware
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import ProblemDetailsMiddleware
from asgi_durable.middleware.request_context import RequestContextMiddleware
from asgi_durable.middleware.request_id_policy import RequestIdPolicy
from asgi_durable.middleware.tracing import TracingMiddleware
from asgi_durable.payloads import Payloads
from asgi_durable.request_errors import (
    AttemptsExhaustedError,
    KeyExpiredError,
    KeyMalformedError,
    KeyMissingError,
    KeyReusedError,
    OutcomeUnknownError,
    PolicyFailedError,
    PrincipalUnavailableError,
    RequestCancelledError,
    RequestFinishedError,
    RequestInProgressError,
    RequestNotVerifiedError,
    RequestTooLargeError,
    ResponseDamagedError,
    ResponseNotKeptError,
    RetryLaterError,
    SpoolFullError,
)
from asgi_durable.retry import RetryPolicy
from asgi_durable.storage.records import WorkflowState
from asgi_durable.telemetry.config import Telemetry
from asgi_durable.verbs.blocking import BlockingWorkflowHandle

__version__ = "0.1.0"

__all__ = [
    "AttemptsExhaustedError",
    "BlockingWorkflowHandle",
    "Codec",
    "DecodeError",
    "Durable",
    "DurableError",
    "DurableLogFilter",
    "DurableLogProcessor",
    "DurableUsageError",
    "EncodeError",
    "EncryptionKeyMissingError",
    "FinalError",
    "IdempotencyError",
    "IdempotencyMiddleware",
    "IdempotencyPolicy",
    "JsonCodec",
    "KeyExpiredError",
    "KeyMalformedError",
    "KeyMissingError",
    "KeyReusedError",
    "LifespanMiddleware",
    "NonDeterministicWorkflowError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "Payloads",
    "PolicyFailedError",
    "PrincipalUnavailableError",
    "ProblemDetailsMiddleware",
    "RecoveryAttemptsExceededError",
    "RemoteError",
    "RequestCancelledError",
    "RequestContext",
    "RequestContextMiddleware",
    "RequestFinishedError",
    "RequestIdInvalidError",
    "RequestIdPolicy",
    "RequestInProgressError",
    "RequestNotVerifiedError",
    "RequestTooLargeError",
    "ResponseDamagedError",
    "ResponseNotKeptError",
    "ResumedRequest",
    "RetryLaterError",
    "RetryPolicy",
    "SpoolFullError",
    "StepInterruptedError",
    "StepRetriesExhaustedError",
    "StepTimeoutError",
    "StorageError",
    "StorageUnavailableError",
    "Telemetry",
    "TracingMiddleware",
    "WorkflowCancelledError",
    "WorkflowConflictError",
    "WorkflowHandle",
    "WorkflowInterruptedError",
    "WorkflowNotFoundError",
    "WorkflowState",
    "WorkflowStatus",
]
