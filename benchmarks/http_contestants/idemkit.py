"""Idemkit: it stores the response, and nothing of what the app does inside."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from idemkit import HttpConfig, IdempotencyMiddleware, InMemoryBackend, PostgresBackend
from idemkit.backends.postgres import init_pg

from benchmarks.http_contestants.bare import answer
from benchmarks.http_contestants.parts import ASGIApp, database_url

CONFIG = HttpConfig(scope_mode="single_tenant")
# Keys in memory; it refuses more. Its default is 10,000, which lasts for seconds here.
MOST_KEYS = 1_000_000


def memory() -> ASGIApp:
    """In memory."""
    backend = InMemoryBackend(max_size=MOST_KEYS)
    return IdempotencyMiddleware(answer, backend=backend, config=CONFIG)


def postgres() -> ASGIApp:
    """On Postgres."""
    url = database_url()
    # On a thread, as the server's event loop runs on this one.
    with ThreadPoolExecutor() as thread:
        thread.submit(asyncio.run, init_pg(url)).result()
    return IdempotencyMiddleware(answer, backend=PostgresBackend.from_url(url), config=CONFIG)
