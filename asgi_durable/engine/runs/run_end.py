"""How the run of a workflow can end."""

from __future__ import annotations

from asgi_durable.errors import WorkflowCancelledError, WorkflowInterruptedError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import WorkflowRecord, WorkflowState

__all__ = [
    "CancelledElsewhereError",
    "Completed",
    "Interrupted",
    "OwnedElsewhereError",
    "RunEnd",
    "RunStopped",
    "finished",
    "refuse_cancelled",
]


@fast_dataclass()
class Completed:
    """A workflow's outcome, encoded.

    Attributes:
        name: Of the workflow's function.
    """

    name: str
    state: WorkflowState
    output: bytes | None
    error: bytes | None


@fast_dataclass()
class Interrupted:
    """A run that ended without an outcome; its log stays and the workflow is PENDING.

    Attributes:
        error: What the caller is told.
        retry_here: True if this process should run it again by itself.
        is_released: True if its row says already that anybody may run it.
    """

    error: Exception
    retry_here: bool = False
    is_released: bool = False

    @property
    def is_owned_elsewhere(self) -> bool:
        """True if another executor runs the workflow, or has finished it."""
        return isinstance(self.error, OwnedElsewhereError)


RunEnd = Completed | Interrupted


class RunStopped(BaseException):
    """Unwinds the code of a run that must not go on.

    Not an ``Exception``: ``except Exception`` in a workflow must not swallow it and take a
    failing database for a result.
    """


class OwnedElsewhereError(WorkflowInterruptedError):
    """The workflow is another executor's, or was cancelled; its row tells the outcome."""

    def __init__(self, workflow_id: str, reason: str = "another executor owns it") -> None:
        super().__init__(workflow_id, reason)


class CancelledElsewhereError(OwnedElsewhereError):
    """The workflow was cancelled, and its row says so."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id, "it was cancelled")


def finished(workflow: WorkflowRecord) -> Completed:
    """Return the outcome of a workflow that has one."""
    return Completed(workflow.name, workflow.state, workflow.output, workflow.error)


def refuse_cancelled(ending: Completed, workflow_id: str) -> None:
    """Raise if the outcome of a workflow is that it was cancelled."""
    if ending.state is WorkflowState.CANCELLED:
        raise WorkflowCancelledError(workflow_id)
