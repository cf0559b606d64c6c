"""Which requests are idempotent, and within which limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.asgi import Scope

__all__ = ["IdempotencyPolicy"]

# They change nothing, so there is nothing to keep from being done twice.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_DIALECTS = ("default", "ietf", "stripe")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyPolicy:
    """Which requests an ``Idempotency-Key`` makes durable.

    Attributes:
        methods: HTTP methods that are covered; on others the key has no effect.
        required: True to answer a covered request without a key 400.
        header_name: Header that carries the key.
        docs_url: Where the use of keys is explained; linked from the answers to wrong ones.
        validate_key: Returns whether a key is accepted; others are answered 400.
        principal: Returns whose request it is, from the ASGI scope; keys of different
            principals never meet. By default the authenticated user of ``scope["user"]``,
            else a hash of ``Authorization``, else one of the session cookie, else everybody
            who sends none of them.
        session_cookie: Name of the cookie that says whose request it is.
        store_4xx: True to keep an answer of 4xx even where nothing was recorded before it.
            Never kept: 401, 403, 407, 408, 421, 425 and 429.
        max_wait: Seconds that a request waits for a twin that is running already, before it is
            answered 409; ``Prefer: wait=N`` may make it less, never more.
        dialect: ``"ietf"`` answers a twin 409 at once, as the draft has it; ``"stripe"`` as
            well, and a key of another request 400, not 422.
        status_prefix: Path below which the status of a client's own requests is served, and
            their answers later; ``None`` for nowhere. ``Prefer: respond-async`` is answered
            with where to look.
        max_request_body: Bytes; a longer body is answered 413.
        max_response_body: Bytes; a longer answer passes through and is not kept.

    Raises:
        DurableUsageError: A method is safe, or a number is negative.
    """

    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    required: bool = False
    header_name: str = "Idempotency-Key"
    docs_url: str | None = None
    validate_key: Callable[[str], bool] | None = None
    principal: Callable[[Scope], str | None] | None = None
    session_cookie: str | None = None
    store_4xx: bool = False
    max_wait: float = 5.0
    dialect: Literal["default", "ietf", "stripe"] = "default"
    status_prefix: str | None = "/durable/requests"
    max_request_body: int = 1024 * 1024
    max_response_body: int = 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if safe := sorted(_SAFE_METHODS.intersection(self.methods)):
            msg = f"{safe[0]} changes nothing: a key has no meaning there"
            raise DurableUsageError(msg)
        if self.dialect not in _DIALECTS:
            msg = f"dialect must be one of {', '.join(_DIALECTS)}, got {self.dialect!r}"
            raise DurableUsageError(msg)
        prefix = self.status_prefix
        if prefix is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            msg = f"status_prefix must be a path such as /durable/requests, got {prefix!r}"
            raise DurableUsageError(msg)
        for name in ("max_wait", "max_request_body", "max_response_body"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                msg = f"{name} must be a number that is not negative, got {value!r}"
                raise DurableUsageError(msg)

    @property
    def twins_wait(self) -> float:
        """Seconds that a twin waits for."""
        return self.max_wait if self.dialect == "default" else 0.0

    @property
    def status_of_reuse(self) -> int:
        """Status of the answer to a key of another request."""
        return 400 if self.dialect == "stripe" else 422
