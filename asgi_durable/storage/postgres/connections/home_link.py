"""A connection on the application's own event loop, which may end at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.reconnecting import ReconnectingConnection

__all__ = ["HomeLink"]


class HomeLink:
    """A link for the event loop that opens it.

    There is no hand-over to a thread, which takes longer than some commits.

    Attributes:
        link: For use on that event loop.
    """

    def __init__(self, link: ReconnectingConnection) -> None:
        self.link = link
        self._loop = asyncio.get_running_loop()
        # An event loop that ends in good order closes all asynchronous generators on it.
        self._guard = _closing_at_the_end(link)

    @classmethod
    async def open(cls, database: PostgresDatabase) -> HomeLink:
        """Connect.

        Raises:
            StorageError: It cannot be done.
        """
        home = cls(ReconnectingConnection(database))
        await home.link.connect()
        await anext(home._guard)
        return home

    def is_here(self) -> bool:
        """Tell whether the link can be used on the running event loop."""
        return asyncio.get_running_loop() is self._loop

    async def close(self) -> None:
        """Disconnect, unless the event loop has ended and done so."""
        if self.is_here():
            await self._close()
        elif self._loop.is_running():
            closing = self._close()
            try:
                future = asyncio.run_coroutine_threadsafe(closing, self._loop)
            except RuntimeError:  # it was closed just now
                closing.close()
            else:
                await asyncio.wait([asyncio.wrap_future(future)], timeout=self.link.timeout_seconds)

    async def _close(self) -> None:
        await self.link.close()
        # Where the event loop ends just now, it is closing the guard by itself.
        with contextlib.suppress(RuntimeError):
            await self._guard.aclose()


async def _closing_at_the_end(link: ReconnectingConnection) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await link.close()
