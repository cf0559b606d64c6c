"""The key of one request: found where the policy says, and the request verified with it."""

from __future__ import annotations

from collections.abc import Callable

from asgi_durable.errors import DurableError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import Receive, Scope
from asgi_durable.middleware.keys.key_sources import BodyUnreadableError, ParameterFinder
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.policy_functions import verify_request
from asgi_durable.middleware.request_bodies.replayed_body import PeekedBody, too_large
from asgi_durable.request_errors import KeyMalformedError, KeyMissingError, PolicyFailedError

__all__ = ["FoundKey", "find_key", "may_have_key"]


@fast_dataclass()
class FoundKey:
    """What was found.

    Attributes:
        key: The key; ``None`` if the request has none and need not have one.
        receive: Gives the whole body, what was read of it included.
        is_unknown: True if the request may have a key all the same: its body is too long to be
            looked into, or cannot be read.
    """

    key: bytes | None
    receive: Receive
    is_unknown: bool = False


def may_have_key(scope: Scope, policy: IdempotencyPolicy) -> bool:
    """Tell whether a request has the header of the key; others have to be looked into."""
    return policy.header is None or policy.header in [key.lower() for key, _ in scope["headers"]]


async def find_key(
    scope: Scope, receive: Receive, policy: IdempotencyPolicy, parameters: ParameterFinder
) -> FoundKey:
    """Return the key of a request that is covered, once the request is verified.

    Args:
        scope: An HTTP scope.
        receive: Gives its body, which is read only where the policy needs it.
        policy: The request's.
        parameters: Returns the parameters of its path.

    Raises:
        ClientDisconnectedError: The client went away before its request was complete.
        DurableError: It has no key and needs one, none that is accepted, or is refused.
    """
    if not policy.needs_body:
        return FoundKey(await _checked_key(scope, b"", policy, parameters), receive)
    ahead = PeekedBody(receive)
    body: bytes | None = b""
    if policy.key_source.needs_body:
        body = await ahead.read(scope, policy.max_request_body)
        if body is None and policy.required:
            raise too_large(policy.max_request_body)
    try:
        key = await _checked_key(scope, body, policy, parameters)
    except BodyUnreadableError:
        return FoundKey(None, ahead.receive, is_unknown=True)
    if key is not None and policy.verify is not None:
        if not policy.key_source.needs_body:
            body = await ahead.read(scope, policy.max_request_body)
        if body is None:
            raise too_large(policy.max_request_body)
        # Invariant: before the key is looked up. Who is refused learns nothing about it.
        await verify_request(policy.verify, scope, body)
    return FoundKey(key, ahead.receive)


async def _checked_key(
    scope: Scope, body: bytes | None, policy: IdempotencyPolicy, parameters: ParameterFinder
) -> bytes | None:
    """Return the request's key, ``None`` if it has none and need not have one.

    Raises:
        IdempotencyError: It has none, or none that is accepted.
        BodyUnreadableError: It may have a key or not, and need not have one.
    """
    source = policy.key_source
    try:
        if body is None:
            raise BodyUnreadableError
        key = await source.find(scope, body, parameters)
    except BodyUnreadableError:
        if not policy.required:
            raise
        key = None
    if key is None and policy.required:
        msg = f"this request needs a key in {source.place}"
        raise KeyMissingError(msg)
    if key is not None and not _is_valid(key, policy.validate_key):
        msg = "this key is not accepted here"
        raise KeyMalformedError(msg)
    return key


def _is_valid(key: bytes, validate_key: Callable[[str], bool] | None) -> bool:
    try:
        return validate_key is None or validate_key(key.decode("ascii"))
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "validate_key") from error
