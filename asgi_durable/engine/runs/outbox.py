"""Workflows that a run starts with its own end, in the same commit."""

from __future__ import annotations

from dataclasses import replace

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.replay.run_log import RunLog
from asgi_durable.engine.stopping import StopSignal
from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.storage.records import StepRecord, WorkflowRecord

__all__ = ["Outbox"]


class Outbox:
    """The workflows that a run will start, if it ends well; none otherwise.

    Each start has a number in the run's log, so that a replay which leaves the log is noticed. A
    start is recorded no sooner than another call follows it: alone it does not count as a record.

    Args:
        log: The run's log.
        stopping: The run's stop signal.
        registry: Encodes the records of the starts.
        executor_id: The name that the run writes under.

    Attributes:
        places_held: How many numbers are taken and not recorded.
    """

    __slots__ = (
        "_executor_id",
        "_is_closed",
        "_is_durable",
        "_log",
        "_registry",
        "_starts",
        "_stopping",
        "_unrecorded",
        "places_held",
    )

    def __init__(
        self, log: RunLog, stopping: StopSignal, registry: Registry, executor_id: str
    ) -> None:
        self._log = log
        self._stopping = stopping
        self._registry = registry
        self._executor_id = executor_id
        self._starts: list[WorkflowRecord] = []
        self._unrecorded: list[StepRecord] = []
        self._is_closed = False
        self._is_durable = False
        self.places_held = 0

    @property
    def is_empty(self) -> bool:
        """True if nothing is to be started."""
        return not self._starts

    def next_number(self) -> int:
        """Take the next number in the run's log; nothing is recorded for it yet."""
        number = self._log.next_number()
        self._log.finish_call()
        self.places_held += 1
        return number

    def add(self, workflow: WorkflowRecord) -> None:
        """Add a workflow, whose ``parent_step`` is its number in the log.

        Raises:
            NonDeterministicWorkflowError: Another call is recorded there.
            WorkflowInterruptedError: The run's end is being committed already.
            RunStopped: The run must not continue.
        """
        log, number = self._log, workflow.parent_step or 0
        self._stopping.raise_if_stopped()
        if self._is_closed:
            raise WorkflowInterruptedError(log.workflow_id, "its end is being committed")
        name, digest = self.recorded_as(workflow)
        if log.step_at(number, name, digest) is None:
            output = self._registry.values.write(workflow.workflow_id)[0]
            self._unrecorded.append(log.new_record(number, name, digest.value, output=output))
        else:
            # The call is over at once, whatever else is under way.
            log.forget_result(number)
        # The run's name, even if the process changes its own meanwhile: the run commits this.
        self._starts.append(replace(workflow, executor_id=self._executor_id))

    def recorded_as(self, workflow: WorkflowRecord) -> tuple[str, ArgumentDigest]:
        """Return the name of a start in the log, and the digest of its input."""
        digest = self._registry.digest_of_input(workflow)
        return f"durable.background {workflow.name}", digest

    def take_unrecorded(self) -> list[StepRecord]:
        """Return the records to submit, once, as another call follows them."""
        self.places_held = 0
        unrecorded, self._unrecorded = self._unrecorded, []
        return unrecorded

    def close(self) -> tuple[WorkflowRecord, ...]:
        """Return the workflows to start with the run's end, and accept no more."""
        self._is_closed = True
        return tuple(self._starts)

    def on_committed(self) -> None:
        """Record that the run's end is durable, and the starts with it."""
        self._is_durable = True

    def take(self) -> list[WorkflowRecord]:
        """Return the workflows that are started and do not run yet, once."""
        if not self._is_durable:
            return []
        starts, self._starts = self._starts, []
        return starts
