"""One execution of a workflow: its log, its place in it, and what is not durable yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from asgi_durable.engine.endings import Ending, Interrupted, OwnedElsewhereError, RunStopped
from asgi_durable.engine.execution_spans import go_on
from asgi_durable.engine.outbox import Outbox
from asgi_durable.engine.services import Services
from asgi_durable.engine.signal import Signal
from asgi_durable.engine.single_transaction import SingleTransaction
from asgi_durable.engine.sleepers import Sleeping
from asgi_durable.errors import (
    NonDeterministicWorkflowError,
    StorageError,
    WorkflowInterruptedError,
)
from asgi_durable.storage.records import StepRecord, StoredRun, WorkflowRecord
from asgi_durable.storage.writes import (
    DONE,
    CompleteStep,
    Outcome,
    OutcomeKind,
    RecordStep,
    Write,
)
from asgi_durable.telemetry_port import UNSEEN_RUN, ObservedRun

__all__ = ["Run", "Services"]

Entry = StepRecord | WorkflowRecord
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
        outbox: What is to be started with its end, if there is any.
        single_transaction: What a request is that makes no other durable call.
    """

    __slots__ = (
        "_children",
        "_guard",
        "_lane",
        "_log_length",
        "_not_durable",
        "_steps",
        "awaited",
        "caller",
        "calls",
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
        "outbox",
        "services",
        "settled_calls",
        "single_transaction",
        "sleeping",
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
        self.claimed: Signal[bool] = Signal(loop)
        self.ended: Signal[Ending] = Signal(loop)
        self.done: Signal[Ending] = Signal(loop)
        self.task: asyncio.Task[None] | None = None
        self.drive: Coroutine[Any, Any, Ending] | None = None
        self.stopped: Interrupted | None = None
        self.closed = False
        self._guard = services.guards.watch(loop)
        self._lane = services.committer.lane(loop)
        self._steps: Mapping[int, StepRecord] = _NOTHING
        self._children: Mapping[int, WorkflowRecord] = _NOTHING
        self.outbox: Outbox | None = None
        self.single_transaction: SingleTransaction | None = None
        self._log_length = self.calls = self.settled_calls = 0
        self.observed: ObservedRun = UNSEEN_RUN
        self.has_progressed = self.has_final_answer = False
        self._not_durable: list[Signal[Outcome]] = []
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
        return bool(self.calls > held or self._steps or self._children)

    @property
    def has_children(self) -> bool:
        """True if earlier executions have called or started workflows."""
        return bool(self._children)

    @property
    def entries(self) -> int:
        """How many entries earlier executions have left in the log."""
        return len(self._steps) + len(self._children)

    @property
    def is_replaying(self) -> bool:
        """True while the code has not come to the end of its log yet."""
        return self.calls < self._log_length

    def load(self, stored: StoredRun) -> None:
        """Take up the log of earlier executions, to be replayed from memory."""
        self.workflow, self.observed = stored.sound().workflow, UNSEEN_RUN
        self._steps = {step.step_number: step for step in stored.steps}
        self._children = {
            child.parent_step: child for child in stored.children if child.parent_step is not None
        }
        self._log_length = max((*self._steps, *self._children), default=-1) + 1

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

    def recorded_step(self, number: int, name: str, digest: bytes) -> StepRecord | None:
        """Return what is recorded at a place of the log, ``None`` for nothing.

        Raises:
            NonDeterministicWorkflowError: Something else is recorded there.
        """
        step = self._steps.get(number)
        if step is None:
            self._refuse_other(number, self._children.get(number), f"step {name!r}")
            return None
        self.refuse_other_step(step, name, digest)
        return step

    def refuse_other_step(self, step: StepRecord, name: str, digest: bytes) -> None:
        """Raise ``NonDeterministicWorkflowError`` if a record is another call's."""
        number = step.step_number
        if step.name != name:
            raise self._diverged(number, f"step {step.name!r}", f"step {name!r}")
        if step.digest != digest:
            recorded = f"step {name!r} with other arguments (digest {step.digest.hex()})"
            raise self._diverged(number, recorded, f"step {name!r} (digest {digest.hex()})")

    def refuse_other_child(self, number: int, name: str, workflow_id: str) -> None:
        """Raise if another call than that of this workflow, by its id, is recorded there."""
        called = f"workflow {name!r} with the id {workflow_id!r}"
        self._refuse_other(number, self._steps.get(number), called)
        child = self._children.get(number)
        if child is not None and (child.name, child.workflow_id) != (name, workflow_id):
            recorded = f"workflow {child.name!r} with the id {child.workflow_id!r}"
            raise self._diverged(number, recorded, called)

    def recorded_child(self, number: int, name: str, data: bytes) -> WorkflowRecord | None:
        """Return the child that was called at a place of the log, ``None`` for nothing.

        Raises:
            NonDeterministicWorkflowError: Something else is recorded there.
        """
        child = self._children.get(number)
        if child is None:
            self._refuse_other(number, self._steps.get(number), f"workflow {name!r}")
            return None
        if (child.name, child.input) != (name, data):
            what = " with other arguments" if child.name == name else ""
            raise self._diverged(number, f"workflow {child.name!r}{what}", f"workflow {name!r}")
        return child

    def unused_log(self) -> Interrupted | None:
        """Stop the run if its code has ended before it came to the end of its log."""
        numbers = [n for n in (*self._steps, *self._children) if n >= self.calls]
        if numbers:
            number = min(numbers)
            entry = self._steps.get(number) or self._children[number]
            self._diverged(number, repr(entry.name), "nothing, as it has ended")
        return self.stopped

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
            finished_at_us=time.time_ns() // 1000,
        )

    def depend_on(self, other: Run) -> None:
        """Let this run go on only when what *other* has written so far is durable.

        Raises:
            RunStopped: Part of it is not, and will not be.
        """
        with contextlib.suppress(RunStopped):
            other._forget_durable_writes()
        # Both stop: this may be called by the code of either, parent or child.
        if other.stopped is not None:
            raise self.stop(other.stopped.error, goes_on=other.stopped.goes_on)
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
            waiting: list[Signal[Outcome]] = []
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
            self.stop(WorkflowInterruptedError(self.workflow_id, reason), goes_on=True)
        return self.stopped

    def check(self, outcome: Outcome) -> None:
        """Stop the run if a write did not apply.

        Raises:
            RunStopped: It did not.
        """
        if outcome is DONE or outcome.kind in (OutcomeKind.DONE, OutcomeKind.RESUMED):
            return
        if outcome.kind is OutcomeKind.UNAVAILABLE:
            raise self.stop(outcome.error or StorageError("no storage"), goes_on=True)
        if outcome.kind is OutcomeKind.REJECTED:
            msg = f"workflow {self.workflow_id!r}: the database cannot hold a record"
            raise self.stop(StorageError(f"{msg}: {outcome.error}"))
        raise self.stop(OwnedElsewhereError(self.workflow_id))

    def stop(self, error: Exception, *, goes_on: bool = False) -> RunStopped:
        """Forbid the run to go on; the first reason counts. Returns what to raise."""
        if self.stopped is None:
            self.stopped = Interrupted(error, goes_on)
        return RunStopped()

    def cancel(self) -> None:
        """Cancel its task, and whoever sleeps for it in another one."""
        if self.task is not None:
            self.task.cancel()
        if self.sleeping is not None:
            self.sleeping.wake()

    def end(self, ending: Ending) -> None:
        """Publish how the body ended."""
        self.closed = True
        self.claimed.set(False)
        self.ended.set(ending)

    def finish(self, ending: Ending) -> None:
        """Publish the ending that stands."""
        self.end(ending)
        self.done.set(ending)

    def _refuse_other(self, number: int, other: Entry | None, called: str) -> None:
        if other is not None:
            kind = "step" if isinstance(other, StepRecord) else "workflow"
            raise self._diverged(number, f"{kind} {other.name!r}", called)

    def _diverged(self, number: int, recorded: str, called: str) -> Exception:
        error = NonDeterministicWorkflowError(
            self.workflow_id, number, recorded=recorded, called=called
        )
        # The code may catch the error; it must not go on all the same.
        self.stop(error)
        return error
