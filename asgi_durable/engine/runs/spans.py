"""Which spans an execution has, and which of them its workflow's row names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgi_durable.storage.writes import SetLastSpan
from asgi_durable.telemetry.observer import UNSEEN_RUN, ObservedRun

if TYPE_CHECKING:
    from asgi_durable.engine.runs.run import Run

__all__ = ["go_on", "keep_span", "observed_run"]


def observed_run(run: Run) -> ObservedRun:
    """Return the block for an execution, which may have been made with its row."""
    if run.observed is UNSEEN_RUN:
        observer = run.services.telemetry.observer
        run.observed = observer.run(run.workflow, entries=run.entries)
    return run.observed


def keep_span(run: Run, span: str | None) -> None:
    """Let a workflow's row name a span, if it does not already.

    Nobody waits for that, and it does not matter to anybody if it gets lost: the next execution
    is linked to the one before then.
    """
    if span is not None and span != run.workflow.last_span:
        committer = run.services.committer
        write = SetLastSpan(run.workflow_id, run.executor_id, span)
        committer.submit(committer.queue(run.loop), write)


def go_on(run: Run) -> None:
    """Begin the next span of a run that was asleep, and before that those of its callers.

    They sleep no more either, and its span belongs below theirs.
    """
    if run.caller is not None:
        go_on(run.caller)
    keep_span(run, run.observed.retry_here())
