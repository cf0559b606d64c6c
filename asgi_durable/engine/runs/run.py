"""One execution of a workflow: its log, its place in it, and what is not durable yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from asgi_durable.concurrency.once import Once
from asgi_durable.engine.replay.result_order import ResultOrder, latest_time_us, recorded_order
from asgi_durable.engine.runs.outbox import Outbox
from asgi_durable.engine.runs.run_end import Interrupted, OwnedElsewhereError, RunEnd, RunStopped
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.runs.spans import go_on
from asgi_durable.engine.runs.suspension import Sleeping
from asgi_durable.engine.steps.single_transaction import SingleTransaction
from asgi_durable.errors import StorageError, WorkflowInterruptedError
from asgi_durable.storage.records import StepRecord, StoredRun, WorkflowRecord
from asgi_durable.storage.writes import (
    DONE,
    CompleteStep,
    Outcome,
    OutcomeKind,
    RecordStep,
    Write,
)
from asgi_durable.telemetry.observer import UNSEEN_RUN, ObservedRun

__all__ = ["Run", "Services"]

# Of a fresh run.
_NOTHING: Mapping[int, Any] = MappingProxyType({})


class Run:
    """One execution of a workflow, in this process.

    Attributes:
        workflow: Its row, as of this execution.
        executor_id: On whose behalf it writes, to its end.
        claimed: True once it is this execution's to run; False if it ended before that.
        ended: The ending once the body is over; it may not be durable yet.
        done: The ending once it is durable.
        task: What it runs in, while it runs; drive: what that runs.
        stopped: Set when the execution must not go on.
        has_progressed: True once this execution has recorded a step.
        observed: What is told of this execution.
        has_final_answer: True once a request's handler has said that its answer is final.
        closed: True once calls made in its context do not belong to it any more.
        calls: How many places in its log are given out; settled_calls: how many are over.
        sleeping: Its sleeps, once it has any.
        awaited: Runs of this process whose ends it waits for; caller: the one that waits for its.
        steps, children: What earlier executions have left in its log, by their numbers.
        order: In which order its results are handed out, once that is a question.
        outbox: What is to be started with its end, if there is any.
        single_transaction: What a request is that makes no other durable call.
    """

    # True for one over the log of a workflow that has ended: it records nothing more.
    has_ended = False

    __slots__ = (
        "_guard",
        "_lane",
        "_last_time_us",
        "_log_length",
        "_not_durable",
        "awaited",
        "caller",
        "calls",
        "children",
        "claimed",
        "closed",
        "done",
        "drive",
        "ended",
        "executor_id",
        "has_final_answer",
        "has_progressed",
        "loop",
        "observed",
        "order",
        "outbox",
        "services",
        "settled_calls",
        "single_transaction",
        "sleeping",
        "steps",
        "stopped",
        "task",
        "workflow",
    )

    def __init__(
        self,
        services: Services,
        workflow: WorkflowRecord,
        loop: asyncio.AbstractEventLoop,
        *,
        executor_id: str | None = None,
    ) -> None:
        self.services = services
        self.workflow = workflow
        # Where the row names its owner already: the process may go on as another one just now.
        self.executor_id = executor_id or services.executor.id
        self.loop = loop
        self.claimed: Once[bool] = Once(loop)
        self.ended: Once[RunEnd] = Once(loop)
        self.done: Once[RunEnd] = Once(loop)
        self.task: asyncio.Task[None] | None = None
        self.drive: Coroutine[Any, Any, RunEnd] | None = None
        self.stopped: Interrupted | None = None
        self.closed = False
        self._guard = services.guards.watch(loop)
        self._lane = services.committer.queue(loop)
        self.steps: Mapping[int, StepRecord] = _NOTHING
        self.children: Mapping[int, WorkflowRecord] = _NOTHING
        self.outbox: Outbox | None = None
        self.single_transaction: SingleTransaction | None = None
        self._log_length = self.calls = self.settled_calls = self._last_time_us = 0
        self.order: ResultOrder | None = None
        self.observed: ObservedRun = UNSEEN_RUN
        self.has_progressed = self.has_final_answer = False
        self._not_durable: list[Once[Outcome]] = []
        self.sleeping: Sleeping | None = None
        self.awaited: tuple[Run, ...] = ()
        self.caller: Run | None = None

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self.workflow.workflow_id

    @property
    def has_recorded(self) -> bool:
        """True once a step or child of this workflow is in the log, or on its way there."""
        held = self.outbox.places_held if self.outbox is not None else 0
        return bool(self.calls > held or self.steps or self.children)

    @property
    def entries(self) -> int:
        """How many entries earlier executions have left in the log."""
        return len(self.steps) + len(self.children)

    @property
    def is_replaying(self) -> bool:
        """True while the code has not come to the end of its log yet."""
        return self.calls < self._log_length

    @property
    def has_other_calls(self) -> bool:
        """True if the call that is about to end is not the only one under way."""
        return self.calls - self.settled_calls > 1

    def load(self, stored: StoredRun) -> None:
        """Take up the log of earlier executions, to be replayed from memory."""
        self.workflow, self.observed = stored.sound().workflow, UNSEEN_RUN
        self.steps = {step.step_number: step for step in stored.steps}
        self.children = {
            child.parent_step: child for child in stored.children if child.parent_step is not None
        }
        self._log_length = max((*self.steps, *self.children), default=-1) + 1
        order = recorded_order(self.services.registry.values, stored.steps, stored.children)
        self.order = ResultOrder(self, order) if order else None
        self._last_time_us = latest_time_us(stored.steps, stored.children)

    def next_number(self) -> int:
        """Give out the next place in the log.

        Invariant: called when a step is *called*, before its coroutine runs, so that steps
        under ``asyncio.gather`` have the same numbers in whatever order they finish.
        """
        if self.single_transaction is not None:
            raise self.single_transaction.refusal()
        if self.outbox is not None:
            self.outbox.record_places()
        if self.sleeping is not None:
            go_on(self)
        if self.calls == self._log_length != 0:
            self.observed.replayed()
        self.calls += 1
        return self.calls - 1

    def note_settled(self) -> None:
        """Take note that one of its calls is over."""
        self.settled_calls += 1
        if self.sleeping is not None:
            self.sleeping.look_soon(self)

    def submit(self, write: Write) -> None:
        """Hand a write to the committer; :meth:`settle` waits for it.

        Invariant: nothing is written after a write that got lost. The end of a workflow would
        stand although the record of a step is missing.

        Raises:
            RunStopped: A write before this one is known to be lost.
        """
        self._forget_durable_writes()
        self._not_durable.append(self.services.committer.submit(self._lane, write))

    async def commit(self, write: Write) -> Outcome:
        """Hand a write to the committer and return what became of it."""
        return await self.services.committer.submit(self._lane, write).wait()

    def submit_step(self, step: StepRecord, *, has_begun: bool = False) -> None:
        """Submit a step's record.

        Args:
            step: The record.
            has_begun: True for the outcome of a step of which it is recorded that it has begun.

        Raises:
            RunStopped: The run must not go on, or is over.
        """
        if self.closed:
            raise RunStopped
        self.refuse_if_stopped()
        self.has_progressed = True
        write = CompleteStep if has_begun else RecordStep
        self.submit(write(step, self.executor_id))

    def step_record(
        self, number: int, name: str, digest: bytes, *, output: bytes | None, error: bytes | None
    ) -> StepRecord:
        """Return the record of a step that has just finished, or begun."""
        return StepRecord(
            workflow_id=self.workflow_id,
            step_number=number,
            name=name,
            digest=digest,
            output=output,
            error=error,
            finished_at_us=self.next_time_us(),
        )

    def next_time_us(self) -> int:
        """Return the time now, or just after the latest record: later than any before.

        A clock may be set back, and the one of another machine may be ahead.
        """
        self._last_time_us = max(time.time_ns() // 1000, self._last_time_us + 1)
        return self._last_time_us

    def depend_on(self, other: Run) -> None:
        """Let this run go on only when what *other* has written so far is durable.

        Raises:
            RunStopped: Part of it is not, and will not be.
        """
        with contextlib.suppress(RunStopped):
            other._forget_durable_writes()
        # Both stop: this may be called by the code of either, parent or child.
        if other.stopped is not None:
            raise self.stop(other.stopped.error, retry_here=other.stopped.retry_here)
        self._not_durable.extend(other._not_durable)

    def is_all_durable(self) -> bool:
        """Tell whether everything submitted so far is known to be durable."""
        with contextlib.suppress(RunStopped):
            self._forget_durable_writes()
            return not self._not_durable
        return False

    async def settle(self) -> None:
        """Wait until everything submitted is durable.

        Invariant: awaited before the body of each step, and before a result is shown. Code
        between steps has no side effects, so nothing needs to be durable sooner.

        Raises:
            RunStopped: The run must not go on.
        """
        while self._not_durable:
            # The last first: what was submitted before it is settled by then.
            await self._not_durable[-1].wait()
            self._forget_durable_writes()
        self.refuse_if_stopped()

    def _forget_durable_writes(self) -> None:
        """Look at the writes that are settled; raise ``RunStopped`` if one of them is lost."""
        if self._not_durable:
            waiting: list[Once[Outcome]] = []
            for settled in self._not_durable:
                if settled.is_set():
                    self.check(settled.get())
                else:
                    waiting.append(settled)
            self._not_durable = waiting

    def refuse_if_stopped(self) -> None:
        """Raise ``RunStopped`` if the run must not go on, or its event loop is ending."""
        if self.interruption() is not None:
            raise RunStopped

    def is_loop_ending(self) -> bool:
        """Tell whether the run's event loop is being shut down."""
        return self._guard.cancelling() > 0

    def interruption(self) -> Interrupted | None:
        """Return why the run must not go on, ``None`` if it may."""
        if self.stopped is None and self.is_loop_ending():
            reason = "its event loop is ending"
            self.stop(WorkflowInterruptedError(self.workflow_id, reason), retry_here=True)
        return self.stopped

    def check(self, outcome: Outcome) -> None:
        """Stop the run if a write did not apply.

        Raises:
            RunStopped: It did not.
        """
        if outcome is DONE or outcome.kind in (OutcomeKind.DONE, OutcomeKind.RESUMED):
            return
        if outcome.kind is OutcomeKind.UNAVAILABLE:
            raise self.stop(outcome.error or StorageError("no storage"), retry_here=True)
        if outcome.kind is OutcomeKind.REJECTED:
            msg = f"workflow {self.workflow_id!r}: the database cannot hold a record"
            raise self.stop(StorageError(f"{msg}: {outcome.error}"))
        raise self.stop(OwnedElsewhereError(self.workflow_id))

    def stop(self, error: Exception, *, retry_here: bool = False) -> RunStopped:
        """Forbid the run to go on; the first reason counts. Returns what to raise."""
        if self.stopped is None:
            self.stopped = Interrupted(error, retry_here)
            if self.order is not None:
                with contextlib.suppress(RuntimeError):  # its event loop has ended
                    self.loop.call_soon_threadsafe(self.order.end)
        return RunStopped()

    def cancel(self) -> None:
        """Cancel its task, and whoever sleeps for it in another one."""
        if self.task is not None:
            self.task.cancel()
        if self.sleeping is not None:
            self.sleeping.wake()

    def end(self, ending: RunEnd) -> None:
        """Publish how the body ended."""
        self.closed = True
        if self.order is not None:
            self.order.end()
        self.claimed.set(False)
        self.ended.set(ending)

    def finish(self, ending: RunEnd) -> None:
        """Publish the ending that stands."""
        self.end(ending)
        self.done.set(ending)
