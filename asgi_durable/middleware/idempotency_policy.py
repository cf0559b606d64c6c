"""Which requests are idempotent, and within which limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asgi_durable.middleware.asgi import Scope

__all__ = ["IdempotencyPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyPolicy:
    """Which requests an ``Idempotency-Key`` makes durable.

    Attributes:
        methods: HTTP methods that are covered; on others the key has no effect.
        header_name: Header that carries the key.
        principal: Returns whose request it is, from the ASGI scope; keys of different
            principals never meet. By default the authenticated user of ``scope["user"]``,
            else a hash of ``Authorization``, else everybody who sends neither.
        max_wait: Seconds that a request waits for a twin that is running already, before it is
            answered 409; ``Prefer: wait=N`` may make it less, never more.
        max_request_body: Bytes; a longer body is answered 413.
        max_response_body: Bytes; a longer answer passes through and is not kept.
    """

    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    header_name: str = "Idempotency-Key"
    principal: Callable[[Scope], str | None] | None = None
    max_wait: float = 5.0
    max_request_body: int = 1024 * 1024
    max_response_body: int = 1024 * 1024
