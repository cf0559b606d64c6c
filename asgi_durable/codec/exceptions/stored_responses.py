"""The HTTP response of a ``DurableError``, recorded for the case that its class is removed."""

from __future__ import annotations

from typing import Any

from asgi_durable.errors import (
    DurableError,
    FinalError,
    NonDeterministicWorkflowError,
    RecoveryAttemptsExceededError,
    RemoteError,
    StepInterruptedError,
)

__all__ = ["is_kind_of", "pack_answer", "stand_in"]

# Errors of these classes have a response of their own kind, whatever subclass they are.
_KINDS = {
    cls.__name__: cls
    for cls in (
        FinalError,
        NonDeterministicWorkflowError,
        RecoveryAttemptsExceededError,
        StepInterruptedError,
    )
}


def pack_answer(error: DurableError) -> dict[str, Any]:
    """Return the parts of an error's response, as JSON values.

    Its class may compute any of them, and may fail: then only the status and the code are
    recorded, or those of the base class.
    """
    # A class may have left out the base's constructor.
    packed: dict[str, Any] = {
        "status": getattr(error, "status_code", error.default_status),
        "code": getattr(error, "code", error.default_code),
    }
    try:
        packed |= {
            "title": error.title,
            "detail": error.detail,
            "retryable": error.retryable,
            "kinds": _kinds_of(error),
        }
    except Exception:
        return packed
    if error.retryable or "retry_after_seconds" in vars(error):
        packed["after"] = error.retry_after_seconds
    return packed


def stand_in(type_name: str, message: str, answer: object) -> RemoteError:
    """Return an error that stands for another one, and has the same response.

    Args:
        type_name: The module and name of the error's class.
        message: Its text.
        answer: The result of :func:`pack_answer`; empty for other exceptions. Members of another
            form are left out.
    """
    error = RemoteError(type_name, message)
    if not isinstance(answer, dict):
        return error
    status, code = answer.get("status"), answer.get("code")
    if not isinstance(status, int) or not 400 <= status <= 599:
        return error
    if not isinstance(code, str) or not code:
        return error
    kept: dict[str, Any] = {"status_code": status, "code": code}
    for name, key, is_valid in (
        ("title", "title", _is_text),
        ("shown_detail", "detail", _is_text),
        ("retryable", "retryable", _is_bool),
        ("retry_after_seconds", "after", _is_int),
        ("kinds", "kinds", _is_list),
    ):
        value = answer.get(key)
        if is_valid(value):
            kept[name] = value
    kept["kinds"] = tuple(name for name in _KINDS if name in kept.get("kinds", ()))
    # Past the class: some of these are attributes of classes elsewhere.
    vars(error).update(kept)
    return error


def is_kind_of(error: DurableError, *classes: type[DurableError]) -> bool:
    """Tell whether an error is of one of these classes, or stands for one that is."""
    if isinstance(error, classes):
        return True
    return isinstance(error, RemoteError) and any(cls.__name__ in error.kinds for cls in classes)


def _kinds_of(error: DurableError) -> list[str]:
    if isinstance(error, RemoteError):
        return list(error.kinds)
    return [name for name, cls in _KINDS.items() if isinstance(error, cls)]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)
