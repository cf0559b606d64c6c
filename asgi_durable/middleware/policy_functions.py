"""Calls the functions of a policy, async or not."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import Scope
from asgi_durable.request_errors import PolicyFailedError, RequestNotVerifiedError

__all__ = ["Verify", "call_function", "verify_request"]

T = TypeVar("T")

Verify = Callable[[Scope, bytes], bool | Awaitable[bool | None] | None]


async def call_function(
    function: Callable[[Scope, bytes], T | Awaitable[T]], scope: Scope, body: bytes
) -> T:
    """Call a function and return its result; await it if the function is async."""
    result = function(scope, body)
    return await result if inspect.isawaitable(result) else result


async def verify_request(verify: Verify, scope: Scope, body: bytes) -> None:
    """Let the application verify a request, for example by its signature.

    Args:
        verify: The policy's function. It returns False to refuse the request, and True or
            ``None`` to let it pass.
        scope: An HTTP scope.
        body: The whole body as it was sent.

    Raises:
        RequestNotVerifiedError: The function has refused the request.
        PolicyFailedError: The function has raised, or returned another type.
        DurableError: The function has raised this error itself.
    """
    try:
        verdict: object = await call_function(verify, scope, body)
        if verdict is not None and not isinstance(verdict, bool):
            # A forgotten `await` or comparison in the function must not let everybody in.
            msg = f"it returned {type(verdict).__name__}, not a bool or None"
            raise TypeError(msg)
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "verify") from error
    if verdict is False:
        msg = "the request's signature, or what else proves its sender, was not accepted"
        raise RequestNotVerifiedError(msg)
