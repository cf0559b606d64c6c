"""The log of one run: what earlier executions recorded, and how far its code has come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.codec.values import Values
from asgi_durable.engine.process.definitions import Definition, WorkflowDefinition
from asgi_durable.engine.process.recorded_errors import read_error
from asgi_durable.engine.replay.result_order import ResultOrder, latest_time_us, recorded_order
from asgi_durable.engine.stopping import Interrupted, StopSignal
from asgi_durable.errors import DecodeError, NonDeterministicWorkflowError
from asgi_durable.storage.records import StepRecord, StoredRun, WorkflowRecord

__all__ = ["END_OF_LOG", "CallListener", "RunLog"]

# The log of a first execution.
_NO_ENTRIES: Mapping[int, Any] = MappingProxyType({})
# Stands in messages for the call after the last entry of an ended workflow.
END_OF_LOG = "nothing, as the workflow has ended"


class CallListener(Protocol):
    """Follows the calls of a run, to see when the run does nothing but sleep."""

    def call_finished(self) -> None:
        """A call is over."""

    def wake_until(self, time_us: int) -> None:
        """A result of this time is waited for, so sleeps that end before it must look up."""


class RunLog:
    """The recorded calls of a workflow, in the order in which its code makes them again.

    Each durable call takes the next number, in the order of the calls. A number that an earlier
    execution has recorded gives back the recorded result; a later number is new.

    Args:
        workflow_id: The workflow.
        values: Reads recorded values.
        loop: The run's event loop.
        stopping: Stops the run when its code leaves the log.
        has_ended: True for the log of a workflow that has ended: nothing is recorded after it.

    Attributes:
        steps, children: The recorded entries, by number.
        calls: How many numbers are taken.
        finished_calls: How many of these calls are over.
        length: The number after the last recorded entry.
    """

    __slots__ = (
        "_has_ended",
        "_last_time_us",
        "_listener",
        "_loop",
        "_order",
        "_stopping",
        "_values",
        "calls",
        "children",
        "finished_calls",
        "length",
        "steps",
        "workflow_id",
    )

    def __init__(
        self,
        workflow_id: str,
        values: Values,
        loop: asyncio.AbstractEventLoop,
        stopping: StopSignal,
        *,
        has_ended: bool = False,
    ) -> None:
        self.workflow_id = workflow_id
        self._values = values
        self._loop = loop
        self._stopping = stopping
        self._has_ended = has_ended
        self.steps: Mapping[int, StepRecord] = _NO_ENTRIES
        self.children: Mapping[int, WorkflowRecord] = _NO_ENTRIES
        self.length = self.calls = self.finished_calls = self._last_time_us = 0
        self._order: ResultOrder | None = None
        self._listener: CallListener | None = None

    def load(self, stored: StoredRun) -> None:
        """Take over the entries of earlier executions, to be replayed from memory."""
        self.steps = {step.step_number: step for step in stored.steps}
        self.children = {
            child.parent_step: child for child in stored.children if child.parent_step is not None
        }
        self.length = max((*self.steps, *self.children), default=-1) + 1
        order = recorded_order(self._values, stored.steps, stored.children)
        if order:
            self._keep_order(ResultOrder(self.workflow_id, self._loop, order))
        self._last_time_us = latest_time_us(stored.steps, stored.children)

    def listen(self, listener: CallListener | None) -> None:
        """Let a listener follow the calls from here on; ``None`` for no listener."""
        self._listener = listener

    @property
    def entries(self) -> int:
        """How many entries earlier executions have recorded."""
        return len(self.steps) + len(self.children)

    @property
    def is_replaying(self) -> bool:
        """True while the code has not come to the end of the log yet."""
        return self.calls < self.length or self._has_ended

    # Calls and their numbers

    def next_number(self) -> int:
        """Take the next number.

        Invariant: called when a step is *called*, before its coroutine runs, so that steps
        under ``asyncio.gather`` have the same numbers in whatever order they finish.
        """
        number = self.calls
        self.calls = number + 1
        return number

    def finish_call(self) -> None:
        """Count a call as over."""
        self.finished_calls += 1
        if self._listener is not None:
            self._listener.call_finished()

    async def finish_in_turn(self, number: int, time_us: int) -> None:
        """Wait until it is the turn of a call's result, and count the call as over.

        Args:
            number: The call's number.
            time_us: The time of its record.

        Raises:
            RunStopped: The run must not continue.
        """
        # Without an order, and without other calls under way, nothing can be out of turn.
        if self._order is not None or self.calls - self.finished_calls > 1:
            await self.wait_for_turn(number, time_us)
        self.finish_call()

    async def wait_for_turn(self, number: int, time_us: int) -> None:
        """Wait until all earlier results are returned, and the code has reacted to them.

        Raises:
            RunStopped: The run must not continue.
        """
        order = self._order or self._keep_order(ResultOrder(self.workflow_id, self._loop))
        if not order.may_pass(number, time_us):
            if self._listener is not None:
                self._listener.wake_until(time_us)
            await order.wait(number, time_us)
            self._stopping.raise_if_stopped()
        order.passed(number, has_other_calls=self.calls - self.finished_calls > 1)

    def expect_result(self, number: int, time_us: int) -> None:
        """Let the results of later records wait for a result that has its time already."""
        order = self._order or self._keep_order(ResultOrder(self.workflow_id, self._loop))
        order.expect(number, time_us)

    def forget_result(self, number: int) -> None:
        """Let no result wait for that of a call any more."""
        if self._order is not None:
            self._order.forget(number)

    def expected_time_us(self, number: int) -> int | None:
        """Return the time that the result of a call already has, ``None`` if it has none."""
        return self._order.time_of(number) if self._order is not None else None

    def end(self) -> None:
        """Let every call that waits for its turn continue: the code is over, or stopped."""
        if self._order is not None:
            self._order.end()
            # The signal refers to this log: only the collector would free both.
            self._stopping.forget_callback()

    def _keep_order(self, order: ResultOrder) -> ResultOrder:
        self._order = order
        self._stopping.call_on_stop(self._end_soon)
        return order

    def _end_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self._loop.call_soon_threadsafe(self.end)

    # New records

    def new_record(
        self,
        number: int,
        name: str,
        digest: bytes,
        *,
        output: bytes | None = None,
        error: bytes | None = None,
    ) -> StepRecord:
        """Return the record of a step that has just finished, or has just begun."""
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

        A clock may be set back, and the clock of another machine may be ahead.
        """
        self._last_time_us = max(time.time_ns() // 1000, self._last_time_us + 1)
        return self._last_time_us

    # Recorded entries

    def step_at(self, number: int, name: str, digest: ArgumentDigest) -> StepRecord | None:
        """Return the recorded step of this number, ``None`` if the call is new.

        Raises:
            NonDeterministicWorkflowError: Another call is recorded there.
        """
        step = self.steps.get(number)
        if step is not None:
            self.check_step(step, name, digest)
            return step
        if self._has_ended or number in self.children:
            raise self._refused(number, f"step {name!r}")
        return None

    def check_step(self, step: StepRecord, name: str, digest: ArgumentDigest) -> None:
        """Raise ``NonDeterministicWorkflowError`` if a record belongs to another call."""
        number = step.step_number
        if step.name != name:
            raise self.divergence(number, f"step {step.name!r}", f"step {name!r}")
        if not digest.fits(step.digest):
            recorded = f"step {name!r} with other arguments (digest {step.digest.hex()})"
            raise self.divergence(number, recorded, f"step {name!r} (digest {digest.value.hex()})")

    def child_at(
        self, number: int, definition: WorkflowDefinition, data: bytes
    ) -> WorkflowRecord | None:
        """Return the recorded child of this number, ``None`` if the call is new.

        Raises:
            NonDeterministicWorkflowError: Another call is recorded there.
            RunStopped: The recorded arguments cannot be read.
        """
        name = definition.name
        child = self.children.get(number)
        if child is None:
            if self._has_ended or number in self.steps:
                raise self._refused(number, f"workflow {name!r}")
            return None
        if child.name != name or not self._has_input(child, definition, data):
            difference = " with other arguments" if child.name == name else ""
            recorded = f"workflow {child.name!r}{difference}"
            raise self.divergence(number, recorded, f"workflow {name!r}")
        return child

    def check_child(self, number: int, name: str, workflow_id: str) -> None:
        """Raise if this number is recorded for another call than that of this workflow."""
        called = f"workflow {name!r} with the id {workflow_id!r}"
        if number in self.steps:
            raise self._refused(number, called)
        child = self.children.get(number)
        if child is not None and (child.name, child.workflow_id) != (name, workflow_id):
            recorded = f"workflow {child.name!r} with the id {child.workflow_id!r}"
            raise self.divergence(number, recorded, called)

    def check_end(self) -> Interrupted | None:
        """Stop the run if its code has ended before the end of the log.

        Returns:
            Why the run must stop, ``None`` if it may end.
        """
        unused = [n for n in (*self.steps, *self.children) if n >= self.calls]
        if unused:
            number = min(unused)
            entry = self.steps.get(number) or self.children[number]
            self.divergence(number, repr(entry.name), "nothing, as it has ended")
        return self._stopping.reason

    def outcome(self, definition: Definition, output: bytes | None, error: bytes | None) -> Any:
        """Return the recorded result of a call, or raise its recorded error.

        Invariant: a record that this process cannot read is not an outcome of the workflow. The
        run stops, and a process whose code knows the record's classes continues it.
        """
        try:
            if error is None:
                return definition.values.read_result(output)
            failure = read_error(self._values, f"{definition.kind} {definition.name!r}", error)
        except DecodeError as damage:
            raise self._stopping.stop(damage) from damage
        raise failure

    def divergence(self, number: int, recorded: str, called: str) -> Exception:
        """Stop a run whose code has left its log; return the error to raise."""
        error = NonDeterministicWorkflowError(
            self.workflow_id, number, recorded=recorded, called=called
        )
        # The code may catch the error, and must not continue all the same.
        self._stopping.stop(error)
        return error

    def _refused(self, number: int, called: str) -> Exception:
        """Return the error of a call whose number belongs to another kind of call, or to none."""
        if (step := self.steps.get(number)) is not None:
            return self.divergence(number, f"step {step.name!r}", called)
        if (child := self.children.get(number)) is not None:
            return self.divergence(number, f"workflow {child.name!r}", called)
        # Nothing runs after the end of a workflow, as its effects would not be in the log.
        return self.divergence(number, END_OF_LOG, called)

    def _has_input(
        self, child: WorkflowRecord, definition: WorkflowDefinition, data: bytes
    ) -> bool:
        try:
            return definition.is_same_input(child.input or b"{}", data)
        except DecodeError as damage:
            # Invariant: arguments that cannot be read are no divergence; code that can read
            # them continues the workflow.
            raise self._stopping.stop(damage) from damage
