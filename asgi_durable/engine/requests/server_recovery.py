"""Requests that continue without their client: their process died, or stopped."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from asgi_durable.codec.sealing.sealer import REQUEST
from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.response_commit import ResponseCommit, end_without_response
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, RunEnd
from asgi_durable.engine.runs.services import Services
from asgi_durable.errors import DecodeError

__all__ = ["BeginRequest", "RecoveredRequests", "RequestServer", "RequestServers"]

logger = logging.getLogger(__name__)

# How many processes in a row a request may kill; from then on it waits for its client.
MAX_CRASHES = 20

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


class RecoveredRequests:
    """Runs requests of other executors, once each: a request that fails waits for its client.

    Attributes:
        on_recorded: Called with a request's id after each chunk of its response that is recorded
            as a stream.
    """

    def __init__(self, services: Services, active: ActiveRuns, servers: RequestServers) -> None:
        self._services = services
        self._active = active
        self._servers = servers
        self.on_recorded: Callable[[str], None] = lambda _: None

    async def drive(self, run: Run) -> RunEnd:
        """Continue the request after its log."""
        server = self._servers.only
        requests: list[ResponseCommit] = []

        def begin(retention: Retention) -> ResponseCommit:
            requests.append(ResponseCommit(run, self._active, retention, self.on_recorded))
            return requests[-1]

        data = self._stored_request(run) if server is not None else "its app is not served here"
        if server is None or isinstance(data, str):
            logger.error("Request %s is left to its client: %s", run.workflow_id, data)
            await begin(Retention()).leave_for_retry()
        else:
            logger.info("Request %s continues without its client", run.workflow_id)
            with run.observe() as observed:
                run.record_span(observed.begin())
                await server.resume(data, begin)
                end = requests[-1].run_end if requests else None
                if isinstance(end, Completed):
                    observed.ended(end.state.value)
        end = requests[-1].run_end if requests else None
        return end or end_without_response(run)

    def _stored_request(self, run: Run) -> bytes | str:
        """Return the stored request, or why this process cannot continue it."""
        crashes, data = run.workflow.crashes, run.workflow.input
        if crashes > MAX_CRASHES:
            return f"{crashes} processes in a row died while they ran it"
        if data is None:
            return "its request is not stored"
        try:
            return self._services.registry.sealer.open_bytes(data, REQUEST)
        except DecodeError as error:
            return str(error)
