"""The apps of this process that can serve a request without its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.response_commit import ResponseCommit

__all__ = ["BeginRequest", "RequestServer", "RequestServers"]

BeginRequest = Callable[[Retention], ResponseCommit]


class RequestServer(Protocol):
    """A started app, as the engine sees it."""

    def resume(self, data: bytes, begin: BeginRequest) -> Awaitable[None]:
        """Resume a request after its step log, and commit its response.

        Args:
            data: The request, as it was stored at its claim.
            begin: Returns the object that commits the response, given how long the response is
                stored.

        Raises:
            Exception: The request cannot be served here.
        """


class RequestServers:
    """The started apps of this process.

    A stored request does not say which app it was sent to. So if there are several apps, none of
    them gets it: the response of another app would be worse than none.
    """

    def __init__(self) -> None:
        self._open: list[RequestServer] = []

    @property
    def only(self) -> RequestServer | None:
        """The app, if there is exactly one; ``None`` otherwise."""
        return self._open[0] if len(self._open) == 1 else None

    def has_one(self) -> bool:
        """Tell whether stored requests can be served in this process."""
        return self.only is not None

    def add(self, server: RequestServer) -> None:
        """Add an app that has started."""
        self._open.append(server)

    def remove(self, server: RequestServer) -> None:
        """Remove an app that has stopped."""
        self._open = [other for other in self._open if other is not server]

    def clear(self) -> None:
        """Remove all apps."""
        self._open = []
