"""asgi-idempotency-header, in memory: it survives nothing."""

from __future__ import annotations

from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import MemoryBackend

from benchmarks.contestants.http_bare import answer
from benchmarks.contestants.http_parts import ASGIApp


def memory() -> ASGIApp:
    """Around the bare app."""
    return IdempotencyHeaderMiddleware(answer, backend=MemoryBackend())
