"""A line in the program's log for each change of a request's state."""

from __future__ import annotations

import logging

from asgi_durable.engine.run import Run

__all__ = ["note"]

logger = logging.getLogger(__name__)


def note(run: Run, what: str) -> None:
    """Log what has become of a request."""
    workflow = run.workflow
    logger.debug(
        "Request %s, attempt %d, request id %s: %s",
        workflow.workflow_id,
        workflow.attempts,
        workflow.request_id,
        what,
    )
