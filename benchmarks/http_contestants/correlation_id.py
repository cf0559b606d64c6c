"""asgi-correlation-id, as it comes."""

from __future__ import annotations

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI

from benchmarks.http_contestants import bare as http_bare
from benchmarks.http_contestants.parts import ASGIApp


def raw() -> ASGIApp:
    """Around the bare app."""
    return CorrelationIdMiddleware(http_bare.answer)


def fastapi() -> FastAPI:
    """In FastAPI."""
    app = http_bare.fastapi()
    app.add_middleware(CorrelationIdMiddleware)
    return app
