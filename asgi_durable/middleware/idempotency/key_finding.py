"""Finds the key of a request where its policy says, and verifies the request."""

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

__all__ = ["FoundKey", "find_key"]


@fast_dataclass()
class FoundKey:
    """The result of a search for a request's key.

    Attributes:
        key: The key; ``None`` if the request has none and does not need one.
        receive: Returns the whole body, with the part that was read during the search.
        is_unknown: True if the request may have a key that was not found, because its body is
            too long to be searched or cannot be read.
    """

    key: bytes | None
    receive: Receive
    is_unknown: bool = False


async def find_key(
    scope: Scope, receive: Receive, policy: IdempotencyPolicy, parameters: ParameterFinder
) -> FoundKey:
    """Return the key of a request that a policy covers, after the request is verified.

    Args:
        scope: An HTTP scope.
        receive: Returns the body, which is read only if the policy needs it.
        policy: The request's.
        parameters: Returns the parameters of the request's path.

    Raises:
        ClientDisconnectedError: The client disconnected before its request was complete.
        DurableError: The request needs a key and has none, its key is not accepted, or the
            policy's ``verify`` refuses it.
    """
    if not policy.needs_body:
        return FoundKey(await _accepted_key(scope, b"", policy, parameters), receive)
    peeked = PeekedBody(receive)
    body: bytes | None = b""
    if policy.key_source.needs_body:
        body = await peeked.read(scope, policy.max_request_body)
        if body is None and policy.required:
            raise too_large(policy.max_request_body)
    try:
        key = await _accepted_key(scope, body, policy, parameters)
    except BodyUnreadableError:
        return FoundKey(None, peeked.receive, is_unknown=True)
    if key is not None and policy.verify is not None:
        if not policy.key_source.needs_body:
            body = await peeked.read(scope, policy.max_request_body)
        if body is None:
            raise too_large(policy.max_request_body)
        # Invariant: verify before the key is looked up. A refused sender learns nothing about it.
        await verify_request(policy.verify, scope, body)
    return FoundKey(key, peeked.receive)


async def _accepted_key(
    scope: Scope, body: bytes | None, policy: IdempotencyPolicy, parameters: ParameterFinder
) -> bytes | None:
    """Return the request's key, ``None`` if it has none and does not need one.

    Raises:
        IdempotencyError: The request needs a key and has none, or its key is not accepted.
        BodyUnreadableError: The key may be in a body that cannot be read, and is not required.
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
    if key is not None and policy.validate_key is not None:
        _validate(key, policy.validate_key)
    return key


def _validate(key: bytes, validate_key: Callable[[str], bool]) -> None:
    try:
        is_valid = validate_key(key.decode("ascii"))
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "validate_key") from error
    if not is_valid:
        msg = "this key is not accepted here"
        raise KeyMalformedError(msg)
