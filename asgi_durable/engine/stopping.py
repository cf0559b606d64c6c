"""Stopping a run: why it must not continue, and what unwinds its code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.fast_dataclass import fast_dataclass

__all__ = [
    "CancelledElsewhereError",
    "Interrupted",
    "OwnedElsewhereError",
    "RunStopped",
    "StopSignal",
]


@fast_dataclass()
class Interrupted:
    """A run that ended without an outcome; its log stays and the workflow is PENDING.

    Attributes:
        error: The error that the run's caller gets.
        retry_here: True if this process should run the workflow again by itself.
        is_released: True if the workflow's row already says that any process may run it.
    """

    error: Exception
    retry_here: bool = False
    is_released: bool = False

    @property
    def is_owned_elsewhere(self) -> bool:
        """True if another executor runs the workflow, or has finished it."""
        return isinstance(self.error, OwnedElsewhereError)


class RunStopped(BaseException):
    """Unwinds the code of a run that must not continue.

    Not an ``Exception``: ``except Exception`` in a workflow must not swallow it and take a
    failing database for a result.
    """


class OwnedElsewhereError(WorkflowInterruptedError):
    """Another executor owns the workflow, or it was cancelled; its row tells the outcome."""

    def __init__(self, workflow_id: str, reason: str = "another executor owns it") -> None:
        super().__init__(workflow_id, reason)


class CancelledElsewhereError(OwnedElsewhereError):
    """The workflow was cancelled, and its row says so."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id, "it was cancelled")


class StopSignal:
    """Tells the parts of one run whether it must stop, and why. The first reason counts.

    Args:
        workflow_id: The run's workflow.
        guard: A task that is cancelled when the run's event loop ends.
        outer: The signal of a run that this run stops with.

    Attributes:
        reason: Why the run must stop, ``None`` if it may continue. :meth:`check` also looks at
            the event loop and the outer run.
    """

    __slots__ = ("_guard", "_on_stop", "_outer", "_workflow_id", "reason")

    def __init__(
        self, workflow_id: str, guard: asyncio.Task[None], outer: StopSignal | None = None
    ) -> None:
        self._workflow_id = workflow_id
        self._guard = guard
        self._outer = outer
        self._on_stop: Callable[[], None] | None = None
        self.reason: Interrupted | None = None

    def stop(self, error: Exception, *, retry_here: bool = False) -> RunStopped:
        """Forbid the run to continue; return the exception to raise."""
        if self.reason is None:
            self.reason = Interrupted(error, retry_here)
            if self._on_stop is not None:
                self._on_stop()
        return RunStopped()

    def check(self) -> Interrupted | None:
        """Return why the run must stop, ``None`` if it may continue."""
        if self.reason is None:
            if self._guard.cancelling() > 0:
                ending = WorkflowInterruptedError(self._workflow_id, "its event loop is ending")
                self.stop(ending, retry_here=True)
            elif self._outer is not None and (reason := self._outer.check()) is not None:
                self.stop(reason.error, retry_here=reason.retry_here)
        return self.reason

    def is_loop_ending(self) -> bool:
        """Tell whether the run's event loop is being shut down."""
        return self._guard.cancelling() > 0

    def raise_if_stopped(self) -> None:
        """Raise ``RunStopped`` if the run must stop."""
        if self.check() is not None:
            raise RunStopped

    def call_on_stop(self, callback: Callable[[], None]) -> None:
        """Call a function when the run is stopped, on the thread that stops it."""
        self._on_stop = callback

    def forget_callback(self) -> None:
        """Call no function when the run is stopped any more."""
        self._on_stop = None
