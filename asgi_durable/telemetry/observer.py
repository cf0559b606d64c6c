"""The port between the engine and the code that makes spans and metrics of its work."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self

from asgi_durable.context import current_request
from asgi_durable.storage.records import WorkflowRecord

__all__ = [
    "NO_OBSERVER",
    "NO_TELEMETRY",
    "UNSEEN_RUN",
    "Observed",
    "ObservedRun",
    "Observer",
    "TelemetrySource",
    "current_request_span",
]

# The span of the current request, opened by the library or by an instrumentation.
current_request_span: ContextVar[Any] = ContextVar(
    "asgi_durable_current_request_span", default=None
)


class Observed:
    """Observes a step or a run, and does nothing; an exception out of the block is a failure."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""


class ObservedRun(Observed):
    """Observes one execution of a workflow, and does nothing.

    Attributes:
        span: The execution's span, ``None`` where there is none.
    """

    __slots__ = ()
    span: Any = None

    def begin(self) -> str | None:
        """Start its span where the workflow is called, before its row is written.

        The block need not be entered after that: then the span is not exported.

        Returns:
            The span's trace context as a workflow stores it, ``None`` if nothing is recorded.
        """
        return None

    def replayed(self) -> None:
        """Its code has come to the end of its log, and continues from there."""

    def suspended(self, until_us: int) -> None:
        """It sleeps from now on, unless it does already.

        Args:
            until_us: When its first sleep ends; microseconds since 1970, UTC.
        """

    def continued(self) -> str | None:
        """It does not sleep any more, if it did.

        Returns:
            The trace context of the span that begins now, as of :meth:`begin`.
        """
        return None

    def failed(self, error: Exception) -> None:
        """The workflow has raised an error."""

    def ended(self, outcome: str) -> None:
        """It ended with the workflow's state; otherwise it is interrupted."""


_UNSEEN = Observed()
UNSEEN_RUN = ObservedRun()


class Observer:
    """Observes the engine's work. This one does nothing; it is the base of the others."""

    def trace_context(self) -> str | None:
        """Return the trace context of the current code, as a workflow stores it.

        Without a tracer it is the one that the request's client has sent.
        """
        request = current_request.get()
        return request.trace_context if request is not None else None

    def request_span(self) -> str | None:
        """Return the trace context of the request's span, ``None`` if nothing is recorded."""
        return None

    def run(self, workflow: WorkflowRecord, *, entries: int) -> ObservedRun:
        """Return a block for one execution of a workflow.

        Args:
            workflow: Its row, as of this execution.
            entries: How many entries its log has by now, to be replayed.
        """
        return UNSEEN_RUN

    def step(self, workflow: WorkflowRecord, name: str, number: int, *, kind: str) -> Observed:
        """Return a block for a step whose body runs, all its attempts included.

        Args:
            workflow: The step's workflow.
            name: The step's name.
            number: The step's number in the log.
            kind: ``step`` or ``transaction``.
        """
        return _UNSEEN

    def step_is_tried_again(self, name: str, error: Exception) -> None:
        """An attempt of the current step failed, and is not the last one."""

    def attempt_begins(self, number: int) -> None:
        """Another attempt of the current step begins; the first has number 1."""

    def committed(self, writes: int, seconds: float) -> None:
        """One commit of several writes took some seconds."""

    def taken_over(self, workflow: WorkflowRecord, *, lag_seconds: float) -> None:
        """Another executor's workflow continues here.

        Args:
            workflow: The workflow.
            lag_seconds: The time from when it was free to the beginning of the execution.
        """

    def workflow_ended(self, workflow: WorkflowRecord, outcome: str) -> None:
        """A workflow has an outcome, which is durable.

        Args:
            workflow: Its row, as of its last execution.
            outcome: Its state.
        """

    def lease_lost(self) -> None:
        """This process was declared dead, and continues as another executor."""

    def request_claimed(
        self,
        outcome: str,
        workflow: WorkflowRecord | None,
        *,
        waited_seconds: float | None = None,
    ) -> None:
        """The current request was claimed, or its key has been claimed before.

        Args:
            outcome: ``executed``, ``resumed``, ``replayed``, ``waited``, ``conflict``,
                ``mismatch`` or ``expired``.
            workflow: The workflow that has the key; ``None`` if the key belongs to another request.
                The last span of a resumed workflow is that of the execution before.
            waited_seconds: How long the request has waited for its duplicate, ``None`` if it
                has not.
        """


NO_OBSERVER = Observer()


class TelemetrySource(Protocol):
    """Gives the engine its observer, and owns the exporters behind it."""

    @property
    def observer(self) -> Observer:
        """Observes the engine's work from now on."""

    @property
    def baggage_keys(self) -> frozenset[str]:
        """Keys of the W3C baggage that workflows store."""

    def start(self) -> None:
        """Start the exporters, if there are any."""

    async def close(self) -> None:
        """Export the remaining spans and records."""


class NoTelemetry:
    """Observes nothing."""

    observer = NO_OBSERVER
    baggage_keys: frozenset[str] = frozenset()

    def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


NO_TELEMETRY: TelemetrySource = NoTelemetry()
