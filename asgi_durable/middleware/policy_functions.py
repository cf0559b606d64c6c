"""Functions that a policy was given, which may be async or not."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import Scope
from asgi_durable.request_errors import PolicyFailedError, RequestNotVerifiedError

__all__ = ["Verify", "check_request", "result_of"]

T = TypeVar("T")

Verify = Callable[[Scope, bytes], bool | Awaitable[bool | None] | None]


async def result_of(
    function: Callable[[Scope, bytes], T | Awaitable[T]], scope: Scope, body: bytes
) -> T:
    """Call a function, and wait for its result where it is async."""
    result = function(scope, body)
    return await result if inspect.isawaitable(result) else result


async def check_request(verify: Verify, scope: Scope, body: bytes) -> None:
    """Let the application check a request, by its signature say.

    Raises:
        RequestNotVerifiedError: It is refused.
        PolicyFailedError: The check failed, so the request is not served.
    """
    try:
        verdict: object = await result_of(verify, scope, body)
        if verdict is not None and not isinstance(verdict, bool):
            # What is forgotten in it (an `await`, a comparison) must not let everybody in.
            msg = f"it returned {type(verdict).__name__}, not a bool or None"
            raise TypeError(msg)
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "verify") from error
    if verdict is False:
        msg = "the request's signature, or what else proves its sender, was not accepted"
        raise RequestNotVerifiedError(msg)
