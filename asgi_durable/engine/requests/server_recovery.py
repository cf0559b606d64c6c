"""Requests that continue without their client: their process died, or stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asgi_durable.codec.sealing.sealer import REQUEST
from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.request_servers import RequestServers
from asgi_durable.engine.requests.response_commit import ResponseCommit
from asgi_durable.engine.requests.response_streams import StreamLog
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, RunEnd
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import Interrupted
from asgi_durable.errors import DecodeError, WorkflowInterruptedError

__all__ = ["RecoveredRequests"]

logger = logging.getLogger(__name__)

# How many processes in a row a request may kill; from then on it waits for its client.
MAX_CRASHES = 20


class RecoveredRequests:
    """Runs requests of other executors, once each: a request that fails waits for its client.

    Attributes:
        on_recorded: Called with a request's id after each chunk of its response that is recorded.
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
            stream = StreamLog(run, self.on_recorded)
            requests.append(ResponseCommit(run, self._active, retention, stream))
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
                ending = requests[-1].ending if requests else None
                if isinstance(ending, Completed):
                    observed.ended(ending.state.value)
        ending = requests[-1].ending if requests else None
        return ending or run.stopped or Interrupted(_without_response(run))

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


def _without_response(run: Run) -> WorkflowInterruptedError:
    return WorkflowInterruptedError(run.workflow_id, "its handler sent no response")
