"""Who in this process can serve a request without its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asgi_durable.engine.process.settings import Retention
    from asgi_durable.engine.requests.claims import ResponseCommit

__all__ = ["BeginRequest", "RequestServer", "RequestServers"]

BeginRequest = Callable[["Retention"], "ResponseCommit"]


class RequestServer(Protocol):
    """An app that has started, as the engine sees it."""

    def resume(self, data: bytes, begin: BeginRequest) -> Awaitable[None]:
        """Go on with a request after its log, and commit its answer.

        Args:
            data: What was kept of it at its claim.
            begin: Gives what the answer is committed with, for as long as it is kept.

        Raises:
            Exception: It cannot be served here.
        """


class RequestServers:
    """The servers of this process.

    A request says nothing of the app that it was sent to. So where there are several none of
    them gets one: another app's answer would be worse than none.
    """

    def __init__(self) -> None:
        self._open: list[RequestServer] = []

    @property
    def only(self) -> RequestServer | None:
        """The one that there is; ``None`` if there is none, or more than one."""
        return self._open[0] if len(self._open) == 1 else None

    def add(self, server: RequestServer) -> None:
        """Let a server have requests; its app has started."""
        self._open.append(server)

    def remove(self, server: RequestServer) -> None:
        """Let it have no more."""
        self._open = [other for other in self._open if other is not server]

    def clear(self) -> None:
        """Let none have any."""
        self._open = []
