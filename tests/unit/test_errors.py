"""The library's errors: status, code, what clients see, and the way through the log."""

from __future__ import annotations

import inspect

import pytest

import asgi_durable
from asgi_durable import DurableError, JsonCodec, errors, request_errors

ALL = vars(errors) | vars(request_errors)

EXAMPLES: list[DurableError] = [
    errors.DurableError("Order not found", code="ORDER_NOT_FOUND", status_code=404),
    errors.WorkflowNotFoundError("w1"),
    errors.WorkflowCancelledError("w1"),
    errors.WorkflowConflictError("w1", wanted="a", existing="b"),
    errors.WorkflowInterruptedError("w1", "shutdown"),
    errors.RecoveryAttemptsExceededError("w1", 3),
    errors.NonDeterministicWorkflowError("w1", 3, recorded="step 'a'", called="step 'b'"),
    errors.StepRetriesExhaustedError("pay", [ValueError("one"), OSError(2, "two")], 2),
    errors.StepTimeoutError("pay", 1.5),
    errors.StepInterruptedError("pay"),
    errors.RemoteError("somewhere:Gone", "it broke"),
    request_errors.PrincipalUnavailableError("a setting is missing", names_settings=True),
    request_errors.RetryLaterError("too soon", 7),
]
EXAMPLES += [
    cls("a message")
    for cls in ALL.values()
    if inspect.isclass(cls)
    and issubclass(cls, DurableError)
    and cls.__init__ is DurableError.__init__
]


def test_every_error_class_has_an_example() -> None:
    classes = {cls for cls in ALL.values() if inspect.isclass(cls)}
    durable = {cls for cls in classes if issubclass(cls, DurableError)}

    assert durable == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_step_log_with_type_text_and_attributes(
    error: DurableError,
) -> None:
    codec = JsonCodec()

    restored = codec.decode(codec.encode(error))

    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert (restored.code, restored.status_code) == (error.code, error.status_code)


def test_the_causes_of_exhausted_retries_survive() -> None:
    codec = JsonCodec()
    error = errors.StepRetriesExhaustedError("pay", [ValueError("one"), OSError(2, "two")], 2)

    restored = codec.decode(codec.encode(error))

    assert [repr(cause) for cause in restored.errors] == [repr(cause) for cause in error.errors]
    assert restored.errors[1].errno == 2


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_codes_are_stable_words_and_statuses_are_errors(error: DurableError) -> None:
    assert error.code.replace("_", "").isupper()
    assert 400 <= error.status_code <= 599


def test_a_raised_error_shows_its_message_and_a_technical_one_its_title() -> None:
    shown = DurableError("Invalid ID format", code="INVALID_ID", status_code=400)
    hidden = errors.StorageError("/var/data/orders.db: disk I/O error")

    assert shown.detail == "Invalid ID format"
    assert hidden.detail == hidden.title
    assert "orders.db" not in hidden.detail


def test_a_status_that_is_no_error_is_refused() -> None:
    with pytest.raises(ValueError, match="status_code"):
        DurableError("fine", status_code=200)


def test_all_errors_are_public() -> None:
    assert {*errors.__all__, *request_errors.__all__} <= set(asgi_durable.__all__)
