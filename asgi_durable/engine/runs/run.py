"""One execution of a workflow in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol

from asgi_durable.concurrency.once import Once
from asgi_durable.engine.process.definitions import TransactionDefinition
from asgi_durable.engine.replay.run_log import RunLog
from asgi_durable.engine.runs.outbox import Outbox
from asgi_durable.engine.runs.pending_writes import PendingWrites
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.runs.suspension import Sleeping
from asgi_durable.engine.stopping import Interrupted, RunStopped, StopSignal
from asgi_durable.storage.records import StepRecord, StoredRun, WorkflowRecord
from asgi_durable.storage.writes import CompleteStep, FinishWorkflow, RecordStep, SetLastSpan
from asgi_durable.telemetry.observer import UNSEEN_RUN, ObservedRun

__all__ = ["OnlyTransaction", "Run"]


class OnlyTransaction(Protocol):
    """The one transaction that a request consists of."""

    @property
    def is_held(self) -> bool:
        """True while there is something to commit with the response."""

    def call(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call the transaction."""

    def refusal(self) -> Exception:
        """Return the error of any other durable call."""

    async def answer(self, end: FinishWorkflow) -> None:
        """Commit the transaction together with the response."""

    async def roll_back(self) -> None:
        """Roll the transaction back."""


class Run:
    """One execution of a workflow in this process.

    Args:
        services: The parts that all runs share.
        workflow: The workflow's row, as of this execution.
        loop: The event loop that the run belongs to.
        executor_id: The name that the run writes under; the process's by default.
        replays_for: The caller of a run over the log of a workflow that has ended: the run stops
            with it.

    Attributes:
        workflow_id: The workflow's id.
        log: The recorded calls of the workflow, and how far the code has come in them.
        writes: The writes of this run that are not durable yet.
        stopping: Set when the run must not continue.
        claimed: True once this run may execute the workflow; False if it ended before that.
        ended: How the run ended, once the body is over; it may not be durable yet.
        done: How the run ended, once that is durable.
        task: The task that executes the run, while it does.
        closed: True once calls made in the run's context do not belong to it any more.
        has_progressed: True once this run has recorded a step.
        has_final_response: True once a request's handler has said that its response is final.
        observed: Observes this execution.
        sleeping: The run's sleeps, once it has any.
        awaited: The runs of this process that this run waits for.
        caller: The run that waits for this one.
        outbox: The workflows to start with the end of this run, if there are any.
        single_transaction: The only durable call that a request may make, where it may make one.
    """

    __slots__ = (
        "_drive",
        "awaited",
        "caller",
        "claimed",
        "closed",
        "done",
        "ended",
        "executor_id",
        "has_final_response",
        "has_progressed",
        "log",
        "loop",
        "observed",
        "outbox",
        "services",
        "single_transaction",
        "sleeping",
        "stopping",
        "task",
        "workflow",
        "workflow_id",
        "writes",
    )

    def __init__(
        self,
        services: Services,
        workflow: WorkflowRecord,
        loop: asyncio.AbstractEventLoop,
        *,
        executor_id: str | None = None,
        replays_for: Run | None = None,
    ) -> None:
        self.workflow_id = workflow_id = workflow.workflow_id
        self.services = services
        self.workflow = workflow
        # A row that names its owner counts: the process may be about to change its name.
        self.executor_id = executor_id or services.executor.id
        self.loop = loop
        has_ended = replays_for is not None
        outer = replays_for.stopping if replays_for is not None else None
        self.stopping: StopSignal = StopSignal(workflow_id, services.guards.watch(loop), outer)
        self.log = RunLog(
            workflow_id, services.registry.values, loop, self.stopping, has_ended=has_ended
        )
        self.writes = PendingWrites(workflow_id, services.committer, loop, self.stopping)
        self.claimed: Once[bool] = Once(loop)
        self.ended: Once[RunEnd] = Once(loop)
        self.done: Once[RunEnd] = Once(loop)
        self.task: asyncio.Task[None] | None = None
        self._drive: Coroutine[Any, Any, RunEnd] | None = None
        self.closed = self.has_progressed = self.has_final_response = False
        self.observed: ObservedRun = UNSEEN_RUN
        self.sleeping: Sleeping | None = None
        self.awaited: tuple[Run, ...] = ()
        self.caller: Run | None = None
        self.outbox: Outbox | None = None
        self.single_transaction: OnlyTransaction | None = None

    def load(self, stored: StoredRun) -> None:
        """Take over the row and the log of earlier executions."""
        self.workflow, self.observed = stored.sound().workflow, UNSEEN_RUN
        self.log.load(stored)

    def count_attempt(self) -> None:
        """Count this execution, which the row does not count yet."""
        self.workflow = replace(self.workflow, attempts=self.workflow.attempts + 1)

    def set_fingerprint(self, fingerprint: str) -> None:
        """Replace the fingerprint of the run's request."""
        self.workflow = replace(self.workflow, fingerprint=fingerprint)

    def mark_response_final(self) -> None:
        """Record that the request's handler calls its response final."""
        self.has_final_response = True

    # Durable calls

    def next_number(self) -> int:
        """Take the next number in the log for a call.

        Raises:
            DurableUsageError: The request is a single transaction.
            RunStopped: The run must not continue, or is over.
        """
        if self.single_transaction is not None:
            raise self.single_transaction.refusal()
        if self.outbox is not None:
            for step in self.outbox.take_unrecorded():
                self.submit_step(step)
        if self.sleeping is not None:
            self.continue_span()
        log = self.log
        number = log.next_number()
        if number == log.length != 0:
            self.observed.replayed()
        return number

    def submit_step(self, step: StepRecord, *, has_begun: bool = False) -> None:
        """Submit a step's record.

        Args:
            step: The record.
            has_begun: True for the outcome of a step whose beginning is recorded.

        Raises:
            RunStopped: The run must not continue, or is over.
        """
        if self.closed:
            raise RunStopped
        self.stopping.raise_if_stopped()
        self.has_progressed = True
        write = CompleteStep if has_begun else RecordStep
        self.writes.submit(write(step, self.executor_id))

    def mark_progress(self) -> None:
        """Record that a step of this run is in the log, by another way than its writes."""
        self.has_progressed = True

    @property
    def has_recorded(self) -> bool:
        """True once a step or child of the workflow is in the log, or on its way there."""
        held = self.outbox.places_held if self.outbox is not None else 0
        return bool(self.log.calls > held or self.log.entries)

    def open_outbox(self) -> Outbox:
        """Return the outbox of this run, a new one if it has none."""
        if self.outbox is None:
            registry, executor_id = self.services.registry, self.executor_id
            self.outbox = Outbox(self.log, self.stopping, registry, executor_id)
        return self.outbox

    def limit_to(self, transaction: OnlyTransaction) -> None:
        """Let the run make no durable call but this transaction."""
        self.single_transaction = transaction

    def lift_limit(self) -> None:
        """Let the run make any durable call again."""
        self.single_transaction = None

    # Stopping

    @property
    def stopped(self) -> Interrupted | None:
        """Why the run must stop, as far as is known without a look at its event loop."""
        return self.stopping.reason

    def depend_on(self, other: Run) -> None:
        """Let this run continue only when the writes of another run so far are durable.

        Raises:
            RunStopped: One of them is lost.
        """
        self.writes.depend_on(other.writes)

    def stop(self, error: Exception, *, retry_here: bool = False) -> RunStopped:
        """Forbid the run to continue; the first reason counts. Return the exception to raise."""
        return self.stopping.stop(error, retry_here=retry_here)

    def cancel(self) -> None:
        """Cancel the run's task, and its sleeps in other tasks."""
        if self.task is not None:
            self.task.cancel()
        if self.sleeping is not None:
            self.sleeping.wake()

    # The task

    def begin(self, task: asyncio.Task[None], drive: Coroutine[Any, Any, RunEnd]) -> None:
        """Set the task that executes the run, and the coroutine that the task awaits."""
        self.task = task
        self._drive = drive

    def drop_task(self) -> None:
        """Drop the task, which is over.

        The task refers to its run through its context: only the collector would free both.
        """
        self.task = None

    def drop_drive(self) -> None:
        """Close the coroutine of a task that was cancelled before its first turn."""
        if self._drive is not None:
            self._drive.close()

    def leave_unfinished(self, ending: RunEnd) -> None:
        """Publish how the run ends although its body still runs.

        Invariant: the run is not closed. Calls that its code still makes are refused, instead of
        being plain calls outside of any run.
        """
        self.claimed.set(False)
        self.ended.set(ending)
        self.done.set(ending)

    def end(self, ending: RunEnd) -> None:
        """Publish how the body ended."""
        self.closed = True
        self.log.end()
        self.claimed.set(False)
        self.ended.set(ending)

    def finish(self, ending: RunEnd) -> None:
        """Publish how the run ended, now that this is durable."""
        self.end(ending)
        self.done.set(ending)
        # The sleeps refer to their run: only the collector would free both.
        self.sleeping = None
        self.log.listen(None)

    # Runs that wait for each other, and sleep

    def add_awaited(self, other: Run) -> None:
        """Record that this run waits for another one."""
        other.caller = self
        self.awaited = (*self.awaited, other)

    def remove_awaited(self, other: Run) -> None:
        """Record that this run does not wait for another one any more."""
        other.caller = None
        self.awaited = tuple(run for run in self.awaited if run is not other)

    def sleeps(self) -> Sleeping:
        """Return the run's sleeps."""
        if self.sleeping is None:
            self.sleeping = Sleeping(self, self.services.sleepers)
            self.log.listen(self.sleeping)
        return self.sleeping

    # Spans

    def observe(self) -> ObservedRun:
        """Return the block that observes this execution."""
        if self.observed is UNSEEN_RUN:
            observer = self.services.telemetry.observer
            self.observed = observer.run(self.workflow, entries=self.log.entries)
        return self.observed

    def begin_span(self) -> None:
        """Begin the span of a run whose row is not written yet, and name it in that row.

        So the span needs no write of its own, and none that can get lost.
        """
        span = self.observe().begin()
        if span is not None:
            self.workflow = replace(self.workflow, last_span=span)

    def record_span(self, span: str | None) -> None:
        """Let the workflow's row name a span, unless it does already.

        Nothing waits for the write. If it is lost, the next execution is linked to the span
        before this one.
        """
        if span is not None and span != self.workflow.last_span:
            self.writes.submit_unneeded(SetLastSpan(self.workflow_id, self.executor_id, span))

    def continue_span(self) -> None:
        """Begin the next span of a run that was asleep.

        Its callers come first: they do not sleep any more either, and their spans are the
        parents of its span.
        """
        if self.caller is not None:
            self.caller.continue_span()
        self.record_span(self.observed.continued())
