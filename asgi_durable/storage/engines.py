"""SQLAlchemy engines for an application that may be called on several event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["LoopEngines", "driver_of"]


class LoopEngines:
    """A connection pool for one event loop, and unpooled connections for all others.

    A pool of SQLAlchemy's belongs to one event loop. An application without a lifespan may be
    called on several, even at once.

    Args:
        create: Makes an engine with the options that are passed.
    """

    def __init__(self, create: Callable[..., AsyncEngine]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pooled = create()
        self._single = create(poolclass=sa.NullPool)
        self._end_of_pool = _disposed_with_loop(self._pooled)

    @classmethod
    async def prepare(cls, create: Callable[..., AsyncEngine]) -> LoopEngines:
        """Make both engines, and let each do its initialisation by a first connection.

        SQLAlchemy waits for that initialisation in a way that works on one event loop only.
        """
        engines = cls(create)
        for engine in (engines._pooled, engines._single):
            async with engine.connect():
                pass
        # These connections are closed at once: an event loop that ends without a transaction
        # then leaves no open connection behind.
        await engines._pooled.dispose()
        await anext(engines._end_of_pool)
        return engines

    def here(self) -> AsyncEngine:
        """Return the engine for the running event loop."""
        return self._pooled if asyncio.get_running_loop() is self._loop else self._single

    async def dispose(self, *, bound_to_loop: bool) -> None:
        """Close all connections that are not in use.

        Args:
            bound_to_loop: True if the driver can close a connection only on the event loop that
                opened it. On another one, pooled connections are left for the server to close.
        """
        if asyncio.get_running_loop() is self._loop:
            await self._end_of_pool.aclose()
        else:
            await self._pooled.dispose(close=not bound_to_loop)
        await self._single.dispose()


async def _disposed_with_loop(engine: AsyncEngine) -> AsyncGenerator[None]:
    """Dispose of an engine when its event loop closes, at the latest.

    The generator is begun on that loop: a loop closes its asynchronous generators before it
    closes itself, and has no other hook. A test client without a lifespan has a new event loop
    for each request.
    """
    try:
        yield
    finally:
        await engine.dispose()


def driver_of(connection: AsyncConnection) -> Any:
    """Return the driver's connection below an open SQLAlchemy connection."""
    return connection.sync_connection and connection.sync_connection.connection.driver_connection
