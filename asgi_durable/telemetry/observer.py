"""The port between the engine and whoever makes spans and figures of its work."""

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

# The span of the request being handled, whoever has opened it.
current_request_span: ContextVar[Any] = ContextVar(
    "asgi_durable_current_request_span", default=None
)


class Observed:
    """A piece of work that nobody looks at, as a block; an exception out of it is its failure."""

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
    """One execution of a workflow that nobody looks at.

    Attributes:
        span: The execution's span, ``None`` where there is none.
    """

    __slots__ = ()
    span: Any = None

    def begin(self) -> str | None:
        """Start its span where the workflow is called, before its row is written.

        The block need not be entered after that: then nothing is seen of the span.

        Returns:
            The span's trace context as a workflow keeps it, ``None`` if nothing is recorded.
        """
        return None

    def replayed(self) -> None:
        """Take note that its code has come to the end of its log, and goes on from there."""

    def suspended(self, until_us: int) -> None:
        """Take note that it sleeps from now on, unless it does already.

        Args:
            until_us: When its first sleep ends; microseconds since 1970, UTC.
        """

    def continued(self) -> str | None:
        """Take note that it sleeps no more, if it did.

        Returns:
            The trace context of the span that begins with it, as of :meth:`begin`.
        """
        return None

    def failed(self, error: Exception) -> None:
        """Take note of what the workflow has raised."""

    def ended(self, outcome: str) -> None:
        """Take note of how it ended: with the workflow's state, else it is interrupted."""


_UNSEEN = Observed()
UNSEEN_RUN = ObservedRun()


class Observer:
    """Is told of the engine's work. This one looks away; it is the base of those that do not."""

    def trace_context(self) -> str | None:
        """Return the trace context of the current code, as a workflow keeps it.

        Where nobody makes spans it is the one that the request's client has sent.
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
        """Return a block for a step that really runs, all its attempts included.

        Args:
            workflow: Whose step.
            name: The step's.
            number: Its place in the log.
            kind: ``step`` or ``transaction``.
        """
        return _UNSEEN

    def step_is_tried_again(self, name: str, error: Exception) -> None:
        """Take note that an attempt of the current step failed and is not the last one."""

    def attempt_begins(self, number: int) -> None:
        """Take note that another attempt of the current step begins; the first has number 1."""

    def committed(self, writes: int, seconds: float) -> None:
        """Take note of one commit of so many writes, and of how long it took."""

    def taken_over(self, workflow: WorkflowRecord, *, lag_seconds: float) -> None:
        """Take note that another executor's workflow goes on here.

        Args:
            workflow: Which one.
            lag_seconds: Since it was free, to the beginning of the execution.
        """

    def workflow_ended(self, workflow: WorkflowRecord, outcome: str) -> None:
        """Take note of the outcome of a workflow, now that it is durable.

        Args:
            workflow: Its row, as of its last execution.
            outcome: Its state.
        """

    def lease_lost(self) -> None:
        """Take note that this process was declared dead, and goes on as another executor."""

    def request_claimed(
        self,
        outcome: str,
        workflow: WorkflowRecord | None,
        *,
        waited_seconds: float | None = None,
    ) -> None:
        """Take note of what became of the claim of the request that is being handled.

        Args:
            outcome: ``executed``, ``resumed``, ``replayed``, ``waited``, ``conflict``,
                ``mismatch`` or ``expired``.
            workflow: The workflow that has the key; ``None`` if it is another request's. Of one
                that is resumed the last span is that of the execution before.
            waited_seconds: For how long it has waited for its twin, ``None`` if it has not.
        """


NO_OBSERVER = Observer()


class TelemetrySource(Protocol):
    """Where the engine's observer comes from, and the life of what it needs."""

    @property
    def observer(self) -> Observer:
        """Who is told of the engine's work from now on."""

    @property
    def baggage_keys(self) -> frozenset[str]:
        """Keys of the W3C baggage that workflows keep."""

    def start(self) -> None:
        """Get ready, where that takes more than looking for providers."""

    async def close(self) -> None:
        """Export what is left."""


class NoTelemetry:
    """Nobody looks."""

    observer = NO_OBSERVER
    baggage_keys: frozenset[str] = frozenset()

    def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


NO_TELEMETRY: TelemetrySource = NoTelemetry()
