"""Workflows that a run starts with its own end, in the same commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.engine.replay.recorded_calls import recorded_step
from asgi_durable.engine.replay.result_order import forget_result
from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.storage.records import StepRecord, WorkflowRecord

if TYPE_CHECKING:
    from asgi_durable.engine.runs.run import Run

__all__ = ["Outbox", "start_of"]


class Outbox:
    """What a run will start: nothing at all, unless it ends well.

    Each start has a place in the run's log, so that a replay which leaves the log is noticed. A
    place is recorded no sooner than something follows it: alone it does not count as recorded.

    Args:
        run: Whose end it is.

    Attributes:
        places_held: How many places are given out and not recorded.
    """

    __slots__ = ("_is_closed", "_is_durable", "_run", "_starts", "_unrecorded", "places_held")

    def __init__(self, run: Run) -> None:
        self._run = run
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
        """Give out the next place in the run's log; nothing is recorded for it yet."""
        number = self._run.calls
        self._run.calls += 1
        self._run.note_settled()
        self.places_held += 1
        return number

    def add(self, workflow: WorkflowRecord) -> None:
        """Take a workflow in that is called at a place of the log.

        Raises:
            NonDeterministicWorkflowError: Something else is recorded there.
            WorkflowInterruptedError: The run's end is on its way already.
            RunStopped: The run must not go on.
        """
        run, number = self._run, workflow.parent_step or 0
        run.refuse_if_stopped()
        if self._is_closed:
            raise WorkflowInterruptedError(run.workflow_id, "its end is being committed")
        name, digest = start_of(run, workflow)
        if recorded_step(run, number, name, digest) is None:
            output = run.services.registry.values.write(workflow.workflow_id)[0]
            step = run.step_record(number, name, digest.value, output=output, error=None)
            self._unrecorded.append(step)
        else:
            # It is over with its call, whatever else is under way.
            forget_result(run, number)
        # Whose commit it is, whatever the process is called meanwhile.
        self._starts.append(replace(workflow, executor_id=run.executor_id))

    def record_places(self) -> None:
        """Submit the records of the places so far, as another one follows them.

        Raises:
            RunStopped: The run must not go on, or is over.
        """
        self.places_held = 0
        unrecorded, self._unrecorded = self._unrecorded, []
        for step in unrecorded:
            self._run.submit_step(step)

    def close(self) -> tuple[WorkflowRecord, ...]:
        """Return what is to be started with the run's end, and take no more in."""
        self._is_closed = True
        return tuple(self._starts)

    def on_committed(self) -> None:
        """Take note that the run's end is durable, and with it the starts."""
        self._is_durable = True

    def take(self) -> list[WorkflowRecord]:
        """Return what is started and not running yet, once."""
        if not self._is_durable:
            return []
        starts, self._starts = self._starts, []
        return starts


def start_of(run: Run, workflow: WorkflowRecord) -> tuple[str, ArgumentDigest]:
    """Return what the place of a start is called in the log, and the digest of its input."""
    digest = run.services.registry.digest_of_input(workflow)
    return f"durable.background {workflow.name}", digest
