"""Requests that go on without their client: their process died, or stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asgi_durable.engine.active_runs import ActiveRuns
from asgi_durable.engine.endings import Ending, Finished, Interrupted
from asgi_durable.engine.execution_spans import keep_span, observed_run
from asgi_durable.engine.request_run import RequestRun
from asgi_durable.engine.retention import Retention
from asgi_durable.engine.run import Run, Services
from asgi_durable.engine.streams import StreamLog
from asgi_durable.errors import WorkflowInterruptedError

__all__ = ["RecoveredRequests"]

logger = logging.getLogger(__name__)

# How many processes in a row a request may kill; from then on it waits for its client.
MAX_CRASHES = 20


class RecoveredRequests:
    """Runs requests of other executors, once each: one that fails waits for its client.

    Attributes:
        on_recorded: Told of a request whose answer is recorded as a stream, piece by piece.
    """

    def __init__(self, services: Services, active: ActiveRuns) -> None:
        self._services = services
        self._active = active
        self.on_recorded: Callable[[str], None] = lambda _: None

    async def drive(self, run: Run) -> Ending:
        """Go on after the log."""
        server, data = self._services.registry.request_servers.only, run.workflow.input
        requests: list[RequestRun] = []

        def begin(retention: Retention) -> RequestRun:
            stream = StreamLog(run, self.on_recorded)
            requests.append(RequestRun(run, self._active, retention, stream))
            return requests[-1]

        if server is None or data is None or run.workflow.crashes > MAX_CRASHES:
            reason = "its app is not served here" if server is None else "its request is not kept"
            if run.workflow.crashes > MAX_CRASHES:
                reason = f"{run.workflow.crashes} processes in a row died while they ran it"
            logger.error("Request %s is left to its client: %s", run.workflow_id, reason)
            await begin(Retention()).leave_for_retry()
        else:
            logger.info("Request %s goes on without its client", run.workflow_id)
            with observed_run(run) as observed:
                keep_span(run, observed.begin())
                await server.resume(data, begin)
                ending = requests[-1].ending if requests else None
                if isinstance(ending, Finished):
                    observed.ended(ending.state.value)
        ending = requests[-1].ending if requests else None
        return ending or run.stopped or Interrupted(_unanswered(run))


def _unanswered(run: Run) -> WorkflowInterruptedError:
    return WorkflowInterruptedError(run.workflow_id, "its handler gave no answer")
