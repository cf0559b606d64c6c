"""asgi-idempotency-header, in memory: it survives nothing."""

from __future__ import annotations

from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import MemoryBackend

from benchmarks.http_contestants.bare import answer
from benchmarks.http_contestants.parts import ASGIApp


def memory() -> ASGIApp:
    """Around the bare app."""
    return IdempotencyHeaderMiddleware(answer, backend=MemoryBackend())
