"""Replay: finds the record of each call that code makes again, and returns what it holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asgi_durable.codec.typed.digests import ArgumentDigest
from asgi_durable.engine.replay.result_order import in_turn
from asgi_durable.engine.replay.results import decode_recorded, encode_error
from asgi_durable.engine.runs.run_end import Interrupted
from asgi_durable.errors import DecodeError, NonDeterministicWorkflowError, StepInterruptedError
from asgi_durable.storage.records import NO_OUTPUT, StepRecord, WorkflowRecord

if TYPE_CHECKING:
    from asgi_durable.engine.process.definitions import Definition, WorkflowDefinition
    from asgi_durable.engine.runs.run import Run

__all__ = [
    "NOTHING",
    "diverged",
    "recorded_child",
    "recorded_step",
    "refuse_other_child",
    "refuse_other_step",
    "replayed",
    "tell_of_replay",
    "unused_log",
]

logger = logging.getLogger(__name__)

Entry = StepRecord | WorkflowRecord
# What is recorded behind the end of a workflow's log.
NOTHING = "nothing, as the workflow has ended"


def recorded_step(run: Run, number: int, name: str, digest: ArgumentDigest) -> StepRecord | None:
    """Return what is recorded at a place of a run's log, ``None`` for nothing.

    Raises:
        NonDeterministicWorkflowError: Something else is recorded there.
    """
    step = run.steps.get(number)
    if step is None:
        _refuse_other(run, number, run.children.get(number), f"step {name!r}")
        _refuse_new(run, number, f"step {name!r}")
        return None
    refuse_other_step(run, step, name, digest)
    return step


def refuse_other_step(run: Run, step: StepRecord, name: str, digest: ArgumentDigest) -> None:
    """Raise ``NonDeterministicWorkflowError`` if a record is another call's."""
    number = step.step_number
    if step.name != name:
        raise diverged(run, number, f"step {step.name!r}", f"step {name!r}")
    if not digest.fits(step.digest):
        recorded = f"step {name!r} with other arguments (digest {step.digest.hex()})"
        raise diverged(run, number, recorded, f"step {name!r} (digest {digest.value.hex()})")


def refuse_other_child(run: Run, number: int, name: str, workflow_id: str) -> None:
    """Raise if another call than that of this workflow, by its id, is recorded there."""
    called = f"workflow {name!r} with the id {workflow_id!r}"
    _refuse_other(run, number, run.steps.get(number), called)
    child = run.children.get(number)
    if child is not None and (child.name, child.workflow_id) != (name, workflow_id):
        recorded = f"workflow {child.name!r} with the id {child.workflow_id!r}"
        raise diverged(run, number, recorded, called)


def recorded_child(
    run: Run, number: int, definition: WorkflowDefinition, data: bytes
) -> WorkflowRecord | None:
    """Return the child that was called at a place of a run's log, ``None`` for nothing.

    Raises:
        NonDeterministicWorkflowError: Something else is recorded there.
        RunStopped: What is recorded there cannot be read.
    """
    name = definition.name
    child = run.children.get(number)
    if child is None:
        _refuse_other(run, number, run.steps.get(number), f"workflow {name!r}")
        _refuse_new(run, number, f"workflow {name!r}")
        return None
    if child.name != name or not _is_same_input(run, definition, child, data):
        what = " with other arguments" if child.name == name else ""
        raise diverged(run, number, f"workflow {child.name!r}{what}", f"workflow {name!r}")
    return child


def unused_log(run: Run) -> Interrupted | None:
    """Stop a run if its code has ended before it came to the end of its log."""
    numbers = [n for n in (*run.steps, *run.children) if n >= run.calls]
    if numbers:
        number = min(numbers)
        entry = run.steps.get(number) or run.children[number]
        diverged(run, number, repr(entry.name), "nothing, as it has ended")
    return run.stopped


async def replayed(run: Run, definition: Definition, step: StepRecord) -> Any:
    """Return what a step's record holds, or raise the error that it holds.

    Raises:
        StepInterruptedError: An earlier execution has begun the step and left no outcome.
        RunStopped: The run must not go on.
    """
    if not step.is_finished:
        step = await _interrupted(run, step)
    await in_turn(run, step.step_number, step.finished_at_us)
    run.note_settled()
    return decode_recorded(run, definition, step.output, step.error)


def tell_of_replay(run: Run, definition: Definition) -> None:
    """Write a line to the log where the result is not all that a caller of the step would get."""
    if definition.response_parameters:
        logger.warning(
            "%r of %s is not run again, and so what it did to %s is missing in the answer: let a "
            "workflow, or the handler itself, do that",
            definition.name,
            run.workflow_id,
            ", ".join(sorted(definition.response_parameters)),
        )


async def _interrupted(run: Run, step: StepRecord) -> StepRecord:
    """Record what has become of a step, whatever will be known of it later.

    Invariant: recorded and durable before the code learns of it. An outcome of the earlier
    execution's that arrives late is refused from then on, so each replay sees the same; and
    if it was first, this run ends here, and the next one replays it.
    """
    failure = StepInterruptedError(step.name)
    encoded = encode_error(run.services.registry.values, failure)
    outcome = run.step_record(
        step.step_number, step.name, step.digest, output=NO_OUTPUT, error=encoded
    )
    run.submit_step(outcome, has_begun=True)
    await run.settle()
    return outcome


def _is_same_input(
    run: Run, definition: WorkflowDefinition, child: WorkflowRecord, data: bytes
) -> bool:
    try:
        return definition.is_same_input(child.input or b"{}", data)
    except DecodeError as damage:
        # Invariant: what cannot be read is no divergence; code that can read it goes on.
        raise run.stop(damage) from damage


def _refuse_other(run: Run, number: int, other: Entry | None, called: str) -> None:
    if other is not None:
        kind = "step" if isinstance(other, StepRecord) else "workflow"
        raise diverged(run, number, f"{kind} {other.name!r}", called)


def _refuse_new(run: Run, number: int, called: str) -> None:
    """Raise if a run has ended: no body runs, as its effects are not in the log."""
    if run.has_ended:
        raise diverged(run, number, NOTHING, called)


def diverged(run: Run, number: int, recorded: str, called: str) -> Exception:
    """Stop a run whose code has left its log; return what to raise."""
    error = NonDeterministicWorkflowError(run.workflow_id, number, recorded=recorded, called=called)
    # The code may catch the error; it must not go on all the same.
    run.stop(error)
    return error
